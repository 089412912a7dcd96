// The programs at both ends of topics.mjs. They know nothing of bridges.
//
//     node ends.mjs publish ADDRESS COUNT       numbers
//     node ends.mjs subscribe ADDRESS COUNT     until it has the last number
//     node ends.mjs send ADDRESS COUNT NAME     numbers, each until it is known to be kept
//     node ends.mjs collect ADDRESS COUNT SENDERS

import { once } from 'node:events'
import { setTimeout } from 'node:timers/promises'

import { connect, listen, publish, subscribe } from 'ringfence'

const [what, address, words, ...more] = process.argv.slice(2)
const count = Number(words)
/** Messages for each millisecond, so that all take some seconds: bridges are to be killed in the middle. */
const PACE = count / 3000

const programs = {
  async publish() {
    const publisher = await publish(address)
    await once(publisher, 'connection')
    for await (const number of paced(0)) await publisher.send(String(number))
    // It has more to say some day.
    await once(process, 'SIGTERM')
    await publisher.close()
  },

  /** One bridge after the other publishes here. */
  async subscribe() {
    const seen = new Set()
    let repeated = 0
    while (!seen.has(count - 1)) {
      const subscription = await subscribe(address, { wait: true, from: 'oldest' })
      for await (const message of untilLost(subscription)) {
        const number = Number(message)
        if (seen.has(number)) repeated += 1
        // Repeated messages come in their first order.
        else if (number !== seen.size) throw new Error(`${number} has come, and ${seen.size} has not`)
        seen.add(number)
        if (number === count - 1) break
      }
      await subscription.close()
    }
    console.log(`published: ${seen.size} of ${count} have come, in order; ${repeated} of them again`)
  },

  async send() {
    const [name] = more
    let kept = 0
    while (kept < count) {
      const before = kept
      const channel = await connect(address, { wait: true, allowHalfOpen: true })
      const answers = (async () => {
        for await (const answer of untilLost(channel)) {
          kept = before + Number(answer)
          if (kept === count) break
        }
        await channel.close()
      })()
      try {
        for await (const number of paced(before)) await channel.send(`${name} ${number}`)
      } catch {
        // The bridge is gone: the next one gets what is not known to be kept.
      }
      await answers
    }
  },

  async collect() {
    const senders = Number(more[0])
    const seen = new Map()
    let repeated = 0
    let all = 0
    const listener = await listen(address)
    for await (const [, message] of listener.messages()) {
      const [name, number] = String(message).split(' ')
      if (!seen.has(name)) seen.set(name, new Set())
      const numbers = seen.get(name)
      if (numbers.has(Number(number))) repeated += 1
      else {
        numbers.add(Number(number))
        all += 1
      }
      if (all === senders * count) break
    }
    console.log(`collected: ${all} of ${senders} × ${count} have come; ${repeated} of them again`)
    await listener.close({ channels: 'close' })
  },
}

/** The messages of a bridge. One that is killed is followed by the next. */
async function* untilLost(messages) {
  try {
    yield* messages
  } catch (error) {
    if (error.code !== 'ERR_RINGFENCE_PEER_LOST') throw error
  }
}

async function* paced(first) {
  const began = performance.now()
  for (let number = first; number < count;) {
    const due = Math.min(count, first + Math.ceil((performance.now() - began) * PACE))
    for (; number < due; number += 1) yield number
    await setTimeout(1)
  }
}

await programs[what]()
process.exit()
