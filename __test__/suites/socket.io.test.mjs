// The behaviours of socket.io's own adapter suites, with the adapter of examples/socket.io and three workers, each a process.

import '../../examples/socket.io/test.mjs'
