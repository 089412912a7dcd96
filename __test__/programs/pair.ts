// Two processes that share an address greet each other.

import { spawn } from 'node:child_process'

import { join } from 'ringfence'

const [, program, address, name = 'first'] = process.argv
if (name === 'first') spawn(process.execPath, [program!, address!, 'second'], { stdio: 'inherit' })

const channel = await join(address!)
await channel.send(`hello from the ${name}`)
await channel.end()
for await (const message of channel) console.log(`the ${name} reads: ${message}`)
const { reason } = await channel.closed
if (reason !== 'closed') throw new Error(`the ${name} has lost its peer: ${reason}`)
