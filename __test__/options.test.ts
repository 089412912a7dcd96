// Checking options: which call takes which, their limits, and what the binding gets. bad-input.test.ts tests the errors
// of the public API.

import test from 'ava'
import { json, RingfenceError } from 'ringfence'

import { internals } from './support/internals.js'

type Any = Record<string, unknown>

interface Insides {
  checkOptions(call: string, options: Any): Any
  checkReceiveEach(visit: unknown, max: unknown): void
  lingerOf(options: unknown): number
  signalOf(options: unknown): AbortSignal | undefined
}

/** Not exported by the package. */
const { checkOptions, checkReceiveEach, lingerOf, signalOf } = await internals<Insides>('endpoint/options.js')

const { channelSettings } = await internals<{ channelSettings(options: Any): Any }>('endpoint/handshake.js')

const invalid = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_INVALID_ARGUMENT' } as const

/** The defined options that the binding gets. */
const given = (call: string, options: Any) =>
  Object.fromEntries(Object.entries(checkOptions(call, options)).filter(([, value]) => value !== undefined))

const calls = ['join', 'member', 'listen', 'connect', 'spawn', 'fromParent', 'publish', 'subscribe']

/** Each option with a valid value, and the calls that take it (all calls by default). */
const takers: Record<string, [value: unknown, calls?: string]> = {
  backing: ['shm', 'join member listen connect spawn fromParent publish'],
  capacity: [4096, 'join member listen connect spawn fromParent publish'],
  maxMessageSize: [1024],
  maxPeerCapacity: [8192, 'join member listen connect spawn fromParent'],
  attachments: [{ sealed: true, descriptors: false, maxBytes: 5, maxCount: 6 }],
  policy: [{}],
  mode: [0o660, 'join member listen publish'],
  group: ['adm', 'join member listen publish'],
  timeout: [7],
  handshakeTimeout: [5],
  signal: [new AbortController().signal],
  wait: [true, 'join member listen connect publish subscribe'],
  maxPeers: [3, 'listen publish'],
  maxPeersPerProcess: [4, 'listen publish'],
  maxPeersPerUser: [5, 'listen publish'],
  busyPollMicros: [7],
  allowHalfOpen: [true, 'join member listen connect spawn fromParent'],
  harden: [false],
  realtimeSignal: [40],
  stall: [250, 'publish'],
  deliveries: [['latest'], 'publish'],
  delivery: ['best-effort', 'subscribe'],
  from: ['oldest', 'subscribe'],
  admit: ['descendant', 'spawn'],
  line: ['stdin', 'spawn'],
}

/** Options that stay in JavaScript, or that the binding has by another name. */
const elsewhere: Record<string, Any> = {
  policy: { policy: {} },
  signal: {},
  timeout: {},
  allowHalfOpen: {},
  admit: {},
  line: {},
}

test('each call takes its options, and passes them to the binding', (t) => {
  for (const [name, [value, taking]] of Object.entries(takers)) {
    for (const call of calls) {
      const what = `${name} of ${call}`
      if (taking !== undefined && !taking.split(' ').includes(call)) {
        const message = new RegExp(
          `^${call} takes no option ${name}: it is for ${taking.replaceAll(' ', ', ')}(; the nearest one is \\w+)?$`,
        )
        t.throws(() => checkOptions(call, { [name]: value }), { ...invalid, message }, what)
        t.notThrows(() => checkOptions(call, { [name]: undefined }), what)
        continue
      }
      const { useLibuv, policy, ...rest } = given(call, { [name]: value })
      t.true(useLibuv, 'Node is no other runtime')
      const { policy: expected, ...others } = elsewhere[name] ?? { [name]: value }
      t.deepEqual(rest, others, what)
      t.is(typeof policy, expected === undefined ? 'undefined' : 'object')
    }
  }
  t.deepEqual(given('join', {}), { useLibuv: true })
})

const edges: Record<string, { from?: unknown[]; not: unknown[] }> = {
  capacity: { from: [1, Number.MAX_SAFE_INTEGER], not: [0, Number.MAX_SAFE_INTEGER + 1] },
  maxMessageSize: { from: [1, 2 ** 31], not: [0, 2 ** 31 + 1] },
  maxPeerCapacity: { from: [4096, Number.MAX_SAFE_INTEGER], not: [4095, 4096.5, '4096'] },
  mode: { from: [0, 0o777], not: [-1, 0o1000] },
  group: { from: [0, 2 ** 32 - 2], not: [-1, 2 ** 32 - 1] },
  timeout: { not: [0, -1, 2 ** 31 + 1, NaN, Infinity, '5', null] },
  handshakeTimeout: { from: [Number.MIN_VALUE, 0.5, 2 ** 31], not: [0, -1, 2 ** 31 + 1, NaN, Infinity, '5'] },
  maxPeers: { from: [1, Number.MAX_SAFE_INTEGER], not: [0, 1.5, null] },
  maxPeersPerProcess: { from: [1, Number.MAX_SAFE_INTEGER], not: [0, 1.5, null] },
  maxPeersPerUser: { from: [1, Number.MAX_SAFE_INTEGER], not: [0, 1.5, null] },
  busyPollMicros: { from: [0, 60_000_000], not: [-1, 60_000_001] },
  realtimeSignal: { from: [32, 64], not: [31, 65, 40.5] },
  stall: { from: [0, 0.5, Infinity], not: [-1, NaN, '5', null] },
  deliveries: {
    from: [['reliable'], ['reliable', 'best-effort', 'latest']],
    not: [[], ['other'], ['reliable', 'other'], 'reliable', null, new Set(['reliable'])],
  },
  delivery: { from: ['reliable', 'best-effort', 'latest'], not: ['other', '', null, ['reliable']] },
  from: { from: ['now', 'oldest', 'latest'], not: ['other', '', null, 0] },
  backing: { from: ['memfd', 'shm'], not: ['other', '', null] },
  wait: { from: [true, false], not: [0, 'true', null] },
  harden: { from: [true, false], not: [0, 'true', null] },
  allowHalfOpen: { not: [0, 'true', null] },
  signal: { not: [null, {}, new EventTarget(), 'signal'] },
  admit: { not: ['', 'any', null, true] },
  line: { not: ['', 'stdout', null, 3] },
}

test('the limits of an option are valid, and values beyond them are refused by name', (t) => {
  for (const [name, { from = [], not }] of Object.entries(edges)) {
    const [call] = takers[name]![1]?.split(' ').slice(-1) ?? ['join']
    for (const value of from)
      t.deepEqual(checkOptions(call!, { [name]: value })[name], value, `${name} ${String(value)}`)
    for (const value of not) {
      const wrong = () => checkOptions(call!, { [name]: value })
      t.throws(wrong, { ...invalid, message: new RegExp(`^${name} must be `) }, `${name} ${String(value)}`)
    }
  }
})

test('a timeout without a limit is refused, and the error says what to write', (t) => {
  const message =
    'timeout must be a number of milliseconds above 0 and at most 2147483648, or left out for no limit, not Infinity'
  t.throws(() => checkOptions('join', { timeout: Infinity }), { ...invalid, message })
})

test('an error says what was found, and which values are possible', (t) => {
  for (const [call, options, message] of [
    [
      'publish',
      { deliveries: ['other'] },
      "deliveries must be a list of one or more of 'reliable', 'best-effort' or 'latest', not an array",
    ],
    ['publish', { stall: -1 }, 'stall must be a number of milliseconds of 0 or more, or Infinity, not -1'],
    ['join', { policy: { uid: [] } }, 'uid must name at least one, or be left out for the default'],
  ] as const)
    t.throws(() => checkOptions(call, options), { ...invalid, message })
})

test('a list with holes is refused', (t) => {
  const holes: never[] = []
  holes.length = 2
  for (const policy of [{ uid: holes }, { gid: holes }, { executable: holes }])
    t.throws(() => checkOptions('join', { policy }), invalid, JSON.stringify(policy))
  t.throws(() => checkOptions('publish', { deliveries: holes }), invalid)
})

test('what attachments are accepted is checked by name', (t) => {
  const attachments = { sealed: undefined, descriptors: true, maxBytes: 1, maxCount: 1024 }
  t.deepEqual(given('join', { attachments }), {
    attachments: { descriptors: true, maxBytes: 1, maxCount: 1024 },
    useLibuv: true,
  })
  for (const [name, values] of Object.entries({
    sealed: [1, 'true', null],
    descriptors: [0, null],
    maxBytes: [0, 1.5, '5'],
    maxCount: [0, 1025, 1.5],
  })) {
    for (const value of values)
      t.throws(() => checkOptions('join', { attachments: { [name]: value } }), {
        ...invalid,
        message: new RegExp(`^attachments.${name} must be `),
      })
  }
  for (const wrong of [null, true, 'sealed', ['sealed'], new Map()])
    t.throws(() => checkOptions('join', { attachments: wrong }), invalid)
  t.throws(() => checkOptions('join', { attachments: { seald: true } }), {
    ...invalid,
    message: /nearest one is sealed/,
  })
})

test('a group is a number or a name', (t) => {
  t.deepEqual(given('join', { group: 5 }), { group: 5, useLibuv: true })
  t.deepEqual(given('join', { group: 'adm' }), { group: 'adm', useLibuv: true })
  t.throws(() => checkOptions('join', { group: null }), invalid)
})

const policyOf = (policy: Any) => {
  const found = checkOptions('join', { policy })['policy'] as Any
  return Object.fromEntries(Object.entries(found).filter(([, value]) => value !== undefined))
}
const SHA = '0123456789abcdefABCDEF'.padEnd(64, '0')

test('a policy is merged with the defaults, and only any drops a check', (t) => {
  const policies: [Any, Any][] = [
    [{}, {}],
    [{ uid: 'same' }, { sameUid: true }],
    [{ uid: 'any' }, { anyUid: true }],
    [{ executable: 'any' }, { anyExecutable: true }],
    [{ uid: 0 }, { uids: [0] }],
    [{ uid: [1, 2 ** 32 - 2] }, { uids: [1, 2 ** 32 - 2] }],
    [{ gid: 0 }, { gids: [0] }],
    [{ gid: [5, 6] }, { gids: [5, 6] }],
    [{ executable: 'same' }, { executables: [{ same: true }] }],
    [{ executable: '/bin/sh' }, { executables: [{ same: false, path: '/bin/sh' }] }],
    [{ executable: ['same', { sha256: SHA }] }, { executables: [{ same: true }, { same: false, sha256: SHA }] }],
    [{ executable: { path: 'same', sha256: SHA } }, { executables: [{ same: true, sha256: SHA }] }],
    [{ executable: { path: '/a', sha256: SHA } }, { executables: [{ same: false, path: '/a', sha256: SHA }] }],
    [{ cgroup: '/a' }, { cgroup: '/a' }],
    [{ label: 'a' }, { label: 'a' }],
    [{ namespace: 'any' }, { namespace: 'any' }],
    [{ confined: { seccomp: true } }, { confined: ['confined.seccomp'] }],
    [
      {
        confined: {
          networkNamespace: 'other',
          userNamespace: 'other',
          noCapabilities: true,
          noNewPrivs: true,
          seccomp: undefined,
        },
      },
      {
        confined: ['noNewPrivs', 'noCapabilities', 'userNamespace', 'networkNamespace'].map(
          (name) => `confined.${name}`,
        ),
      },
    ],
    [{ authorize: () => true }, {}],
  ]
  // The core has the defaults, since they depend on how the peer was met.
  for (const [policy, expected] of policies) t.deepEqual(policyOf(policy), expected, JSON.stringify(policy))
})

test('an invalid policy is refused, and the error says what is wrong', (t) => {
  const policies: [Any, RegExp][] = [
    [{ uid: null }, /^uid must be a whole number/],
    [{ uid: [] }, /^uid must name at least one/],
    [{ uid: [0, -1] }, /^uid must be a whole number/],
    [{ gid: 'same' }, /^gid must be a whole number/],
    [{ gid: [] }, /^gid must name at least one/],
    [{ gid: 2 ** 32 - 1 }, /^gid must be a whole number/],
    [{ executable: [] }, /^executable must name at least one/],
    [{ executable: null }, /^executable must be an object/],
    [{ executable: ['same', 'any'] }, /^executable must be an absolute path/],
    [{ uid: ['any'] }, /^uid must be a whole number/],
    [{ executable: 'node' }, /^executable must be an absolute path/],
    [{ executable: '' }, /^executable must be a string that is not empty/],
    [{ executable: { path: '/a' } }, /^sha256 of an executable must be 64/],
    [{ executable: { sha256: SHA, path: 'node' } }, /^path of an executable must be an absolute path/],
    [{ executable: { sha256: SHA, path: null } }, /^path of an executable must be a string/],
    [{ executable: { sha256: SHA, other: 1 } }, /^executable has no property "other"$/],
    [{ executable: { sha256: `${SHA}0` } }, /^sha256/],
    [{ executable: { sha256: `0${SHA}` } }, /^sha256/],
    [{ executable: { sha256: SHA.slice(1) } }, /^sha256/],
    [{ executable: { sha256: `${SHA.slice(1)}g` } }, /^sha256/],
    [{ executable: { sha256: [SHA] } }, /^sha256/],
    [{ cgroup: '' }, /^cgroup must be a string/],
    [{ cgroup: 'a\0' }, /^cgroup must be a string/],
    [{ label: null }, /^label must be a string/],
    [{ namespace: '' }, /^namespace must be 'same' or 'any', not ""$/],
    [{ confined: {} }, /^confined must have at least one of noNewPrivs, seccomp/],
    [{ confined: { seccomp: undefined } }, /^confined must have at least one of/],
    [{ confined: true }, /^confined must be an object/],
    [{ confined: { seccomp: false } }, /^confined\.seccomp must be true or left out, not false$/],
    [{ confined: { userNamespace: 'same' } }, /^confined\.userNamespace must be "other" or left out, not "same"$/],
    [{ confined: { userNamespace: true } }, /^confined\.userNamespace must be "other"/],
    [{ confined: { noNewPriv: true } }, /^confined has no property "noNewPriv"; the nearest one is noNewPrivs$/],
    [{ authorize: null }, /^authorize must be a function/],
    [{ user: 'same' }, /^policy has no property "user"$/],
  ]
  for (const [policy, message] of policies)
    t.throws(() => policyOf(policy), { ...invalid, message }, JSON.stringify(policy))
})

test('a misspelt option is refused, with the nearest one of that call', (t) => {
  const misspelt: [call: string, name: string, nearest: string][] = [
    ['join', 'busyPoll', 'busyPollMicros'],
    ['join', 'timeOut', 'timeout'],
    ['join', 'max_message_size', 'maxMessageSize'],
    ['listen', 'maxPeer', 'maxPeers'],
    ['listen', 'maxPeerPerProcess', 'maxPeersPerProcess'],
    ['connect', 'sginal', 'signal'],
    ['connect', 'hardne', 'harden'],
    ['subscribe', 'form', 'from'],
    ['subscribe', 'deliveries', 'delivery'],
    ['publish', 'delivery', 'deliveries'],
    ['fromParent', 'maxPeerCapacities', 'maxPeerCapacity'],
  ]
  for (const [call, name, nearest] of misspelt) {
    const message = new RegExp(`^${call} takes no option ${name}\\b.*; the nearest one is ${nearest}$`)
    t.throws(() => checkOptions(call, { [name]: 1 }), { ...invalid, message }, `${call} ${name}`)
  }
  const others: [call: string, name: string, end: string][] = [
    ['subscribe', 'toString', ''],
    ['spawn', 'silent', ''],
    ['spawn', 'stdio', '; write spawn: { stdio: … } for the option of child_process.spawn'],
    ['join', 'stdio', ''],
  ]
  for (const [call, name, end] of others) {
    const message = `${call} takes no option ${name}${end}`
    t.throws(() => checkOptions(call, { [name]: 1 }), { ...invalid, message }, `${call} ${name}`)
  }
  t.notThrows(() => checkOptions('join', { busyPoll: undefined }), 'undefined is as if it were left out')
})

test('options and a policy are objects', (t) => {
  for (const wrong of [null, undefined, 5, 'same', () => {}]) {
    t.throws(() => checkOptions('join', wrong as unknown as Any), { ...invalid, message: /^options must be an object/ })
    if (wrong !== undefined)
      t.throws(() => checkOptions('join', { policy: wrong }), { ...invalid, message: /^policy must be an object/ })
  }
})

test('what an object keeps of its options, and the defaults', (t) => {
  t.deepEqual(channelSettings({}), {
    busyPollMicros: 0,
    allowHalfOpen: false,
    stall: 5000,
    values: null,
    attachments: undefined,
  })
  const codec = json()
  const settings = { busyPollMicros: 5, allowHalfOpen: true, stall: 300, attachments: { sealed: true } }
  const { values, ...same } = channelSettings({ ...settings, codec })
  t.deepEqual(same, settings)
  t.is((values as { codec: unknown }).codec, codec)
})

test('an object of an unrelated class is neither a policy nor options', (t) => {
  const wrong: [object, RegExp][] = [
    [Promise.resolve({ uid: 5 }), /^\w+ must be an object that has some of .*, not one of class Promise$/],
    [new Map([['uid', 5]]), /not one of class Map$/],
    [[], /not one of class Array$/],
    [AbortSignal.timeout(1000), /not one of class AbortSignal$/],
    [new (class {})(), /not an object$/],
  ]
  for (const [value, message] of wrong) {
    t.throws(() => checkOptions('join', { policy: value as never }), { ...invalid, message })
    t.throws(() => checkOptions('join', value as never), { ...invalid, message })
    t.throws(() => signalOf(value as never), { ...invalid, message })
    t.throws(() => lingerOf(value as never), { ...invalid, message })
  }
  const inherits = Object.create({ uid: 5 }) as object
  class OfOurUser {
    get uid() {
      return 7
    }
  }
  for (const policy of [inherits, new OfOurUser()]) t.notThrows(() => checkOptions('join', { policy }))
  t.like(checkOptions('join', { policy: new OfOurUser() }), { policy: { uids: [7] } })
})

test('the arguments of receiveEach, close and waiting calls are checked', (t) => {
  const visit = () => {}
  for (const max of [undefined, 0, 1, Infinity]) t.notThrows(() => checkReceiveEach(visit, max), String(max))
  for (const max of [-1, 0.5, NaN, '1', null, 1n])
    t.throws(() => checkReceiveEach(visit, max), { ...invalid, message: /^max must/ })
  for (const wrong of [undefined, null, {}, 'visit'])
    t.throws(() => checkReceiveEach(wrong, 1), { ...invalid, message: /^receiveEach takes a function/ })

  t.is(lingerOf({}), 1000)
  for (const linger of [0, 0.5, 5000, Infinity]) t.is(lingerOf({ linger }), linger)
  for (const linger of [-1, NaN, '5', null])
    t.throws(() => lingerOf({ linger }), { ...invalid, message: /^linger must/ })
  t.throws(() => lingerOf({ lingr: 5 }), {
    ...invalid,
    message: /^options has no property "lingr"; the nearest one is linger$/,
  })
  t.throws(() => lingerOf(null), invalid)

  const { signal } = new AbortController()
  t.is(signalOf(undefined), undefined)
  t.is(signalOf({}), undefined)
  t.is(signalOf({ signal: undefined }), undefined)
  t.is(signalOf({ signal }), signal)
  // Without a way to remove the listener, a wait could not end.
  const endless = { aborted: false, addEventListener() {} }
  for (const wrong of [null, {}, 'signal', new EventTarget(), endless])
    t.throws(() => signalOf({ signal: wrong }), { ...invalid, message: /^signal must be an AbortSignal/ })
  t.throws(() => signalOf(null), invalid)
  t.throws(() => signalOf({ sginal: signal }), {
    ...invalid,
    message: /no property "sginal"; the nearest one is signal$/,
  })
  const reason = new Error('enough')
  const called = t.throws(() => signalOf({ signal: AbortSignal.abort(reason) }), { name: 'AbortError' })
  t.is(called?.cause, reason)
})

test('libuv is not used in a runtime that exports it but does not behave like it', (t) => {
  for (const name of ['bun', 'deno']) {
    const before = process.versions
    t.teardown(() => Object.defineProperty(process, 'versions', { value: before }))
    Object.defineProperty(process, 'versions', { value: { ...before, [name]: '1.0.0' }, configurable: true })
    t.deepEqual(given('join', {}), { useLibuv: false }, name)
    Object.defineProperty(process, 'versions', { value: before, configurable: true })
  }
})
