// A file goes through a channel, chunk by chunk.

import { spawn } from 'node:child_process'
import { createReadStream, createWriteStream, readFileSync, rmSync } from 'node:fs'
import { pipeline } from 'node:stream/promises'

import { join } from 'ringfence'

const [, program, address, role = 'reader'] = process.argv

if (role === 'reader') {
  spawn(process.execPath, [program!, address!, 'writer'], { stdio: 'inherit' })
  const channel = await join(address!)
  const copy = `${program}.copy`
  await pipeline(channel.duplex(), createWriteStream(copy))
  console.log(`the copy is ${readFileSync(copy).equals(readFileSync(program!)) ? 'equal' : 'another'}`)
  rmSync(copy)
} else {
  const channel = await join(address!)
  await pipeline(createReadStream(program!, { highWaterMark: 100 }), channel.duplex())
}
