// A pair of processes, each started by the command given as arguments (an emulator and a Node, or nothing
// for this Node): one sends a thousand messages, the other checks each and answers with how many it got.
//
//     node scripts/arm64-pair.mjs qemu-aarch64 -L /usr/aarch64-linux-gnu build/nodes/…/bin/node

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'

const MESSAGES = 1000
const CAPACITY = 64 * 1024
// Emulated, a process takes seconds to get going; this ends only a pair that hangs.
const LIMIT = 180_000

// Sizes from nothing to twice the ring, so that padding, fragments and a full ring all occur.
function message(number) {
  const size = number % 100 === 99 ? 2 * CAPACITY : (number * 37) % 5000
  return Buffer.alloc(size, number)
}

async function send(channel) {
  for (let number = 0; number < MESSAGES; number++) await channel.send(message(number))
  await channel.end()
  const answer = await channel.receive()
  if (answer?.toString() !== String(MESSAGES)) throw new Error(`the other end answered ${answer}`)
}

async function receive(channel) {
  let number = 0
  for await (const found of channel) {
    const wanted = message(number)
    if (!wanted.equals(found)) {
      throw new Error(`message ${number}: ${found.length} bytes of ${found[0]}, not ${wanted.length} of ${wanted[0]}`)
    }
    number++
  }
  await channel.send(String(number))
  await channel.end()
}

async function main(command) {
  const address = `@ringfence-pair-${process.pid}`
  const [executable = process.execPath, ...options] = command
  const self = fileURLToPath(import.meta.url)
  const signal = AbortSignal.timeout(LIMIT)
  const codes = await Promise.all(
    ['send', 'receive'].map(async (role) => {
      const child = spawn(executable, [...options, self, `--${role}`, address], { stdio: 'inherit', signal })
      const [code] = await once(child, 'exit')
      return code
    }),
  )
  if (codes.some((code) => code !== 0))
    throw new Error(`the sender ended with ${codes[0]}, the receiver with ${codes[1]}`)
}

const [first, address] = process.argv.slice(2)
if (first === '--send' || first === '--receive') {
  // Not at the top: the process that starts the two may be of an architecture without a binding.
  const { join } = await import('ringfence')
  const channel = await join(address, { capacity: CAPACITY })
  await (first === '--send' ? send(channel) : receive(channel))
  await channel.close()
  console.log(`${first.slice(2)}: ${MESSAGES} messages on ${process.arch} as ${channel.role}`)
} else {
  await main(process.argv.slice(2))
}
