import { once } from 'node:events'
import { chmodSync, readFileSync, writeFileSync } from 'node:fs'
import { createServer, type AddressInfo } from 'node:net'
import { join } from 'node:path'

import test, { type ExecutionContext } from 'ava'

import { abstractAddress, temporaryDirectory, untilBound } from './support/address.js'
import { Partner, type PartnerError } from './support/partner.js'
import { until } from './support/until.js'

/** Root may access every process, so these tests need two processes of an unprivileged user. */
const through =
  process.getuid!() === 0 ? ['setpriv', '--reuid=54326', '--regid=54326', '--clear-groups', '--'] : undefined

const start = (t: ExecutionContext, node: string[] = []) => Partner.start(t, { through, node })

/** The results of accesses to another process of the same user. */
function inspect(attacker: Partner, victim: Partner): Promise<string[]> {
  return attacker.run(({ require }, pid) => {
    const fs = require('node:fs') as typeof import('node:fs')
    const tries = [
      () => fs.openSync(`/proc/${pid}/mem`, 'r+'),
      () => fs.openSync(`/proc/${pid}/environ`, 'r'),
      () => fs.readdirSync(`/proc/${pid}/fd`),
      () => fs.readlinkSync(`/proc/${pid}/exe`),
    ]
    return tries.map((look) => {
      try {
        look()
        return 'open'
      } catch (error) {
        return (error as NodeJS.ErrnoException).code ?? String(error)
      }
    })
  }, victim.pid)
}

/** A loopback port that is free now. */
async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return port
}

/** Whether a process listens there, according to the kernel. */
function isOpen(port: number): boolean {
  const local = `0100007F:${port.toString(16).toUpperCase().padStart(4, '0')}`
  return readFileSync('/proc/net/tcp', 'latin1')
    .split('\n')
    .map((line) => line.trim().split(/\s+/))
    .some(([, address, , state]) => address === local && state === '0A')
}

/** A file that another user can read. */
function readable(t: ExecutionContext, name: string, content: string): string {
  const directory = temporaryDirectory(t)
  chmodSync(directory, 0o755)
  writeFileSync(join(directory, name), content)
  return join(directory, name)
}

const SIGUSR1 = 1n << 9n

/** The disposition of a signal of a process, according to the kernel. */
function onSignal(pid: number, bit: bigint): string {
  const status = readFileSync(`/proc/${pid}/status`, 'latin1')
  const set = (name: string) => (BigInt(`0x${new RegExp(`${name}:\\s*(\\w+)`).exec(status)![1]}`) & bit) !== 0n
  return set('SigIgn') ? 'ignored' : set('SigCgt') ? 'handled' : 'default'
}

test('a hardened process is closed to others of its user', async (t) => {
  const [victim, attacker] = await Promise.all([start(t), start(t)])
  t.deepEqual(await inspect(attacker, victim), ['open', 'open', 'open', 'open'])
  await victim.run(({ ringfence }) => {
    ringfence.harden()
    ringfence.harden()
  })
  t.deepEqual(await inspect(attacker, victim), ['EACCES', 'EACCES', 'EACCES', 'EACCES'])
  const limits = await victim.run(({ require }) =>
    (require('node:fs') as typeof import('node:fs')).readFileSync('/proc/self/limits', 'utf8'),
  )
  t.regex(limits, /Max core file size +0 +0 /)
})

test('SIGUSR1 opens no inspector in a hardened process', async (t) => {
  const port = await freePort()
  const [open, closed] = await Promise.all([start(t, [`--inspect-port=${port}`]), start(t, [`--inspect-port=${port}`])])
  open.mayFail()
  await closed.run(({ ringfence }) => ringfence.harden())
  t.is(onSignal(closed.pid, SIGUSR1), 'ignored')
  t.is(onSignal(open.pid, SIGUSR1), 'handled')
  process.kill(closed.pid, 'SIGUSR1')
  t.is(await closed.run(() => process.getBuiltinModule('node:inspector').url()), undefined)
  t.false(isOpen(port))
  // In a process that is not hardened, the same signal opens the inspector.
  process.kill(open.pid, 'SIGUSR1')
  await until(() => isOpen(port), 'the inspector of the other process is open')
  const error = await t.throwsAsync<PartnerError>(
    open.run(({ ringfence }) => ringfence.harden()),
    { code: 'ERR_RINGFENCE_INVALID_ARGUMENT' },
  )
  t.regex(error?.message ?? '', /inspector is open at ws:/)
  await t.throwsAsync(open.join(abstractAddress(), { harden: true }), { code: 'ERR_RINGFENCE_INVALID_ARGUMENT' })
})

test('a program that listens to SIGUSR1 keeps its listener', async (t) => {
  const partner = await start(t)
  await partner.run(({ ringfence, keep }) => {
    process.on('SIGUSR1', () => {
      keep.heard = true
    })
    ringfence.harden()
  })
  process.kill(partner.pid, 'SIGUSR1')
  await until(() => partner.run(({ keep }) => keep.heard === true), 'the listener has heard')
  t.is(await partner.run(() => process.getBuiltinModule('node:inspector').url()), undefined)
})

test('two processes that harden during the handshake meet under the default policy, with evidence', async (t) => {
  const [host, guest, attacker] = await Promise.all([start(t), start(t), start(t)])
  const address = abstractAddress()
  const hosting = host.join(address, { harden: true })
  await untilBound(address)
  await guest.join(address, { harden: true })
  await hosting
  for (const partner of [host, guest]) {
    const evidence = await partner.run(({ channel }) => channel.evidence)
    const found = (check: string) => evidence.filter((each) => each.check === check).map((each) => each.found)
    t.deepEqual(found('hardened'), ['not dumpable, no core'])
    t.regex(found('peer hardened').at(-1) ?? '', /the peer reports it.*; not dumpable/)
    t.deepEqual(await inspect(attacker, partner), ['EACCES', 'EACCES', 'EACCES', 'EACCES'])
    t.is(onSignal(partner.pid, SIGUSR1), 'ignored')
  }
  await host.run(({ channel }) => channel.send('behind closed doors'))
  t.is(await guest.run(async ({ channel }) => String(await channel.receive())), 'behind closed doors')
})

test('the default policy refuses a process that is hardened already, and names the alternatives', async (t) => {
  const [host, guest] = await Promise.all([start(t), start(t)])
  const address = abstractAddress()
  const hosting = host.join(address)
  await untilBound(address)
  await guest.run(({ ringfence }) => ringfence.harden())
  const error = await t.throwsAsync<PartnerError>(guest.join(address), { code: 'ERR_RINGFENCE_PEER_REFUSED' })
  t.is(error?.thrown.check, 'executable')
  t.regex(error?.thrown.found ?? '', /ask for uid, gid, cgroup or label instead/)
  const next = await start(t)
  await next.join(address)
  await hosting
})

test('two hardened processes meet under a policy that requires only what stays visible', async (t) => {
  const [host, guest] = await Promise.all([start(t), start(t)])
  await Promise.all([host, guest].map((partner) => partner.run(({ ringfence }) => ringfence.harden())))
  const address = abstractAddress()
  const policy = { executable: 'any' as const }
  await Promise.all([host.join(address, { policy }), guest.join(address, { policy })])
  await host.run(({ channel }) => channel.send('still'))
  t.is(await guest.run(async ({ channel }) => String(await channel.receive())), 'still')
})

test('harden is true or false', async (t) => {
  const partner = await start(t)
  await t.throwsAsync(partner.join(abstractAddress(), { harden: 'yes' as unknown as boolean }), {
    code: 'ERR_RINGFENCE_INVALID_ARGUMENT',
    message: /harden must be true or false/,
  })
})

test('an open inspector is found even if the runtime does not export its modules', async (t) => {
  // Like in Node 21, and in 22 before 22.3.
  const without = readable(t, 'without.cjs', 'delete process.getBuiltinModule')
  const port = await freePort()
  const node = ['--require', without, `--inspect=127.0.0.1:${port}`]
  const [open, closed] = await Promise.all([start(t, node), start(t, node.slice(0, 2))])
  open.mayFail()
  await t.throwsAsync(
    open.run(({ ringfence }) => ringfence.harden()),
    { code: 'ERR_RINGFENCE_INVALID_ARGUMENT', message: /inspector is open at ws:/ },
  )
  await t.notThrowsAsync(closed.run(({ ringfence }) => ringfence.harden()))
  t.is(onSignal(closed.pid, SIGUSR1), 'ignored')
})

test('if the state of the inspector is unknown, a process is not hardened', async (t) => {
  const silent = readable(t, 'silent.cjs', `require('node:inspector').url = () => { throw new Error('not told') }`)
  const partner = await start(t, ['--require', silent])
  await t.throwsAsync(
    partner.run(({ ringfence }) => ringfence.harden()),
    { code: 'ERR_RINGFENCE_UNSUPPORTED', message: /inspector/ },
  )
})

test('a worker thread cannot see the inspector, so it does not harden', async (t) => {
  const partner = await start(t)
  const code = await partner.run(async ({ require }) => {
    const { Worker } = require('node:worker_threads') as typeof import('node:worker_threads')
    const worker = new Worker(
      `const { parentPort } = require('node:worker_threads')
       import('ringfence').then(({ harden }) => {
         try { harden(); parentPort.postMessage('hardened') } catch (error) { parentPort.postMessage(error.code) }
       })`,
      { eval: true },
    )
    return new Promise<string>((resolve) => worker.once('message', resolve))
  })
  t.is(code, 'ERR_RINGFENCE_INVALID_ARGUMENT')
})
