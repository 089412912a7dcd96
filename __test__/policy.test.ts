import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { copyFileSync, chmodSync, readFileSync, realpathSync, renameSync } from 'node:fs'

import test, { type ExecutionContext } from 'ava'
import { join, publish, RingfenceError, type Evidence, type Options, type Policy } from 'ringfence'

import { abstractAddress, addressOf, kinds, namedAddress, temporaryDirectory, untilBound } from './support/address.js'
import { joinHere, Partner, PartnerError } from './support/partner.js'
import { RustPartner, rustPartner } from './support/rust.js'
import { isPending, within, until } from './support/until.js'

const node = realpathSync(process.execPath)
const me = { uid: process.getuid!(), gid: process.getgid!() }
const isRoot = me.uid === 0
/** Uids that no user has. */
const STRANGER = 54321
const withOthers = isRoot ? test.serial : test.serial.skip

function as(uid: number): string[] {
  return ['setpriv', `--reuid=${uid}`, `--regid=${uid}`, '--clear-groups', '--']
}

/** Meets with policies of both sides. This side is the host. */
async function meet(
  t: ExecutionContext,
  here: Policy | undefined,
  there: Policy | undefined,
  settings: { address?: string; through?: string[]; options?: Options } = {},
) {
  const { address = abstractAddress(), through, options } = settings
  const partner = await Partner.start(t, { through })
  const hosting = joinHere(t, address, { ...options, policy: here })
  await untilBound(address, options?.mode)
  const guesting = partner.join(address, { policy: there })
  return { partner, hosting, guesting, address }
}

/** The partner gets this refusal, and the host keeps waiting. */
async function isRefused(
  t: ExecutionContext,
  { hosting, guesting }: Awaited<ReturnType<typeof meet>>,
  check: string,
  found: RegExp,
  told = /./,
) {
  const error = await t.throwsAsync<PartnerError>(guesting, {
    instanceOf: PartnerError,
    code: 'ERR_RINGFENCE_PEER_REFUSED',
  })
  t.is(error?.thrown.check, check)
  t.regex(error?.thrown.wanted ?? '', told)
  t.regex(error?.thrown.found ?? '', found)
  t.true(error?.thrown.isRingfenceError)
  t.true(await isPending(hosting), 'a refused guest does not end the host’s waiting')
}

const content = createHash('sha256').update(readFileSync(node)).digest('hex')
const otherContent = '0'.repeat(64)

const passes: [string, Policy][] = [
  ['nothing in particular: the defaults', {}],
  ['any user', { uid: 'any' }],
  ['any executable', { executable: 'any' }],
  ['any namespace', { namespace: 'any' }],
  ['the same uid and the same executable', { uid: 'same', executable: 'same' }],
  ['this uid', { uid: me.uid }],
  ['one of several uids', { uid: [STRANGER, me.uid] }],
  ['this gid', { gid: me.gid }],
  ['one of several gids', { gid: [STRANGER, me.gid] }],
  ['this executable', { executable: node }],
  ['one of several executables', { executable: ['/bin/sh', node, '/nowhere/at/all'] }],
  ['this executable among others', { executable: ['/bin/sh', 'same'] }],
  ['this content', { executable: { sha256: content.toUpperCase() } }],
  [
    'this executable with this content',
    {
      executable: [
        { path: node, sha256: otherContent },
        { path: node, sha256: content },
      ],
    },
  ],
  ['its own executable with this content', { executable: { path: 'same', sha256: content } }],
  ['whatever authorize says', { authorize: () => true }],
  ['whatever authorize says later', { authorize: () => new Promise((resolve) => setTimeout(resolve, 10, true)) }],
]

for (const [title, policy] of passes) {
  test.serial(`a policy of ${title} accepts a process like this one`, async (t) => {
    const { authorize, ...carried } = policy
    const { hosting, guesting, partner } = await meet(t, policy, carried)
    await guesting
    const channel = await hosting
    t.is(channel.peer.pid, partner.pid)
    t.is(
      channel.evidence.find((one) => one.check === 'authorize')?.found,
      authorize === undefined ? 'no callback' : 'true',
    )
    const looked = (check: string) => channel.evidence.find((one) => one.step === 'executable' && one.check === check)
    t.is(looked('executable')?.outcome, policy.executable === 'any' ? 'not-asked' : 'passed')
    t.is(looked('gid')?.outcome === 'not-asked', policy.gid === undefined)
    t.is(looked('uid')?.outcome, policy.uid === 'any' ? 'not-asked' : 'passed')
    t.is(looked('namespace')?.outcome, policy.namespace === 'any' ? 'not-asked' : 'passed')
  })
}

const refusals: [string, Policy, string, RegExp][] = [
  ['another uid', { uid: STRANGER }, 'uid', new RegExp(`\\b${me.uid}\\b`)],
  ['several other uids', { uid: [STRANGER, STRANGER + 1] }, 'uid', new RegExp(`\\b${me.uid}\\b`)],
  ['another gid', { gid: STRANGER }, 'gid', new RegExp(`\\b${me.gid}\\b`)],
  ['another executable', { executable: '/bin/sh' }, 'executable', /node/],
  ['an executable that does not exist', { executable: '/nowhere/at/all' }, 'executable', /node/],
  ['another content', { executable: { sha256: otherContent } }, 'executable', new RegExp(content)],
  ['another file with this content', { executable: { path: '/bin/sh', sha256: content } }, 'executable', /node/],
  ['another cgroup', { cgroup: '/no/such/cgroup' }, 'cgroup', /./],
  ['a label', { label: 'no-such-label' }, 'label', /./],
]

for (const [title, policy, check, found] of refusals) {
  test.serial(
    `a host whose policy wants ${title} refuses: PEER_REFUSED tells the guest which check failed`,
    async (t) => {
      await isRefused(t, await meet(t, policy, {}), check, found)
    },
  )

  test.serial(`a guest whose policy requires ${title} refuses: PEER_REFUSED with the host’s identity`, async (t) => {
    const address = abstractAddress()
    const partner = await Partner.start(t)
    void partner.join(address)
    await untilBound(address)
    const error = await t.throwsAsync<RingfenceError>(join(address, { policy }), {
      instanceOf: RingfenceError,
      code: 'ERR_RINGFENCE_PEER_REFUSED',
    })
    t.is(error?.check, check)
    t.truthy(error?.wanted)
    t.regex(error?.found ?? '', found)
    t.is(error?.identity?.pid, partner.pid)
    t.is(error?.identity?.uid, me.uid)
  })
}

test.serial('a copy of a file is another executable, even if every byte is the same', async (t) => {
  const copy = `${temporaryDirectory(t)}/node`
  copyFileSync(node, copy)
  chmodSync(copy, 0o755)
  // The kernel itself runs the copy, with node's arguments.
  const through = ['sh', '-c', `shift; exec "${copy}" "$@"`, 'sh']
  await isRefused(t, await meet(t, undefined, { executable: 'any' }, { through }), 'executable', /ringfence-test/)
  const { guesting, hosting } = await meet(t, { executable: copy }, { executable: 'any' }, { through })
  await guesting
  t.is((await hosting).peer.executable?.path, realpathSync(copy))
})

test.serial('a refused process does not block the place for the next one', async (t) => {
  const { guesting, hosting, address } = await meet(t, undefined, { uid: STRANGER })
  await t.throwsAsync(guesting, { code: 'ERR_RINGFENCE_PEER_REFUSED' })
  const next = await Partner.start(t)
  await next.join(address)
  t.is((await hosting).peer.pid, next.pid)
})

for (const kind of kinds) {
  withOthers(`without a policy another user is refused on both sides, at ${kind} addresses`, async (t) => {
    const settings = () => {
      const address = addressOf(kind, t)
      if (kind === 'named') chmodSync(address.replace(/\/[^/]*$/, ''), 0o755)
      return { address, through: as(STRANGER), options: { mode: 0o666 } }
    }
    await isRefused(t, await meet(t, undefined, undefined, settings()), 'uid', /^0$/)
    // A process of another user learns which check failed, and neither the accepted nor the found value.
    const byHost = await meet(t, undefined, { uid: 0, executable: 'any' }, settings())
    await isRefused(t, byHost, 'uid', /hidden from other users/, /hidden from other users/)
  })

  withOthers(`users that name each other’s uid meet at ${kind} addresses, and know each other`, async (t) => {
    const address = addressOf(kind, t)
    if (kind === 'named') chmodSync(address.replace(/\/[^/]*$/, ''), 0o755)
    const settings = { address, through: as(STRANGER), options: { mode: 0o666 } }
    const { partner, hosting, guesting } = await meet(
      t,
      { uid: [1, STRANGER] },
      { uid: 0, executable: 'any' },
      settings,
    )
    await guesting
    const channel = await hosting
    t.is(channel.peer.uid, STRANGER)
    t.is(channel.peer.gid, STRANGER)
    t.is(await partner.run((kit) => kit.channel.peer.uid), 0)
    await channel.send('over the border')
    t.is(await partner.run(async (kit) => String(await kit.channel.receive())), 'over the border')
    if (kind === 'abstract') return
    // The stranger may not remove the files, which belong to the host.
    await channel.close()
    await t.throwsAsync(partner.join(address, { policy: { uid: 0, executable: 'any' } }), {
      code: 'ERR_RINGFENCE_ADDRESS_INVALID',
    })
  })
}

withOthers('a socket that another user may not connect to is ADDRESS_INVALID to that user', async (t) => {
  const address = namedAddress(t)
  chmodSync(address.replace(/\/[^/]*$/, ''), 0o755)
  const { guesting, hosting } = await meet(
    t,
    { uid: STRANGER },
    { uid: 0, executable: 'any' },
    { address, through: as(STRANGER) },
  )
  await t.throwsAsync(guesting, { code: 'ERR_RINGFENCE_ADDRESS_INVALID' })
  t.true(await isPending(hosting))
})

withOthers('the overflow uid is refused even where it is named', async (t) => {
  const overflow = 65534
  await isRefused(
    t,
    await meet(t, { uid: overflow }, { uid: 0, executable: 'any' }, { through: as(overflow) }),
    'uid',
    /hidden from other users/,
  )
  const address = abstractAddress()
  const host = await Partner.start(t, { through: as(overflow) })
  host.join(address, { policy: { uid: 0, executable: 'any' } }).catch(() => {})
  await untilBound(address)
  const error = await t.throwsAsync<RingfenceError>(join(address, { policy: { uid: overflow } }), {
    code: 'ERR_RINGFENCE_PEER_REFUSED',
  })
  t.regex(error?.found ?? '', /overflow uid/)
})

/** In a new user namespace and pid namespace, which any user may create if the system allows it. */
const apart = ['unshare', '-Urpf', '--kill-child', '--']
const withNamespaces = spawnSync('unshare', ['-Urpf', 'true']).status === 0 ? test.serial : test.serial.skip

withNamespaces('a peer of another pid namespace is refused unless both policies let it in', async (t) => {
  const of = ({ evidence }: { readonly evidence: readonly Evidence[] }) =>
    evidence.filter(({ check }) => check === 'namespace').map(({ wanted, found }) => `${wanted}: ${found}`)
  // A policy that does not name it requires it, too. The guest accepts its host, and so gets the refusal.
  for (const here of [undefined, {}, { namespace: 'same' }] satisfies (Policy | undefined)[]) {
    await isRefused(
      t,
      await meet(t, here, { namespace: 'any', executable: 'any' }, { through: apart }),
      'namespace',
      /below/,
    )
  }
  // The reverse: the host has no pid in the namespace of the guest.
  const any: Policy = { namespace: 'any', executable: 'any' }
  await isRefused(t, await meet(t, any, {}, { through: apart }), 'namespace', /pid 0/)
  const { hosting, guesting, partner } = await meet(t, any, any, { through: apart })
  await guesting
  const channel = await hosting
  await channel.verify()
  for (const line of of(channel)) t.regex(line, /^not asked for: .*below/)
  t.true(of(channel).length >= 3)
  t.is(await partner.run((kit) => kit.channel.peer.pid), 0)
  await channel.send('across')
  t.is(await partner.run(async (kit) => String(await kit.channel.receive())), 'across')
})

test.serial('the evidence of both sides has the namespace', async (t) => {
  const { hosting, guesting, partner } = await meet(t, undefined, {})
  await guesting
  const shown = (await hosting).evidence.filter(({ check }) => check === 'namespace')
  t.true(shown.length >= 2)
  for (const { wanted, found, outcome } of shown) {
    t.regex(wanted ?? '', /own pid and user namespace/)
    t.regex(found ?? '', /the same pid namespace/)
    t.is(outcome, 'passed')
  }
  t.true(await partner.run((kit) => kit.channel.evidence.filter(({ check }) => check === 'namespace').length >= 2))
})

/** This side is the guest, and `authorize` gets its host. */
async function asked(t: ExecutionContext, authorize: Policy['authorize'], options: Options = {}) {
  const address = abstractAddress()
  const partner = await Partner.start(t)
  partner.join(address).catch(() => {})
  await untilBound(address)
  return { partner, address, joining: joinHere(t, address, { ...options, policy: { authorize } }) }
}

test.serial('authorize is called once, with the identity, and as a method of its policy', async (t) => {
  const calls: unknown[] = []
  const policy: Policy = {
    authorize(identity) {
      calls.push(this === policy, identity.pid, identity.uid, identity.executable?.path)
      return true
    },
  }
  const { hosting, guesting, partner } = await meet(t, policy, {})
  await guesting
  const channel = await hosting
  await channel.verify()
  t.deepEqual(calls, [true, partner.pid, me.uid, node])
})

const thrown = new Error('the directory is down')
const noes: [string, Policy['authorize'], RegExp, (cause: unknown) => boolean][] = [
  ['false', () => false, /^false$/, (cause) => cause === undefined],
  ['false later', async () => false, /^false$/, (cause) => cause === undefined],
  [
    'an exception',
    () => {
      throw thrown
    },
    /an exception: the directory is down/,
    (cause) => cause === thrown,
  ],
  ['a rejection', () => Promise.reject(thrown), /an exception: the directory is down/, (cause) => cause === thrown],
  [
    'a rejection that is no error',
    () => Promise.reject('no' as never),
    /an exception: "no"/,
    (cause) => cause === 'no',
  ],
  ['nothing', (() => undefined) as never, /^undefined$/, (cause) => cause instanceof TypeError],
  ['a string', (() => 'yes') as never, /^"yes"$/, (cause) => cause instanceof TypeError],
  ['1', (async () => 1) as never, /^1$/, (cause) => cause instanceof TypeError],
]

for (const [title, authorize, found, isCause] of noes) {
  test.serial(`authorize that answers with ${title} refuses, and its cause is in the error`, async (t) => {
    const { joining, partner } = await asked(t, authorize)
    const error = await t.throwsAsync<RingfenceError>(joining, { code: 'ERR_RINGFENCE_PEER_REFUSED' })
    t.is(error?.check, 'authorize')
    t.is(error?.wanted, 'true')
    t.regex(error?.found ?? '', found)
    t.is(error?.identity?.pid, partner.pid)
    t.true(isCause(error?.cause), String(error?.cause))
  })
}

test.serial('a host whose authorize refuses waits for the next guest, and the guest is notified', async (t) => {
  const asking: number[] = []
  const policy: Policy = { authorize: ({ pid }) => asking.push(pid) > 1 }
  const first = await meet(t, policy, {})
  await isRefused(t, first, 'authorize', /^false$/)
  const next = await Partner.start(t)
  await next.join(first.address)
  t.is((await first.hosting).peer.pid, next.pid)
  t.deepEqual(asking, [first.partner.pid, next.pid])
})

test.serial('authorize is not called for a process that has failed an earlier check', async (t) => {
  const policy: Policy = { executable: '/bin/sh', authorize: () => t.fail() as never }
  await isRefused(t, await meet(t, policy, {}), 'executable', /node/)
})

test.serial('authorize that never answers is HANDSHAKE_TIMEOUT for its peer, and other peers are served', async (t) => {
  const { joining } = await asked(t, () => new Promise(() => {}), { handshakeTimeout: 1000 })
  const error = await t.throwsAsync(joining, { code: 'ERR_RINGFENCE_HANDSHAKE_TIMEOUT' })
  t.regex(error?.message ?? '', /authorize/)

  let first: number | undefined
  const policy: Policy = {
    authorize: ({ pid }) => {
      first ??= pid
      return pid === first ? new Promise(() => {}) : true
    },
  }
  const { hosting, guesting, address } = await meet(t, policy, {}, { options: { handshakeTimeout: 60_000 } })
  await until(() => first !== undefined, 'the first is asked about')
  const next = await Partner.start(t)
  await next.join(address)
  t.is((await hosting).peer.pid, next.pid)
  await t.throwsAsync(guesting, { code: 'ERR_RINGFENCE_ADDRESS_OCCUPIED' })
})

test.serial('a signal cancels the wait for authorize, and a late answer changes nothing', async (t) => {
  const over = new AbortController()
  let answer: (verdict: boolean) => void = () => {}
  const called = new Promise<void>((begun) => {
    void asked(
      t,
      () => {
        begun()
        return new Promise((resolve) => {
          answer = resolve
        })
      },
      { signal: over.signal, handshakeTimeout: 60_000 },
    ).then(({ joining }) => joining.catch((error) => (t.context = error)))
  })
  await called
  over.abort(new Error('enough'))
  await until(() => t.context instanceof RingfenceError, 'the wait is over')
  t.is((t.context as RingfenceError).code, 'ABORT_ERR')
  answer(true)
})

test.serial('a process may exit, and a worker be terminated, during authorize', async (t) => {
  const address = abstractAddress()
  const host = await Partner.start(t)
  host.join(address).catch(() => {})
  await untilBound(address)
  const guest = await Partner.start(t)
  guest.mayFail()
  const left = guest.run((kit, where: string) => {
    void kit.join(where, { handshakeTimeout: 60_000, policy: { authorize: () => process.exit(7) } })
  }, address)
  await left
  t.deepEqual(await within(guest.exited, 'its exit'), { code: 7, signal: null })

  const stage = await Partner.start(t)
  const places = Array.from({ length: 20 }, () => abstractAddress())
  const there = host.run((kit, all: string[]) => {
    kit.keep['joins'] = Promise.allSettled(all.map((one) => kit.join(one)))
  }, places)
  await there
  for (const place of places) await untilBound(place)
  const ends = await stage.run(async (kit, all: string[]) => {
    const { Worker } = kit.require('node:worker_threads') as typeof import('node:worker_threads')
    const program = `
      const { parentPort, workerData } = require('node:worker_threads')
      const { join } = require(workerData.package)
      join(workerData.place, { handshakeTimeout: 60000, policy: { authorize: () => {
        parentPort.postMessage('asked')
        if (workerData.late) return new Promise((resolve) => setImmediate(resolve, true))
        return new Promise(() => {})
      } } }).catch(() => {})`
    const path = kit.require.resolve('ringfence')
    let number = 0
    for (const place of all) {
      number += 1
      const worker = new Worker(program, { eval: true, workerData: { place, package: path, late: number % 2 === 0 } })
      await new Promise((resolve) => worker.once('message', resolve))
      await worker.terminate()
    }
    return number
  }, places)
  t.is(ends, places.length)
})

test.serial('verify returns the current identity of the peer, and adds to the evidence', async (t) => {
  const { hosting, guesting, partner } = await meet(t, { executable: { sha256: content } }, {})
  await guesting
  const channel = await hosting
  const before = channel.evidence
  const identities = await Promise.all([channel.verify(), channel.verify()])
  for (const identity of identities) {
    t.is(identity.pid, partner.pid)
    t.is(identity.executable?.sha256, content)
  }
  t.is(channel.peer.pid, partner.pid)
  t.deepEqual(channel.evidence.slice(0, before.length), before)
  const added = channel.evidence.slice(before.length)
  t.deepEqual(
    added.map((one) => one.check),
    ['uid', 'namespace', 'gid', 'cgroup', 'label', 'executable'],
  )
  t.true(added.every((one) => one.step === 'verify'))
  t.true(Object.isFrozen(channel.evidence))
  await channel.send('still here')
  t.is(await partner.run(async (kit) => String(await kit.channel.receive())), 'still here')
})

test.serial('verify of a peer that is gone is PEER_LOST, and of a closed channel CLOSED', async (t) => {
  const { hosting, guesting, partner } = await meet(t, {}, {})
  await guesting
  const channel = await hosting
  await partner.kill()
  await t.throwsAsync(channel.verify(), { code: 'ERR_RINGFENCE_PEER_LOST' })
  t.is((await channel.closed).reason, 'lost')
  await t.throwsAsync(channel.verify(), { code: 'ERR_RINGFENCE_PEER_LOST' })

  const other = await meet(t, {}, {})
  await other.guesting
  const second = await other.hosting
  const late = second.verify()
  await second.close()
  await t.throwsAsync(late, { code: 'ERR_RINGFENCE_CLOSED' })
  await t.throwsAsync(second.verify(), { code: 'ERR_RINGFENCE_CLOSED' })
})

test.serial('verify cuts off a peer that no longer satisfies the policy', async (t) => {
  const directory = temporaryDirectory(t)
  const copy = `${directory}/node`
  copyFileSync(node, copy)
  chmodSync(copy, 0o755)
  const through = ['sh', '-c', `shift; exec "${copy}" "$@"`, 'sh']
  const { hosting, guesting, partner } = await meet(t, { executable: copy }, { executable: 'any' }, { through })
  await guesting
  const channel = await hosting
  await channel.verify()
  await partner.run((kit) => kit.channel.send('read before'))
  t.is(String(await channel.receive()), 'read before')
  const reading = channel.receive()
  reading.catch(() => {})
  // An upgrade: the path now names another file.
  copyFileSync(copy, `${directory}/new`)
  renameSync(`${directory}/new`, copy)
  const error = await t.throwsAsync<RingfenceError>(channel.verify(), { code: 'ERR_RINGFENCE_PEER_REFUSED' })
  t.is(error?.check, 'executable')
  t.regex(error?.wanted ?? '', /node/)
  t.regex(error?.found ?? '', /deleted/)
  t.is(error?.identity?.pid, partner.pid)
  t.like(await channel.closed, { reason: 'refused', error: { code: 'ERR_RINGFENCE_PEER_REFUSED' } })
  await t.throwsAsync(reading, { code: 'ERR_RINGFENCE_CLOSED' })
  for (const call of [() => channel.send('no'), () => channel.receive(), () => channel.verify()]) {
    await t.throwsAsync(call(), { code: 'ERR_RINGFENCE_CLOSED', message: /no longer satisfies the policy/ })
  }
  t.is(await partner.run(async (kit) => (await kit.channel.closed).reason), 'lost')
})

withOthers('a peer that has become another user is refused by verify', async (t) => {
  const { hosting, guesting, partner } = await meet(t, { uid: [0, STRANGER], executable: 'any' }, {})
  await guesting
  const channel = await hosting
  await partner.run((_, uid) => process.setuid!(uid), STRANGER)
  const error = await t.throwsAsync<RingfenceError>(channel.verify(), { code: 'ERR_RINGFENCE_PEER_REFUSED' })
  t.is(error?.check, 'uid')
  t.regex(error?.found ?? '', new RegExp(`${STRANGER} now`))
})

withOthers('an executable that cannot be seen across users is a refusal that says what to ask for', async (t) => {
  const address = abstractAddress()
  const host = await Partner.start(t, { through: as(STRANGER) })
  host.join(address, { policy: { uid: STRANGER + 1, executable: 'any' } }).catch(() => {})
  await untilBound(address)
  const guest = await Partner.start(t, { through: as(STRANGER + 1) })
  const error = await t.throwsAsync<PartnerError>(guest.join(address, { policy: { uid: STRANGER } }), {
    code: 'ERR_RINGFENCE_PEER_REFUSED',
  })
  t.is(error?.thrown.check, 'executable')
  t.regex(error?.thrown.found ?? '', /another user's .*CAP_SYS_PTRACE.*ask for uid, gid, cgroup or label/)
  t.regex(error!.message, /executable: 'any', which a peer of another user/)
})

test.serial('a peer that executes another program is cut off', async (t) => {
  const address = abstractAddress()
  const hosting = joinHere(t, address, { policy: { executable: rustPartner } })
  await untilBound(address)
  const partner = new RustPartner(t, { deed: 'execute', address, capacity: 4096, longest: 4096 })
  const channel = await hosting
  t.is(await partner.readLine(), `guest ${process.pid}`)
  t.is(realpathSync(`/proc/${partner.pid}/exe`), rustPartner)
  await channel.send('now')
  t.is((await within(channel.closed, 'the end')).reason, 'lost')
  await t.throwsAsync(channel.receive(), { code: 'ERR_RINGFENCE_PEER_LOST' })
  await t.throwsAsync(channel.verify(), { code: 'ERR_RINGFENCE_PEER_LOST', message: /another program/ })
  // The process lives, but is no longer a peer.
  t.not(realpathSync(`/proc/${partner.pid}/exe`), rustPartner)
})

test('a publisher refuses a subscriber that it has evicted, and accepts others', async (t) => {
  const address = abstractAddress()
  const evicted = new Set<number>()
  const authorize: Policy['authorize'] = ({ pid }) => !evicted.has(pid)
  const policy: Policy = { authorize }
  const publisher = await publish(address, { capacity: 65_536, stall: 100, policy })
  t.teardown(() => publisher.close())
  publisher.on('disconnect', ({ peer }, { reason }) => reason === 'evicted' && evicted.add(peer.pid))
  const subscribe = (partner: Partner) =>
    partner.run(async (kit, where) => void (kit.keep['subscription'] = await kit.ringfence.subscribe(where)), address)
  const [slow, other] = await Promise.all([Partner.start(t), Partner.start(t)])
  const came = once(publisher, 'connection')
  await subscribe(slow)
  await within(came, 'the event')
  const gone = once(publisher, 'disconnect')
  for (let sent = 0; sent < 20; sent += 1) await within(publisher.send('x'.repeat(8000)), 'room')
  await within(gone, 'its end')
  const error = await t.throwsAsync(subscribe(slow), { instanceOf: PartnerError })
  t.regex(error!.message, /authorize/)
  await subscribe(other)
  await until(() => publisher.subscribers.some(({ peer }) => peer.pid === other.pid), 'the other one is in')
})
