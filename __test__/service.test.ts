import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, readdirSync, statSync } from 'node:fs'
import { connect as connectSocket } from 'node:net'
import { dirname } from 'node:path'

import test, { type ExecutionContext } from 'ava'
import {
  connect,
  join,
  listen,
  Listener,
  RingfenceError,
  subscribe,
  type Channel,
  type Closed,
  type Identity,
  type Options,
} from 'ringfence'

import { abstractAddress, addressOf, isBound, kinds, namedAddress, untilBound } from './support/address.js'
import type { Kit } from './support/partner-process.js'
import { listenHere, nextChannel, Partner, type PartnerError } from './support/partner.js'
import { terminateWorkers } from './support/terminate-workers.js'
import { isPending, within, until } from './support/until.js'

const isRoot = process.getuid!() === 0
const withOthers = isRoot ? test.serial : test.serial.skip
const small: Options = { capacity: 4096 }

function as(uid: number): string[] {
  return ['setpriv', `--reuid=${uid}`, `--regid=${uid}`, '--clear-groups', '--']
}

/** The refusals of a listener, as they happen. */
function refusals(listener: Listener): RingfenceError[] {
  const all: RingfenceError[] = []
  listener.on('refused', (one) => all.push(one))
  return all
}

/** The next refusal. */
async function refusal(listener: Listener): Promise<RingfenceError> {
  const [error] = (await within(once(listener, 'refused'), 'a refusal')) as [RingfenceError]
  return error
}

/** Echoes every message to its client. */
async function serve(listener: Listener): Promise<void> {
  for await (const channel of listener) void echo(channel)
}

async function echo(channel: Channel): Promise<void> {
  try {
    for await (const message of channel) await channel.send(message)
    await channel.close()
  } catch {
    // The client was killed.
  }
}

/** In the partner: sends a message to the service, and returns the reply. */
async function ask(kit: Kit, message: string): Promise<string> {
  void kit.channel.send(message)
  return String(await kit.channel.receive())
}

function startAgents(t: ExecutionContext, count: number): Promise<Partner[]> {
  return Promise.all(Array.from({ length: count }, () => Partner.start(t)))
}

for (const kind of kinds) {
  test.serial(`each client has its own channel with the service, at ${kind} addresses`, async (t) => {
    const address = addressOf(kind, t)
    const listener = await listenHere(t, address, small)
    t.is(listener.address, address)
    t.is(listener.channels.length, 0)
    const agents = await startAgents(t, 4)
    await Promise.all(agents.map((agent) => agent.connect(address, small)))
    const channels = new Map<number, Channel>()
    for await (const channel of listener) {
      channels.set(channel.peer.pid, channel)
      if (channels.size === agents.length) break
    }
    t.is(listener.channels.length, 4)
    for (const agent of agents) {
      const channel = channels.get(agent.pid)!
      t.is(channel.role, 'host')
      t.true(channel.evidence.some((one) => one.check === 'executable' && one.outcome === 'passed'))
      t.is(await agent.run((kit) => kit.channel.role), 'guest')
      t.is(await agent.run((kit) => kit.channel.peer.pid), process.pid)
      void echo(channel)
      t.is(await agent.run(ask, `from ${agent.pid}`), `from ${agent.pid}`)
    }
    // One disconnects, one is killed, and the others stay.
    const [first, second, ...rest] = agents
    await first!.run((kit) => kit.channel.close())
    t.is((await channels.get(first!.pid)!.closed).reason, 'closed')
    await second!.kill()
    t.is((await channels.get(second!.pid)!.closed).reason, 'lost')
    await until(() => listener.channels.length === 2, 'the service has noticed')
    for (const agent of rest) t.is(await agent.run(ask, 'still there'), 'still there')
  })
}

test.serial('a process may connect several times to one service, and to several services', async (t) => {
  const addresses = [abstractAddress(), abstractAddress()]
  const listeners = await Promise.all(addresses.map((address) => listenHere(t, address, small)))
  const served = listeners.map(serve)
  const agent = await Partner.start(t)
  const answers = await agent.run(async (kit, where: string[]) => {
    const all = where.flatMap((address) => Array.from({ length: 40 }, () => address))
    const channels = await Promise.all(all.map((address) => kit.ringfence.connect(address, { capacity: 4096 })))
    const heard = channels.map(async (channel, number) => {
      void channel.send(`number ${number}`)
      const answer = String(await channel.receive())
      await channel.close()
      return answer === `number ${number}`
    })
    return Promise.all(heard)
  }, addresses)
  t.is(answers.length, 80)
  t.true(answers.every(Boolean))
  await Promise.all(listeners.map((listener) => listener.close()))
  await Promise.all(served)
})

withOthers('agents of two users talk to the service of a third, and a fourth is refused meanwhile', async (t) => {
  const [host, first, second, stranger] = [64001, 64002, 64003, 64004]
  const address = namedAddress(t)
  chmodSync(dirname(address), 0o777)
  const service = await Partner.start(t, { through: as(host) })
  await service.run(
    async (kit, where: string, uids: number[]) => {
      const listener = await kit.ringfence.listen(where, {
        mode: 0o666,
        policy: { uid: uids, executable: 'any' },
        capacity: 4096,
      })
      const refused: unknown[] = []
      listener.on('refused', ({ code, check, wanted, found, identity }) => {
        refused.push({ code, check, wanted, found, pid: identity?.pid, uid: identity?.uid, gid: identity?.gid })
      })
      kit.keep['refused'] = refused
      kit.keep['listener'] = listener
      void (async () => {
        for await (const channel of listener) {
          void (async () => {
            for await (const message of channel) await channel.send(`${channel.peer.uid}: ${String(message)}`)
          })()
        }
      })()
    },
    address,
    [first, second],
  )
  t.is(statSync(address).mode & 0o777, 0o666)
  t.is(statSync(address).uid, host)
  const agents = await Promise.all([first, second].map((uid) => Partner.start(t, { through: as(uid) })))
  await Promise.all(
    agents.map((agent) => agent.connect(address, { policy: { uid: host, executable: 'any' }, capacity: 4096 })),
  )
  const fourth = await Partner.start(t, { through: as(stranger) })
  const talks = agents.map((agent) =>
    agent.run(async (kit) => {
      for (let round = 0; round < 200; round += 1) {
        void kit.channel.send(`round ${round}`)
        const answer = String(await kit.channel.receive())
        if (answer !== `${process.getuid!()}: round ${round}`) return answer
      }
      return 'all answered'
    }),
  )
  for (let round = 0; round < 3; round += 1) {
    const error = await t.throwsAsync<PartnerError>(
      fourth.connect(address, { policy: { uid: host, executable: 'any' } }),
      {
        code: 'ERR_RINGFENCE_PEER_REFUSED',
      },
    )
    t.is(error?.thrown.check, 'uid')
  }
  t.deepEqual(await Promise.all(talks), ['all answered', 'all answered'])
  // The client also refuses a service with the wrong identity.
  const error = await t.throwsAsync<PartnerError>(
    agents[0]!.connect(address, { policy: { uid: 1, executable: 'any' } }),
    {
      code: 'ERR_RINGFENCE_PEER_REFUSED',
    },
  )
  t.is(error?.thrown.found, String(host))
  const refused = await service.run(async (kit) => {
    const all = kit.keep['refused'] as Record<string, unknown>[]
    await kit.until.until(() => all.length >= 3, 'all refusals are told')
    return all
  })
  const expected = {
    code: 'ERR_RINGFENCE_PEER_REFUSED',
    check: 'uid',
    wanted: `one of [${first}, ${second}]`,
    found: String(stranger),
    pid: fourth.pid,
    uid: stranger,
    gid: stranger,
  }
  t.deepEqual(refused.slice(0, 3), [expected, expected, expected])
})

test.serial(
  'a callback of the policy decides about each client, and its exception is the refusal’s cause',
  async (t) => {
    const address = abstractAddress()
    const asked: number[] = []
    const thrown = new Error('no')
    const agents = await startAgents(t, 3)
    const [yes, no, never] = agents.map((agent) => agent.pid)
    const authorize = async ({ pid }: { pid: number }) => {
      asked.push(pid)
      if (pid === never) throw thrown
      return pid === yes
    }
    const listener = await listenHere(t, address, { ...small, policy: { authorize } })
    const refused = refusals(listener)
    await agents[0]!.connect(address, small)
    for (const [index, agent] of agents.slice(1).entries()) {
      await t.throwsAsync(agent.connect(address, small), { code: 'ERR_RINGFENCE_PEER_REFUSED' })
      // The client knows first.
      await until(() => refused.length === index + 1, 'the refusal')
    }
    t.is((await nextChannel(listener)).peer.pid, yes)
    t.deepEqual(asked, [yes, no, never])
    t.deepEqual(
      refused.map(({ check, identity }) => [check, identity?.pid]),
      [
        ['authorize', no],
        ['authorize', never],
      ],
    )
    t.is(refused[1]?.cause, thrown)
  },
)

test.serial('a process that connects and stays silent is refused at the deadline, and delays no other', async (t) => {
  const address = namedAddress(t)
  const listener = await listenHere(t, address, { ...small, handshakeTimeout: 2000 })
  const silent = await Partner.start(t)
  await silent.run((kit, where: string) => {
    const { connect: open } = kit.require('node:net') as typeof import('node:net')
    kit.keep['sockets'] = Array.from({ length: 20 }, () => open(where).on('error', () => {}))
  }, address)
  const refused = refusals(listener)
  const agent = await Partner.start(t)
  await agent.connect(address, small)
  t.is((await nextChannel(listener)).peer.pid, agent.pid)
  await until(() => refused.length === 20, 'all are refused')
  for (const error of refused) {
    t.true(error instanceof RingfenceError)
    t.is(error.code, 'ERR_RINGFENCE_HANDSHAKE_TIMEOUT')
    t.is(error.identity?.pid, silent.pid)
    t.is(error.identity?.executable?.path, process.execPath)
  }
})

test.serial('authorize decides about each client, possibly later, and delays no other', async (t) => {
  const address = abstractAddress()
  const answers = new Map<number, (answer: boolean) => void>()
  const asked: number[] = []
  const policy = {
    authorize: ({ pid }: Identity) => {
      asked.push(pid)
      return new Promise<boolean>((resolve) => answers.set(pid, resolve))
    },
  }
  const listener = await listenHere(t, address, { ...small, handshakeTimeout: 60_000, policy })
  const refused = refusals(listener)
  const [first, second, third] = await startAgents(t, 3)
  const patient = { ...small, handshakeTimeout: 60_000 }
  const joining = [first!, second!, third!].map((agent) => agent.connect(address, patient))
  await until(() => answers.size === 3, 'all three are asked about')
  answers.get(third!.pid)!(true)
  await joining[2]
  t.is((await nextChannel(listener)).peer.pid, third!.pid)
  answers.get(second!.pid)!(false)
  await t.throwsAsync(joining[1]!, { code: 'ERR_RINGFENCE_PEER_REFUSED', message: /authorize/ })
  await until(() => refused.length === 1, 'the refusal')
  t.is(refused[0]?.identity?.pid, second!.pid)
  answers.get(first!.pid)!(true)
  await joining[0]
  t.is((await nextChannel(listener)).peer.pid, first!.pid)
  t.is(asked.length, 3, 'once each')
  for (const { pid } of [first!, second!, third!]) t.true(asked.includes(pid))
})

test.serial('a malformed handshake is refused and reported, and ends nothing', async (t) => {
  const address = namedAddress(t)
  const listener = await listenHere(t, address, small)
  const refused = refusal(listener)
  const babbler = await Partner.start(t)
  await babbler.run(
    (kit, where: string) =>
      new Promise<void>((resolve) => {
        const { connect: open } = kit.require('node:net') as typeof import('node:net')
        open(where)
          .on('error', () => {})
          .on('close', () => resolve())

          .resume()
          .end('GET / HTTP/1.1\r\n\r\n')
      }),
    address,
  )
  t.regex((await refused).code, /PROTOCOL|PEER_LOST/)
  await babbler.connect(address, small)
  t.is((await nextChannel(listener)).peer.pid, babbler.pid)
})

test.serial('refusals with names that a process invents are all counted under one name', async (t) => {
  const address = namedAddress(t)
  const listener = await listenHere(t, address, small)
  const refuser = await Partner.start(t)
  const names = ['made up', 'once more', 'a third']
  await refuser.run(
    async (kit, where: string, checks: string[]) => {
      const { connect: open } = kit.require('node:net') as typeof import('node:net')
      for (const check of checks) {
        // A frame header, and a REFUSE by the policy: the code, and three texts.
        const head = Buffer.from('ringfnce\u0003\0\u0004\0\0\0\0\0', 'latin1')
        const body = Buffer.from(`\u0002\0${String.fromCharCode(check.length)}\0${check}\0\0\0\0`, 'latin1')
        head.writeUInt32LE(body.length, 12)
        await new Promise<void>((resolve) => {
          open(where)
            .on('error', () => {})
            .on('close', () => resolve())
            .resume()
            .end(Buffer.concat([head, body]))
        })
      }
    },
    address,
    names,
  )
  const sum = () => Object.values(listener.stats().refused).reduce((all, count) => all + count, 0)
  await until(() => sum() === names.length, 'all are counted')
  t.deepEqual(listener.stats().refused, { other: names.length })
})

test.serial('a process cannot be its own client', async (t) => {
  const address = abstractAddress()
  const listener = await listenHere(t, address, small)
  const refused = refusal(listener)
  await t.throwsAsync(connect(address, small), {
    code: 'ERR_RINGFENCE_ADDRESS_OCCUPIED',
    message: /itself; connect from another process/,
  })
  t.is((await refused).code, 'ERR_RINGFENCE_ADDRESS_OCCUPIED')
})

test.serial('a full service refuses clients, and accepts the next one once one has left', async (t) => {
  const address = abstractAddress()
  const listener = await listenHere(t, address, { ...small, maxPeers: 2 })
  const refused = refusals(listener)
  const [first, second, third, fourth] = await startAgents(t, 4)
  await first!.connect(address, small)
  await second!.connect(address, small)
  await t.throwsAsync(third!.connect(address, small), {
    code: 'ERR_RINGFENCE_ADDRESS_OCCUPIED',
    message: /the service is full, with 2 at once/,
  })
  await until(() => refused.length === 1, 'the refusal')
  t.is(refused[0]?.code, 'ERR_RINGFENCE_ADDRESS_OCCUPIED')
  t.is(refused[0]?.identity?.pid, third!.pid)
  const patient = fourth!.connect(address, { ...small, wait: true })
  t.true(await isPending(patient))
  await first!.kill()
  await within(patient, 'the seat of the killed one')
  await second!.run((kit) => kit.channel.close())
  await until(() => listener.channels.length === 1, 'the service has noticed')
  await third!.connect(address, small)
  await until(() => listener.channels.length === 2, 'the service counts the third')
})

for (const channels of ['keep', 'close', undefined] as const) {
  test.serial(`close(${channels ?? ''}) frees the address, ends loops, and treats channels as requested`, async (t) => {
    const address = namedAddress(t)
    const listener = await listen(address, small)
    const [taken, unclaimed] = await startAgents(t, 2)
    await taken!.connect(address, small)
    const channel = await nextChannel(listener)
    t.teardown(() => channel.close())
    await unclaimed!.connect(address, small)
    await until(() => listener.channels.length === 2, 'both are connected')
    const closed = once(listener, 'close')
    const waiting = listen(address, { ...small, wait: true })
    await (channels === undefined ? listener.close() : listener.close({ channels }))
    await closed
    // A channel that no loop has taken is closed, and its client is notified.
    t.is(await unclaimed!.run(async (kit) => (await kit.channel.closed).reason), 'closed')
    t.deepEqual(await listener[Symbol.asyncIterator]().next(), { done: true, value: undefined })
    if (channels === 'close') {
      t.is((await channel.closed).reason, 'closed')
      t.is(await taken!.run(async (kit) => (await kit.channel.closed).reason), 'closed')
    } else {
      void echo(channel)
      t.is(await taken!.run(ask, 'still there'), 'still there')
      t.is(listener.channels.length, 1)
      // Channels that were kept can still be closed with the listener.
      await listener.close({ channels: 'close' })
      t.is((await channel.closed).reason, 'closed')
    }
    t.is(listener.channels.length, 0)
    await (await waiting).close()
    t.deepEqual(readdirSync(dirname(address)), [])
  })
}

test.serial('await using closes a listener, and keeps its channels', async (t) => {
  const address = abstractAddress()
  const agent = await Partner.start(t)
  let channel: Channel
  {
    await using listener = await listen(address, small)
    await agent.connect(address, small)
    channel = await nextChannel(listener)
  }
  t.false(isBound(address))
  void echo(channel)
  t.is(await agent.run(ask, 'still there'), 'still there')
  await channel.close()
})

test.serial('leaving a loop keeps the listener open, and several loops share the channels', async (t) => {
  const address = abstractAddress()
  const listener = await listenHere(t, address, small)
  const [first, ...rest] = await startAgents(t, 5)
  await first!.connect(address, small)
  for await (const channel of listener) {
    t.is(channel.peer.pid, first!.pid)
    break
  }
  t.true(isBound(address))
  const met: number[] = []
  const loop = async () => {
    for await (const channel of listener) met.push(channel.peer.pid)
  }
  const loops = [loop(), loop()]
  await Promise.all(rest.map((agent) => agent.connect(address, small)))
  await until(() => met.length === 4, 'all have come')
  t.deepEqual(
    met.sort((a, b) => a - b),
    rest.map((agent) => agent.pid).sort((a, b) => a - b),
  )
  await listener.close()
  await Promise.all(loops)
})

test.serial('an AbortSignal cancels the waits for an address and for a service, and closes a listener', async (t) => {
  const address = abstractAddress()
  const over = new AbortController()
  const { signal } = over
  const first = connect(address, { ...small, signal, wait: true })
  const listener = await listen(abstractAddress(), { ...small, signal })
  const second = listen(listener.address, { ...small, signal, wait: true })
  const loop = serve(listener)
  t.true(await isPending(Promise.race([first, second, loop])))
  const reason = new Error('enough')
  over.abort(reason)
  for (const waiting of [first, second]) {
    const error = await t.throwsAsync<RingfenceError>(waiting, { code: 'ABORT_ERR' })
    t.is(error?.cause, reason)
  }
  await within(loop, 'the loop to end')
  await until(() => !isBound(listener.address), 'the address is free')
  await t.throwsAsync(listen(address, { signal }), { code: 'ABORT_ERR' })
  await t.throwsAsync(connect(address, { signal }), { code: 'ABORT_ERR' })
})

test.serial('connect reports that no service listens, or waits for the service', async (t) => {
  const address = namedAddress(t)
  await t.throwsAsync(connect(address, small), { code: 'ERR_RINGFENCE_PEER_LOST', message: /no process listens at/ })
  await t.throwsAsync(connect(abstractAddress(), small), { code: 'ERR_RINGFENCE_PEER_LOST' })
  await t.throwsAsync(connect(`${dirname(address)}/none/socket`, small), {
    code: 'ERR_RINGFENCE_ADDRESS_INVALID',
    message: /directory does not exist/,
  })
  // These files are no sockets and never will be, so `wait` does not wait for them.
  for (const file of [dirname(address), '/dev/null'])
    for (const call of [connect, subscribe] as ((where: string, options: object) => Promise<unknown>)[])
      await t.throwsAsync(call(file, { wait: true, signal: AbortSignal.timeout(30_000) }), {
        code: 'ERR_RINGFENCE_ADDRESS_INVALID',
        message: /not a socket/,
      })
  const agent = await Partner.start(t)
  const waiting = agent.connect(address, { ...small, wait: true })
  const listener = await listenHere(t, address, small)
  await within(waiting, 'the agent to find it')
  t.is((await nextChannel(listener)).peer.pid, agent.pid)
  t.false(readdirSync(dirname(address)).length === 0)
})

test.serial('an address has one service: ADDRESS_OCCUPIED, and the socket of a killed one is taken over', async (t) => {
  const address = namedAddress(t)
  const first = await Partner.start(t)
  const hold = (kit: Kit, where: string) =>
    kit.ringfence.listen(where).then((listener) => void (kit.keep['l'] = listener))
  await first.run(hold, address)
  await t.throwsAsync(listen(address), { code: 'ERR_RINGFENCE_ADDRESS_OCCUPIED' })
  await first.kill()
  t.true(readdirSync(dirname(address)).includes('meet.sock'))
  const listener = await listenHere(t, address, small)
  const agent = await Partner.start(t)
  await agent.connect(address, small)
  t.is((await nextChannel(listener)).peer.pid, agent.pid)
})

test.serial('a pair and a service cannot meet: PROTOCOL names both', async (t) => {
  const address = abstractAddress()
  const stray = await Partner.start(t)
  const both = (host: string, guest: string, remedy: string) =>
    new RegExp(`holds the address called \`${host}\`,.* connected called \`${guest}\`: .* must call \`${remedy}\``)
  const listener = await listen(address, small)
  const refused = refusal(listener)
  const joined = both('listen', 'join', 'connect')
  await t.throwsAsync(stray.join(address, small), { code: 'ERR_RINGFENCE_PROTOCOL', message: joined })
  t.regex((await refused).message, joined)
  await listener.close()

  const joining = join(address, small)
  await untilBound(address)
  const connected = both('join', 'connect', 'join')
  await t.throwsAsync(stray.connect(address, small), { code: 'ERR_RINGFENCE_PROTOCOL', message: connected })
  await stray.join(address, small)
  await (await joining).close()
})

test.serial('a listener without a loop accepts a limited number, and more as its channels are taken', async (t) => {
  const address = abstractAddress()
  const listener = await listenHere(t, address, small)
  const agent = await Partner.start(t)
  const connected = agent.run(async (kit, where: string) => {
    const all = Array.from({ length: 200 }, () =>
      kit.ringfence.connect(where, { capacity: 4096, handshakeTimeout: 60_000 }),
    )
    kit.keep['channels'] = await Promise.all(all)
  }, address)
  await until(() => listener.channels.length >= 16, 'some are taken in')
  await new Promise((resolve) => setTimeout(resolve, 300))
  t.true(listener.channels.length <= 80, `${listener.channels.length} are held for no loop`)
  let count = 0
  for await (const channel of listener) {
    t.is(channel.peer.pid, agent.pid)
    count += 1
    if (count === 200) break
  }
  await connected
  t.is(listener.channels.length, 200)
})

test.serial('a listener keeps its process alive until unref, and again after ref', async (t) => {
  for (const [steps, exits] of [
    [['unref'], true],
    [['unref', 'ref'], false],
    [[], false],
  ] as const) {
    const process_ = await Partner.start(t)
    const address = abstractAddress()
    await process_.run(
      async (kit, where: string, calls: readonly ('ref' | 'unref')[]) => {
        const listener = await kit.ringfence.listen(where)
        for (const call of calls) if (listener[call]() !== listener) throw new Error('not itself')
      },
      address,
      steps,
    )
    const exit = process_.detach()
    if (exits) {
      t.is((await within(exit, 'its exit')).code, 0)
      continue
    }
    const other = await Partner.start(t)
    await other.connect(address)
    t.true(await isPending(exit))
    await process_.kill()
  }
})

test.serial('a service works without libuv, watched by a thread', async (t) => {
  const address = abstractAddress()
  const service = await Partner.start(t)
  await service.run(async (kit, where: string) => {
    Object.defineProperty(process.versions, 'bun', { value: '1.0.0' })
    const listener = await kit.ringfence.listen(where, { capacity: 4096 })
    kit.keep['over'] = (async () => {
      for await (const channel of listener) {
        void (async () => {
          for await (const message of channel) await channel.send(message)
          await channel.close()
        })()
      }
    })()
    kit.keep['close'] = () => listener.close()
  }, address)
  const agents = await startAgents(t, 3)
  await Promise.all(agents.map((agent) => agent.connect(address, small)))
  for (const agent of agents) t.is(await agent.run(ask, 'hello'), 'hello')
  for (const agent of agents) await agent.run((kit) => kit.channel.end())
  for (const agent of agents) t.is(await agent.run(async (kit) => (await kit.channel.closed).reason), 'closed')
  await service.run(async (kit) => {
    await (kit.keep['close'] as () => Promise<void>)()
    await kit.keep['over']
  })
})

test.serial('a service in a worker may be terminated at any moment, 30 times', async (t) => {
  const stage = await Partner.start(t, { node: ['--expose-gc'] })
  const agent = await Partner.start(t)
  const address = abstractAddress()
  // Clients that keep connecting, with a few messages each.
  await agent.run((kit, where: string) => {
    const talk = async () => {
      for (;;) {
        try {
          const channel = await kit.ringfence.connect(where, { capacity: 16_384, wait: true })
          for (let round = 0; round < 20; round += 1) {
            void channel.send('x'.repeat(round * 100)).catch(() => {})
            if ((await channel.receive()) === undefined) break
          }
          await channel.close()
          kit.keep['talks'] = ((kit.keep['talks'] as number) ?? 0) + 1
        } catch (error) {
          // The service was terminated during a handshake.
          if ((error as RingfenceErrorLike).code !== 'ERR_RINGFENCE_PEER_LOST') kit.keep['error'] = String(error)
        }
      }
    }
    interface RingfenceErrorLike {
      code: string
    }
    for (let number = 0; number < 5; number += 1) void talk()
  }, address)
  const before = await terminateWorkers(stage, address, 'serving', 0, 10)
  const after = await terminateWorkers(stage, address, 'serving', 10, 20)
  t.true(after <= before, `${before} descriptors before, ${after} after`)
  await until(() => !isBound(address), 'the address is free')
  const listener = await listenHere(t, address, { capacity: 16_384 })
  void serve(listener)
  await until(async () => ((await agent.run((kit) => kit.keep['talks'] as number)) ?? 0) > 20, 'agents talk')
  t.is(await agent.run((kit) => kit.keep['error']), undefined)
})

test.serial('a thousand concurrent clients: all get replies, and nothing is leaked', async (t) => {
  const address = abstractAddress()
  const service = await Partner.start(t, { node: ['--expose-gc'] })
  await service.run(async (kit, where: string) => {
    const listener = await kit.ringfence.listen(where, { capacity: 4096, handshakeTimeout: 60_000 })
    kit.keep['listener'] = listener
    kit.keep['refused'] = []
    listener.on('refused', (error) => (kit.keep['refused'] as string[]).push(error.message))
    kit.keep['over'] = (async () => {
      for await (const channel of listener) {
        void (async () => {
          for await (const message of channel) await channel.send(message)
          await channel.close()
        })().catch(() => {})
      }
    })()
  }, address)
  const descriptors = () =>
    service.run((kit) => {
      const { readdirSync: list } = kit.require('node:fs') as typeof import('node:fs')
      return list('/proc/self/fd').length
    })
  const [warmUp] = await startAgents(t, 1)
  await warmUp!.connect(address, small)
  await warmUp!.run((kit) => kit.channel.close())
  await until(
    () => service.run((kit) => (kit.keep['listener'] as Listener).channels.length === 0),
    'the first has left',
  )
  const before = await descriptors()
  // Four processes with 245 channels each, and 20 with one.
  const many = await startAgents(t, 4)
  const single = await startAgents(t, 20)
  const counts = [...many.map(() => 245), ...single.map(() => 1)]
  const agents = [...many, ...single]
  const connected = agents.map((agent, index) =>
    agent.run(
      async (kit, where: string, count: number) => {
        const options = { capacity: 4096, handshakeTimeout: 60_000 }
        const all = Array.from({ length: count }, () => kit.ringfence.connect(where, options))
        kit.keep['channels'] = await Promise.all(all)
      },
      address,
      counts[index]!,
    ),
  )
  await Promise.all(connected)
  // A client may notice before the event loop of the service does.
  await until(
    async () => (await service.run((kit) => (kit.keep['listener'] as Listener).channels.length)) === 1000,
    'the service has heard of all',
  )
  const talks = agents.map((agent) =>
    agent.run(async (kit) => {
      const channels = kit.keep['channels'] as Channel[]
      const talk = async (channel: Channel, number: number) => {
        for (let round = 0; round < 20; round += 1) {
          void channel.send(`${number} ${round}`)
          if (String(await channel.receive()) !== `${number} ${round}`) return false
        }
        return true
      }
      return (await Promise.all(channels.map(talk))).filter(Boolean).length
    }),
  )
  t.deepEqual(await Promise.all(talks), counts)
  // Half of the processes disconnect properly, and the others are killed.
  const leaving = agents.map((agent, index) =>
    index % 2 === 0
      ? agent.kill()
      : agent.run((kit) => Promise.all((kit.keep['channels'] as Channel[]).map((one) => one.close()))),
  )
  await Promise.all(leaving)
  await until(async () => (await descriptors()) <= before, 'the service holds no more than before')
  await until(
    async () => (await service.run((kit) => (kit.keep['listener'] as Listener).channels.length)) === 0,
    'all have left',
  )
  t.deepEqual(await service.run((kit) => kit.keep['refused']), [])
})

test.serial('wrong addresses, options and listeners are INVALID_ARGUMENT', async (t) => {
  const invalid = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_INVALID_ARGUMENT' }
  for (const call of [listen, connect]) {
    await t.throwsAsync(call(1 as unknown as string), invalid)
    await t.throwsAsync(call(abstractAddress(), { maxPeers: 0 }), invalid)
    await t.throwsAsync(call(abstractAddress(), { maxPeers: 1.5 }), invalid)
    await t.throwsAsync(call(abstractAddress(), { maxpeers: 1 } as Options), invalid)
    await t.throwsAsync(call(''), { code: 'ERR_RINGFENCE_ADDRESS_INVALID' })
  }
  await t.throwsAsync(listen('/nowhere/at/all'), { code: 'ERR_RINGFENCE_ADDRESS_INVALID' })
  t.throws(() => new (Listener as unknown as new () => Listener)(), invalid)
  const listener = await listenHere(t, namedAddress(t))
  await t.throwsAsync(listener.close({ channels: 'some' as 'keep' }), invalid)
  await t.throwsAsync(listener.close(null as unknown as object), invalid)
  t.true(isBound(listener.address))
  // A socket that disconnects at once is refused, and nothing else happens.
  const socket = connectSocket(listener.address)
  socket.on('error', () => {})
  t.regex((await refusal(listener)).code, /PEER_LOST|OCCUPIED/)
})

test.serial('a listener that was closed ends without a reason', async (t) => {
  const listener = await listen(abstractAddress())
  const event = once(listener, 'close')
  await listener.close()
  t.deepEqual(await listener.closed, { reason: 'closed' })
  t.deepEqual(await event, [{ reason: 'closed' }])
})

test.serial('a listener that fails says why in closed, in the event and to its loops', async (t) => {
  const address = namedAddress(t)
  const service = await Partner.start(t)
  await service.run(async (kit, where) => {
    const listener = await kit.ringfence.listen(where)
    kit.keep['closed'] = listener.closed
    kit.keep['event'] = new Promise((resolve) => listener.once('close', resolve))
    kit.keep['loop'] = (async () => {
      for await (const _ of listener);
    })().catch((error: unknown) => error)
  }, address)
  const refused = service.run(async (kit) => {
    const all = [kit.keep['closed'], kit.keep['event'], kit.keep['loop']] as [
      Promise<Closed>,
      Promise<Closed>,
      Promise<RingfenceError>,
    ]
    const [closed, event, loop] = await Promise.all(all)
    return [closed.reason, closed.error?.code, event.error?.code, loop.code]
  })
  // poll(2) refuses to watch more descriptors than the process may have.
  execFileSync('prlimit', [`--pid=${service.pid}`, '--nofile=1:'])
  const socket = connectSocket(address)
  socket.on('error', () => {})
  t.teardown(() => socket.destroy())
  t.deepEqual(await within(refused, 'the end'), ['failed', ...Array<string>(3).fill('ERR_RINGFENCE_NO_SPACE')])
  await until(() => !isBound(address), 'the address is free')
})
