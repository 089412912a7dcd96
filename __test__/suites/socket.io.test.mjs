// The test suites of socket.io's own adapters, with the adapter of examples/socket.io and three workers, each in its
// own process.

import '../../examples/socket.io/test.mjs'
