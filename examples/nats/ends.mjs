// The programs at both ends of topics.mjs. They do not depend on bridges.
//
//     node ends.mjs publish ADDRESS COUNT       publishes numbers
//     node ends.mjs subscribe ADDRESS COUNT     reads until the last number
//     node ends.mjs send ADDRESS COUNT NAME     sends numbers, each until its storage is confirmed
//     node ends.mjs collect ADDRESS COUNT SENDERS

import { once } from 'node:events'
import { setTimeout } from 'node:timers/promises'

import { connect, listen, publish, subscribe } from 'ringfence'

const [what, address, words, ...more] = process.argv.slice(2)
const count = Number(words)
/** Messages per millisecond, so that a run takes some seconds, in which bridges are killed. */
const PACE = count / 3000

const programs = {
  async publish() {
    const publisher = await publish(address)
    await once(publisher, 'connection')
    for await (const number of paced(0)) await publisher.send(String(number))
    // Keeps its side open, as a publisher that will continue.
    await once(process, 'SIGTERM')
    await publisher.close()
  },

  /** Subscribes to one bridge after the other. */
  async subscribe() {
    const seen = new Set()
    let repeated = 0
    while (!seen.has(count - 1)) {
      const subscription = await subscribe(address, { wait: true, from: 'oldest' })
      for await (const message of untilLost(subscription)) {
        const number = Number(message)
        if (seen.has(number)) repeated += 1
        // Repeated messages arrive in their original order.
        else if (number !== seen.size) throw new Error(`${number} has arrived, and ${seen.size} has not`)
        seen.add(number)
        if (number === count - 1) break
      }
      await subscription.close()
    }
    console.log(`published: ${seen.size} of ${count} have arrived, in order; ${repeated} of them repeatedly`)
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
        // The bridge has exited, so the next one gets the messages that were not confirmed.
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
    console.log(`collected: ${all} of ${senders} × ${count} have arrived; ${repeated} of them repeatedly`)
    await listener.close({ channels: 'close' })
  },
}

/** The messages of a bridge, and of the next one after it was killed. */
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
