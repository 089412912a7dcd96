// One side of a pair, in the directory where ringfence was installed. pair.cjs is the same for `require`.

import { join } from 'ringfence'
import { speak } from './speak.cjs'

await speak(join, ...process.argv.slice(2))
