// The cost of each agent to its service: descriptors, memory beyond the rings, and processor time while none speaks.
//
//   npm run bench -- agents --agents 1000 --processes 4 --capacity 4096 --idle 20
//
// The service runs in this process, and its agents in others. RssAnon and VmPTE are from /proc/self/status; the rings are
// RssShmem. Kernel memory other than page tables (sockets, pidfds) is in neither.

import { fork } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'
import os from 'node:os'
import { setTimeout as pause } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'

import { connect, listen } from '../../dist/esm/index.js'

export const about = 'what a service in Node holds for each of its agents; needs a build'
export const options = {
  agents: ['how many', '1000'],
  processes: ['in how many processes', '4'],
  capacity: ['bytes of each ring', '4096'],
  idle: ['seconds for which nothing is sent', '20'],
}

const script = fileURLToPath(import.meta.url)

async function crowd({ address, agents, processes, capacity }) {
  const each = Math.ceil(agents / processes)
  const channels = await Promise.all(
    Array.from({ length: each }, () => connect(address, { capacity, handshakeTimeout: 60_000 })),
  )
  process.on('message', async (order) => {
    if (order === 'talk') {
      await Promise.all(channels.map(talk))
      process.send('talked')
      return
    }
    process.disconnect()
    await Promise.all(channels.map((channel) => channel.close()))
  })
  process.send('connected')
}

async function talk(channel) {
  for (let round = 0; round < 20; round += 1) {
    void channel.send(Buffer.alloc(64, round))
    await channel.receive()
  }
}

function look() {
  setFlagsFromString('--expose-gc')
  runInNewContext('gc')()
  const status = readFileSync('/proc/self/status', 'utf8')
  const kib = (name) => Number(new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(status)[1])
  return {
    descriptors: readdirSync('/proc/self/fd').length,
    memory: kib('RssAnon'),
    tables: kib('VmPTE'),
    rings: kib('RssShmem'),
    threads: kib('Threads'),
  }
}

export async function run(values) {
  const { agents, processes, capacity, idle } = Object.fromEntries(
    Object.entries(values).map(([name, value]) => [name, Number(value)]),
  )
  const address = `@ringfence-agents-${process.pid}`
  const listener = await listen(address, { capacity, handshakeTimeout: 60_000 })
  listener.on('refused', (refusal) => console.error(refusal.message))
  const serving = (async () => {
    for await (const channel of listener) {
      void (async () => {
        for await (const message of channel) void channel.send(message)
        await channel.close()
      })()
    }
  })()
  const job = JSON.stringify({ address, agents, processes, capacity })
  const crowds = Array.from({ length: processes }, () => fork(script, ['--side', job]))
  /** Until each has said that it is done. */
  const all = () => Promise.all(crowds.map((one) => once(one, 'message')))
  const before = look()
  const started = performance.now()
  await all()
  const connecting = performance.now() - started
  const count = listener.channels.length
  await pause(1000)
  const connected = look()
  const talked = all()
  crowds.forEach((one) => one.send('talk'))
  await talked
  await pause(1000)
  const spoken = look()
  const cpu = process.cpuUsage()
  await pause(idle * 1000)
  const { user, system } = process.cpuUsage(cpu)
  const gone = crowds.map((one) => once(one, 'exit'))
  crowds.forEach((one) => one.send('leave'))
  await Promise.all(gone)
  await pause(1000)
  const after = look()
  await listener.close()
  await serving

  const per = (name, now) => ((now[name] - before[name]) / count).toFixed(name === 'descriptors' ? 2 : 1)
  console.log(`Node ${process.version}, Linux ${os.release()}, ${os.cpus()[0].model}, ${os.cpus().length} processors`)
  console.log(new Date().toISOString().slice(0, 10), `load ${os.loadavg().map((load) => load.toFixed(1))}`)
  console.log(
    `${count} agents in ${processes} processes, rings of ${capacity} bytes; connected in ${Math.round(connecting)} ms`,
  )
  for (const [what, now] of Object.entries({ 'have connected': connected, 'have spoken': spoken })) {
    console.log(
      `per channel, once all ${what}: ${per('descriptors', now)} descriptors, ${per('memory', now)} KiB of memory, ` +
        `${per('tables', now)} KiB of page tables, ${per('rings', now)} KiB of rings`,
    )
  }
  console.log(`threads: ${before.threads} before, ${spoken.threads} with all`)
  console.log(`processor time while idle: ${((user + system) / 1000).toFixed(1)} ms in ${idle} s for all`)
  console.log(
    `after all have gone: ${after.descriptors - before.descriptors} descriptors more than before, ${after.memory - before.memory} KiB`,
  )
}

if (process.argv[2] === '--side') await crowd(JSON.parse(process.argv[3]))
