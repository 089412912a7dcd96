// A parent calls its child, by ringfence's own calls and by each of three libraries, and kills it in the middle of a hundred calls. See README.md.

import { once } from 'node:events'
import { fileURLToPath } from 'node:url'

import { fromParent, spawn } from 'ringfence'

import { birpc } from './birpc.mjs'
import { overCalls } from './calls.mjs'
import { RpcTarget, capnweb } from './capnweb.mjs'
import { overComlink } from './comlink.mjs'

const never = () => new Promise(() => {})

/** The child's functions. */
const functions = {
  add: (a, b) => a + b,
  fail() {
    throw new RangeError('not today')
  },
  hang: never,
}

/** The same for capnweb, which passes an object by reference if its class says so. */
class Target extends RpcTarget {
  add(a, b) {
    return functions.add(a, b)
  }

  fail() {
    return functions.fail()
  }

  hang() {
    return functions.hang()
  }
}

const ways = {
  call: (channel, own, options) => overCalls(channel, own, options),
  comlink: (channel, own, options) => overComlink(channel, own, options),
  birpc: (channel, own, options) => birpc(channel, own ?? {}, options),
  capnweb: (channel, own) => capnweb(channel, own === undefined ? undefined : new Target()),
}

const [way, child] = process.argv.slice(2)
if (child === 'child') await serve()
else for (const name of way === undefined ? Object.keys(ways) : [way]) await call(name)

async function serve() {
  ways[way](await fromParent(), functions)
}

async function call(name) {
  const self = fileURLToPath(import.meta.url)
  const started = await spawn(process.execPath, [self, name, 'child'], { spawn: { stdio: 'inherit' } })
  const exited = once(started.child, 'exit')
  const { remote } = ways[name](started.channel, undefined, { timeout: 60_000 })
  console.log(`${name}: 2 + 3 is ${await remote.add(2, 3)}`)
  const failure = await remote.fail().catch((error) => error)
  console.log(`${name}: the other side threw "${failure.message}"`)

  // Each of these calls would wait forever.
  const pending = Array.from({ length: 100 }, () => remote.hang().then(never, (error) => error.message))
  // Once the first is answered, all have arrived.
  await remote.add(0, 0)
  started.child.kill('SIGKILL')
  const reasons = new Set(await Promise.all(pending))
  await exited
  console.log(`${name}: 100 pending calls have rejected with "${[...reasons].join('", "')}"`)
}
