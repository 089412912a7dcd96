// In the folder where ringfence was installed: one side of a pair. pair.cjs is the same for `require`.

import { join } from 'ringfence'
import { speak } from './speak.cjs'

await speak(join, ...process.argv.slice(2))
