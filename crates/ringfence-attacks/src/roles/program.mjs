// A Node program under orders, with a secret in its memory.

import { createInterface } from 'node:readline'
import { pathToFileURL } from 'node:url'

const { harden, join } = await import(pathToFileURL(process.env.RINGFENCE))
// Made at run time, so that it is nowhere but in memory.
globalThis.secret = ['top', 'secret'].join('')
let channel

async function obey(order, words) {
  switch (order) {
    case 'pid':
      return process.pid
    case 'egid':
      return process.getegid()
    case 'harden':
      return harden() ?? 'hardened'
    case 'join': {
      const [address, policy] = words
      channel = await join(address, policy === undefined ? {} : { policy: JSON.parse(policy) })
      return `joined ${channel.role} pid=${channel.peer.pid}`
    }
    case 'send':
      await channel.send(words[0])
      return 'sent'
    case 'receive':
      return `got ${await channel.receive()}`
  }
  return `no such order: ${order}`
}

for await (const line of createInterface({ input: process.stdin })) {
  const [order, ...words] = line.split(' ')
  const answer = await obey(order, words).catch(
    (error) => `error ${error.code} check=${error.check} | ${error.message}`,
  )
  console.log(String(answer))
}
process.exit()
