// The binding, then the face, whose types rest on the binding's. With --release as it is published.

import { build } from './lib.mjs'

build(...process.argv.slice(2))
