import { chmodSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'

import test from 'ava'
import {
  Channel,
  connect,
  fromParent,
  join,
  Listener,
  member,
  Membership,
  RingfenceError,
  spawn,
  type ListenOptions,
  type Options,
} from 'ringfence'

import { abstractAddress, namedAddress, temporaryDirectory } from './support/address.js'
import { listenHere, pair, Partner } from './support/partner.js'

const invalid = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_INVALID_ARGUMENT' } as const
const addressInvalid = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_ADDRESS_INVALID' } as const
const noSpace = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_NO_SPACE' } as const

/** A uid that no user has. */
const STRANGER = 54321

const wrong: Record<string, unknown[]> = {
  backing: ['disk', '', 5, null, true],
  capacity: [0, -1, 1.5, NaN, Infinity, 2 ** 53, '4096', 4096n, null, {}],
  maxMessageSize: [0, -1, 1.5, NaN, Infinity, 2 ** 31 + 1, '1', null],
  mode: [-1, 0o1000, 1.5, '600', null, NaN],
  group: [-1, 1.5, 2 ** 32 - 1, '', 'a\0b', 'no-such-group-anywhere', null, {}, true],
  timeout: [0, -1, NaN, Infinity, '5', null, 5n],
  handshakeTimeout: [0, -1, NaN, Infinity, '5', null, 5n],
  signal: [5, 'signal', {}, null, new EventTarget()],
  wait: [1, 'yes', null, {}],
  busyPollMicros: [-1, 1.5, NaN, Infinity, '5', null],
  policy: [
    5,
    'same',
    null,
    true,
    { uid: -1 },
    { uid: 1.5 },
    { uid: 2 ** 32 - 1 },
    { uid: 'other' },
    { uid: [] },
    { uid: ['same'] },
    { uid: null },
    { gid: -1 },
    { gid: 'same' },
    { gid: [] },
    { executable: '' },
    { executable: 5 },
    { executable: [] },
    { executable: [5] },
    { executable: 'a\0b' },
    { executable: 'node' },
    { executable: './node' },
    { executable: ['same', '../bin/node'] },
    { executable: {} },
    { executable: null },
    { executable: { path: '/bin/sh' } },
    { executable: { sha256: 'abc' } },
    { executable: { sha256: 'g'.repeat(64) } },
    { executable: { sha256: 5 } },
    { executable: { sha256: '0'.repeat(64), path: '' } },
    { executable: { sha256: '0'.repeat(64), path: 'node' } },
    { executable: { sha256: '0'.repeat(64), paths: '/bin/sh' } },
    { executable: [['/bin/sh']] },
    { authorize: true },
    { authorize: null },
    { cgroup: '' },
    { cgroup: 5 },
    { label: '' },
    { label: {} },
    { namespace: 'other' },
    { namespace: null },
    { uid: ['any'] },
    { executable: ['any'] },
    { uids: 0 },
    { user: 'same' },
  ],
  retries: [3],
}

for (const [name, values] of Object.entries(wrong)) {
  test.serial(`a wrong value of the option ${name} is INVALID_ARGUMENT, and the error names it`, async (t) => {
    // A value that is not refused must not wait for a peer.
    const ends = name === 'handshakeTimeout' ? { signal: AbortSignal.abort() } : { handshakeTimeout: 1000 }
    for (const value of values) {
      const options = { ...ends, [name]: value } as Options
      const error = await t.throwsAsync(join(namedAddress(t), options), invalid, describe(value))
      const said = name === 'policy' ? /policy|uid|gid|executable|cgroup|label|namespace|authorize/ : new RegExp(name)
      t.regex(error!.message, said, describe(value))
    }
  })
}

test.serial('an option of another call is INVALID_ARGUMENT, and the error names that call', async (t) => {
  const address = abstractAddress()
  const foreign: Record<string, [call: (options: Options) => unknown, names: (keyof ListenOptions)[]]> = {
    join: [(options) => join(address, options), ['maxPeers', 'maxPeersPerProcess', 'maxPeersPerUser']],
    member: [(options) => member(address, options), ['maxPeers']],
    connect: [(options) => connect(address, options), ['maxPeers', 'maxPeersPerProcess', 'mode', 'group']],
    fromParent: [(options) => fromParent(options), ['maxPeers', 'mode', 'group', 'wait']],
    spawn: [(options) => spawn(process.execPath, [], options), ['maxPeers', 'mode', 'group', 'wait']],
  }
  const given: ListenOptions = {
    maxPeers: 3,
    maxPeersPerProcess: 3,
    maxPeersPerUser: 3,
    mode: 0o600,
    group: 0,
    wait: true,
  }
  for (const [title, [call, names]] of Object.entries(foreign)) {
    for (const name of names) {
      const error = await t.throwsAsync(async () => call({ [name]: given[name] }), invalid, `${name} of ${title}`)
      t.regex(error!.message, new RegExp(`^${title} takes no option ${name}: it is for .*listen`))
    }
    await t.throwsAsync(async () => call({ retries: 3 } as Options), invalid, title)
  }
})

test.serial('only the calls create channels, listeners and memberships', (t) => {
  const made = { message: /are made by/, ...invalid }
  // @ts-expect-error -- the constructor is private
  t.throws(() => new Channel(), made)
  // @ts-expect-error -- likewise
  t.throws(() => new Listener(), made)
  // @ts-expect-error -- likewise
  t.throws(() => new Membership(), made)
})

test.serial('an identity and the evidence are plain data that survives JSON', async (t) => {
  const { channel } = await pair(t)
  t.deepEqual(JSON.parse(JSON.stringify(channel.peer)), channel.peer)
  t.deepEqual(JSON.parse(JSON.stringify(channel.evidence)), channel.evidence)
  t.regex(channel.peer.executable!.inode, /^[0-9]+$/)
  t.deepEqual(JSON.parse(JSON.stringify(await channel.verify())), channel.peer)
})

function describe(value: unknown): string {
  return typeof value === 'bigint' ? `${value}n` : (JSON.stringify(value) ?? String(value))
}

test.serial('options that are no object are INVALID_ARGUMENT', async (t) => {
  for (const options of [null, 5, 'memfd', true, Symbol('options')]) {
    await t.throwsAsync(join(abstractAddress(), options as Options), invalid)
  }
})

test.serial('an option that is undefined counts as left out', async (t) => {
  const names = Object.keys(wrong).filter((name) => name !== 'retries')
  const nothing = Object.fromEntries(names.map((name) => [name, undefined])) as Options
  const { channel } = await pair(t, { options: nothing })
  t.is(channel.capacity, 4 * 1024 * 1024)
})

test.serial('an address that is not a string is INVALID_ARGUMENT', async (t) => {
  for (const address of [undefined, null, 5, {}, ['@x'], Buffer.from('@x'), Symbol('address'), 5n]) {
    await t.throwsAsync(join(address as string), invalid)
  }
})

test.serial('an invalid address is ADDRESS_INVALID', async (t) => {
  const directory = temporaryDirectory(t)
  const file = `${directory}/file`
  writeFileSync(file, '')
  mkdirSync(`${directory}/folder`)
  symlinkSync(file, `${directory}/locked.lock`)
  const addresses: [string, string, RegExp][] = [
    ['nothing', '', /empty/],
    ['no name', '@', /empty/],
    ['108 bytes', `/${'x'.repeat(107)}`, /107/],
    ['108 bytes of a name', `@${'x'.repeat(108)}`, /107/],
    ['108 bytes that are fewer characters', `@${'ä'.repeat(54)}`, /107/],
    ['a NUL', `${directory}/a\0b`, /NUL/],
    ['a NUL in a name', '@a\0b', /NUL/],
    ['a directory that does not exist', `${directory}/nowhere/meet.sock`, /directory/],
    ['a file for a directory', `${file}/meet.sock`, /directory/],
    ['a file that is there', file, /socket/],
    ['a directory that is there', `${directory}/folder`, /socket/],
    ['a lock that is a symbolic link', `${directory}/locked`, /symbolic link/],
  ]
  for (const [title, address, reason] of addresses) {
    const error = await t.throwsAsync(join(address), addressInvalid, title)
    t.regex(error!.message, reason, title)
  }
})

test.serial('the longest addresses are valid', async (t) => {
  const { channel } = await pair(t, { address: `@${abstractAddress().slice(1).padEnd(107, 'x')}` })
  t.true(channel.evidence.length > 0)
  const directory = temporaryDirectory(t)
  const named = await pair(t, { address: `${directory}/`.padEnd(107, 'x') })
  t.true(named.channel.evidence.length > 0)
})

test.serial('a directory that cannot be written is ADDRESS_INVALID', async (t) => {
  const directory = temporaryDirectory(t)
  chmodSync(directory, 0o555)
  const isRoot = process.getuid!() === 0
  const through = isRoot ? ['setpriv', `--reuid=${STRANGER}`, `--regid=${STRANGER}`, '--clear-groups', '--'] : []
  const partner = await Partner.start(t, { through })
  await t.throwsAsync(partner.join(`${directory}/meet.sock`), { code: addressInvalid.code })
  chmodSync(directory, 0o755)
})

test.serial('a socket that this user may not connect to is ADDRESS_INVALID, and the error says why', async (t) => {
  // An unprivileged user cannot change its uid.
  if (process.getuid!() !== 0) {
    t.pass()
    return
  }
  const address = namedAddress(t)
  chmodSync(dirname(address), 0o755)
  const listener = await listenHere(t, address)
  const through = ['setpriv', `--reuid=${STRANGER}`, `--regid=${STRANGER}`, '--clear-groups', '--']
  const partner = await Partner.start(t, { through })
  await t.throwsAsync(partner.connect(listener.address), { code: addressInvalid.code, message: /`mode` and `group`/ })
})

test.serial('a ring larger than the memory is NO_SPACE, before any partner has connected', async (t) => {
  for (const capacity of [2 ** 45, 2 ** 50, Number.MAX_SAFE_INTEGER]) {
    await t.throwsAsync(join(abstractAddress(), { capacity }), noSpace, String(capacity))
  }
})

test.serial('a process without free descriptors gets NO_SPACE, and recovers', async (t) => {
  const through = ['sh', '-c', 'ulimit -n 64; exec "$@"', 'sh']
  const partner = await Partner.start(t, { through })
  const address = abstractAddress()
  const codes = await partner.run(async (kit, where: string) => {
    const { openSync, closeSync } = kit.require('node:fs') as typeof import('node:fs')
    const found: (string | undefined)[] = []
    const open: number[] = []
    const fill = (leave: number) => {
      try {
        for (;;) open.push(openSync('/dev/null', 'r'))
      } catch {
        for (const fd of open.splice(0, leave)) closeSync(fd)
      }
    }
    for (let leave = 0; leave < 4; leave += 1) {
      fill(leave)
      const error: unknown = await kit
        .join(where, { signal: AbortSignal.timeout(200) })
        .catch((thrown: unknown) => thrown)
      const ours = error instanceof kit.ringfence.RingfenceError
      found.push(ours ? error.code : String(error))
    }
    for (const fd of open) closeSync(fd)
    return found
  }, address)
  t.is(codes[0], 'ERR_RINGFENCE_NO_SPACE')
  for (const code of codes) t.regex(code!, /^(ERR_RINGFENCE_NO_SPACE|ABORT_ERR)$/)

  const { channel } = await pair(t, { partner })
  t.is(channel.peer.pid, partner.pid)
})

test.serial('after all these refusals the process can join', async (t) => {
  const address = abstractAddress()
  await t.throwsAsync(join(address, { capacity: 0 }), invalid)
  await t.throwsAsync(join(address, { capacity: 2 ** 50 }), noSpace)
  const { channel, partner } = await pair(t, { address })
  await channel.send('as ever')
  t.is(await partner.run(async (kit) => String(await kit.channel.receive())), 'as ever')
})

test.serial('a misspelt option of a later call is refused, and changes nothing', async (t) => {
  const { channel, partner } = await pair(t)
  const misspelt = { lingr: 5, sginal: AbortSignal.abort(), channel: 'close' } as object
  for (const call of [
    () => channel.close(misspelt),
    () => channel.receive(misspelt),
    () => channel.waitReadable(misspelt),
    () => channel.receive(null as unknown as undefined),
  ])
    await t.throwsAsync(call, invalid)
  await partner.run((kit) => kit.channel.send('open still'))
  t.is(String(await channel.receive()), 'open still')
  const listener = await listenHere(t, abstractAddress())
  await t.throwsAsync(() => listener.close(misspelt), {
    ...invalid,
    message: /no property "lingr"; the nearest one is linger/,
  })
  listener.unref()
})
