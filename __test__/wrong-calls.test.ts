// Every call of the package with bad input: one table of the code, and of whether the call throws or rejects. Only synchronous calls throw.

import test, { type ExecutionContext } from 'ava'
import {
  connect,
  fromParent,
  join,
  json,
  listen,
  member,
  merge,
  publish,
  RingfenceError,
  SealedBuffer,
  spawn,
  subscribe,
  type Codec,
} from 'ringfence'

import { abstractAddress } from './support/address.js'
import { listenHere, nextChannel, Partner } from './support/partner.js'
import { isPending, within, until } from './support/until.js'

type Call = () => unknown
type Calls = Record<string, Call>

/** Any argument: the calls must check what a JavaScript program passes. */
// oxlint-disable-next-line typescript/no-explicit-any -- wrong on purpose
type Wrong = any

/** Requires that a call fails with the code, by throwing if it is synchronous and by rejecting otherwise. */
async function failsWith(
  t: ExecutionContext,
  { name, call, code, message, sync }: { name: string; call: Call; code: string; message?: RegExp; sync: boolean },
): Promise<void> {
  let thrown: unknown
  let isThrown = false
  try {
    const made = call()
    await within(
      Promise.resolve(made).catch((error: unknown) => {
        thrown = error
      }),
      `the rejection of ${name}`,
    )
  } catch (error) {
    thrown = error
    isThrown = true
  }
  if (!(thrown instanceof RingfenceError)) {
    t.fail(`${name} fails with ${String(thrown)} in place of ${code}`)
    return
  }
  t.is(thrown.code as string, `ERR_RINGFENCE_${code}`, `${name}: ${thrown.message}`)
  t.is(isThrown, sync, `${name} ${sync ? 'throws' : 'rejects'}`)
  if (message !== undefined) t.regex(thrown.message, message, name)
}

async function allFail(
  t: ExecutionContext,
  code: string,
  { throwing = {}, rejecting = {} }: { throwing?: Calls; rejecting?: Calls },
  message?: RegExp,
): Promise<void> {
  for (const [sync, calls] of [
    [true, throwing],
    [false, rejecting],
  ] as const)
    for (const [name, call] of Object.entries(calls))
      await failsWith(t, { name, call, code, sync, ...(message && { message }) })
}

/** One open object of each class. The partner process has the other ends. */
async function openAll(t: ExecutionContext) {
  const partner = await Partner.start(t)
  const [service, news, theirs, meeting] = [1, 2, 3, 4].map(() => abstractAddress()) as [string, string, string, string]
  const listener = await listenHere(t, service)
  const publisher = await publish(news)
  const membership = await member(meeting)
  await partner.run(
    async ({ ringfence, keep }, ...[at, from, to]: string[]) => {
      keep['channels'] = [await ringfence.connect(at!), await ringfence.connect(at!)]
      keep['subscription'] = await ringfence.subscribe(from!)
      keep['publisher'] = await ringfence.publish(to!)
    },
    service,
    news,
    theirs,
  )
  const [channel, source] = [await nextChannel(listener), await nextChannel(listener)]
  const subscription = await subscribe(theirs)
  await until(() => publisher.subscribers.length === 1, 'the publisher has its subscriber')
  const merged = merge([source])
  const open = { listener, publisher, membership, channel, source, subscription, merged }
  t.teardown(() => Promise.all([subscription, membership, publisher, merged].map((each) => each.close())))
  return { ...open, partner, subscriber: publisher.subscribers[0]!, values: channel.with(json()) }
}

/** The calls that open something, each with the options of the test. */
const openings: Record<string, (options: Wrong) => unknown> = {
  join: (options) => join(abstractAddress(), options),
  connect: (options) => connect(abstractAddress(), options),
  listen: (options) => listen(abstractAddress(), options),
  member: (options) => member(abstractAddress(), options),
  publish: (options) => publish(abstractAddress(), options),
  subscribe: (options) => subscribe(abstractAddress(), options),
  spawn: (options) => spawn(process.execPath, [], options),
  fromParent: (options) => fromParent(options),
}

/** The calls of open objects that take options, with misspelt options. */
function callsWithOptions({
  listener,
  publisher,
  membership,
  channel,
  subscription,
  merged,
  subscriber,
  values,
}: Wrong) {
  const waiting = { signal: 'sginal' }
  const closing = { linger: 'lingr' }
  const table: Record<string, [call: (options: Wrong) => unknown, misspelt: Record<string, string>]> = {}
  for (const [name, source] of Object.entries({ channel, values, subscription, merged }) as [string, Wrong][]) {
    table[`${name}.receive`] = [(options) => source.receive(options), waiting]
    table[`${name}.waitReadable`] = [(options) => source.waitReadable(options), waiting]
    table[`${name}.batches`] = [(options) => source.batches(options), { signal: 'sginal', max: 'maxx' }]
  }
  for (const [name, sink] of Object.entries({ channel, values, publisher }) as [string, Wrong][]) {
    table[`${name}.send`] = [(options) => sink.send('text', options), { ...waiting, attachments: 'atachments' }]
    table[`${name}.waitWritable`] = [(options) => sink.waitWritable(1, options), waiting]
    table[`${name}.end`] = [(options) => sink.end(options), waiting]
  }
  for (const [name, peer] of Object.entries({ channel, subscription, subscriber }) as [string, Wrong][])
    table[`${name}.verify`] = [(options) => peer.verify(options), waiting]
  for (const [name, each] of Object.entries({ channel, publisher, subscription, membership, merged }))
    table[`${name}.close`] = [(options) => each.close(options), closing]
  table['listener.close'] = [(options) => listener.close(options), { ...closing, channels: 'chanels' }]
  table['channel.call'] = [(options) => channel.call('text', options), { ...waiting, timeout: 'timeuot' }]
  table['channel.serve'] = [(options) => channel.serve(() => 'text', options), { concurrency: 'concurency' }]
  return table
}

test.serial('an unknown option: INVALID_ARGUMENT names the nearest one of the call', async (t) => {
  const misspelt = { timeout: 'timeuot', handshakeTimeout: 'handshakeTimout', signal: 'sginal', policy: 'polciy' }
  for (const [name, call] of Object.entries(openings))
    for (const [wanted, given] of Object.entries(misspelt))
      await failsWith(t, {
        name: `${name} with ${given}`,
        call: () => call({ [given]: 1 }),
        code: 'INVALID_ARGUMENT',
        message: new RegExp(`^${name} takes no option ${given}; the nearest one is ${wanted}$`),
        sync: false,
      })
  for (const [name, [call, options]] of Object.entries(callsWithOptions(await openAll(t))))
    for (const [wanted, given] of Object.entries(options))
      await failsWith(t, {
        name: `${name} with ${given}`,
        call: () => call({ [given]: 1 }),
        code: 'INVALID_ARGUMENT',
        message: new RegExp(`"${given}"; the nearest one is ${wanted}$`),
        sync: name.endsWith('.batches'),
      })
})

test.serial('options that are no object, or of the wrong type: INVALID_ARGUMENT', async (t) => {
  for (const options of [null, 5, 'text', new Map(), Promise.resolve()]) {
    for (const [name, call] of Object.entries(openings))
      await failsWith(t, { name, call: () => call(options), code: 'INVALID_ARGUMENT', sync: false })
  }
  for (const [name, [call, misspelt]] of Object.entries(callsWithOptions(await openAll(t))))
    for (const options of [null, 5, 'text', new Map(), ...Object.keys(misspelt).map((key) => ({ [key]: {} }))])
      await failsWith(t, {
        name: `${name} with ${JSON.stringify(options)}`,
        call: () => call(options),
        code: 'INVALID_ARGUMENT',
        sync: name.endsWith('.batches'),
      })
})

test.serial('a wrong codec: INVALID_ARGUMENT', async (t) => {
  const { channel, publisher, subscription } = (await openAll(t)) as Wrong
  const wrong: Wrong[] = [null, 5, 'json', json, {}, { encode: String }, { decode: String }]
  for (const codec of wrong) {
    const rejecting = Object.fromEntries(Object.entries(openings).map(([name, call]) => [name, () => call({ codec })]))
    const throwing = {
      'channel.with': () => channel.with(codec),
      'publisher.with': () => publisher.with(codec),
      'subscription.with': () => subscription.with(codec),
    }
    await allFail(t, 'INVALID_ARGUMENT', { throwing, rejecting }, /codec has the functions encode and decode/)
  }
  await allFail(t, 'INVALID_ARGUMENT', { throwing: { with: () => channel.with() } })
})

test.serial('an address that cannot be used: ADDRESS_INVALID; one that is no string: INVALID_ARGUMENT', async (t) => {
  const byAddress = { join, connect, listen, member, publish, subscribe } as Record<string, (address: Wrong) => unknown>
  for (const [name, call] of Object.entries(byAddress)) {
    for (const address of ['', '@', 'a\0b', `/${'x'.repeat(107)}`, '/nowhere/at/all', '/dev/null'])
      await failsWith(t, { name, call: () => call(address), code: 'ADDRESS_INVALID', message: /address/, sync: false })
    for (const address of [undefined, null, 5, {}, ['@x'], Symbol('x')])
      await failsWith(t, { name, call: () => call(address), code: 'INVALID_ARGUMENT', message: /address/, sync: false })
  }
  await allFail(
    t,
    'ADDRESS_INVALID',
    { rejecting: { fromParent: () => fromParent() } },
    /RINGFENCE_LINE.* start this program with `spawn`/,
  )
})

test.serial('a command that cannot be started: INVALID_ARGUMENT with the cause', async (t) => {
  const start = spawn as Wrong
  const rejecting = {
    'no string': () => start(5),
    'an empty string': () => start(''),
    'no such file': () => start('/no/such/file'),
    'no list': () => start('true', 'an argument'),
    'a NUL': () => start('true', ['a\0b']),
    'a wrong setting': () => start('true', [], { spawn: { cwd: 5 } }),
    'a wrong stdio': () => start('true', [], { spawn: { stdio: 'wierd' } }),
  }
  await allFail(t, 'INVALID_ARGUMENT', { rejecting })
})

test.serial('an argument of the wrong type: INVALID_ARGUMENT', async (t) => {
  const open = (await openAll(t)) as Wrong
  const { channel, source, subscription, merged, values, publisher } = open
  for (const message of [undefined, null, 5, 5n, {}, [], Symbol('x'), () => {}]) {
    const throwing = {
      'channel.trySend': () => channel.trySend(message),
      'publisher.trySend': () => publisher.trySend(message),
      'SealedBuffer.from': () => SealedBuffer.from(message as Wrong),
    }
    const rejecting = {
      'channel.send': () => channel.send(message),
      'channel.call': () => channel.call(message),
      'publisher.send': () => publisher.send(message),
    }
    await allFail(t, 'INVALID_ARGUMENT', { throwing, rejecting }, /bytes/)
  }
  for (const size of [-1, 1.5, NaN, '1', null, {}]) {
    const throwing: Calls = {}
    const rejecting: Calls = { 'SealedBuffer.create': () => SealedBuffer.create(size as Wrong, () => {}) }
    for (const [name, sink] of Object.entries({ channel, values, publisher })) {
      throwing[`${name}.reserve`] = () => sink.reserve(size)
      throwing[`${name}.fill`] = () => sink.fill(size, () => 0)
      rejecting[`${name}.waitWritable`] = () => sink.waitWritable(size)
    }
    await allFail(t, 'INVALID_ARGUMENT', { throwing, rejecting }, /size/)
  }
  for (const callback of [undefined, null, 5, 'text', {}]) {
    const throwing: Calls = {
      'channel.fill': () => channel.fill(1, callback),
      'publisher.fill': () => publisher.fill(1, callback),
    }
    for (const [name, each] of Object.entries({ channel, values, subscription, merged }))
      throwing[`${name}.receiveEach`] = () => (each as Wrong).receiveEach(callback)
    const rejecting = {
      'channel.serve': () => channel.serve(callback),
      'SealedBuffer.create': () => SealedBuffer.create(1, callback as Wrong),
    }
    await allFail(t, 'INVALID_ARGUMENT', { throwing, rejecting }, /function/)
  }
  for (const max of [-1, NaN, '5', null, {}]) {
    const throwing: Calls = {}
    for (const [name, each] of Object.entries({ channel, values, subscription, merged })) {
      throwing[`${name}.receiveEach`] = () => (each as Wrong).receiveEach(() => {}, max)
      throwing[`${name}.batches`] = () => (each as Wrong).batches({ max })
    }
    await allFail(t, 'INVALID_ARGUMENT', { throwing }, /max/)
  }
  for (const token of [undefined, null, '5', -1, 1.5, 2 ** 53, -1n, 2n ** 64n])
    await allFail(t, 'INVALID_ARGUMENT', { throwing: { 'channel.sendToken': () => channel.sendToken(token) } }, /token/)
  for (const other of [undefined, null, 5, {}, publisher, merged])
    await allFail(t, 'INVALID_ARGUMENT', { throwing: { 'merged.add': () => merged.add(other) } }, /channels/)
  for (const others of [null, 5, {}, [5], [merged], [source]])
    await allFail(t, 'INVALID_ARGUMENT', { throwing: { merge: () => merge(others as Wrong) } })
  for (const attachments of [null, 5, [5], [{}], [{ fd: -1 }], [{ fd: 1e9 }]])
    for (const [name, sink] of Object.entries({ channel, values, publisher }))
      await allFail(t, 'INVALID_ARGUMENT', { rejecting: { [name]: () => sink.send('text', { attachments }) } })
})

test.serial('a value that cannot be encoded: INVALID_ARGUMENT with the cause', async (t) => {
  const { values, publisher, channel } = await openAll(t)
  const circle: unknown[] = []
  circle.push(circle)
  const failing: Codec<unknown> = {
    encode() {
      throw new TypeError('from the codec')
    },
    decode: String,
  }
  const cases: [codec: Codec<unknown>, value: unknown][] = [
    ...[undefined, 5n, circle, () => {}, Symbol('x')].map((value): [Codec<unknown>, unknown] => [json(), value]),
    [failing, 'text'],
    [{ encode: () => 5 as Wrong, decode: String }, 'text'],
  ]
  const port = values.port()
  t.teardown(() => port.close())
  for (const [codec, value] of cases) {
    const [one, all] = [channel.with(codec), publisher.with(codec)]
    const throwing = { 'channel.trySend': () => one.trySend(value), 'publisher.trySend': () => all.trySend(value) }
    const rejecting = {
      'channel.send': () => one.send(value),
      'channel.call': () => one.call(value),
      'publisher.send': () => all.send(value),
    }
    await allFail(t, 'INVALID_ARGUMENT', { throwing, rejecting }, /^the value (cannot be encoded|encodes to nothing)/)
    const error = await t.throwsAsync(one.send(value))
    t.true(error!.cause instanceof TypeError)
  }
  // As with a MessagePort.
  const error = t.throws(() => port.postMessage(5n), { any: true }) as DOMException & { cause: RingfenceError }
  t.deepEqual([error.name, error.code], ['DataCloneError', 25])
  t.is(error.cause.code, 'ERR_RINGFENCE_INVALID_ARGUMENT')
  const writer = channel.with(json()).writable.getWriter()
  await allFail(t, 'INVALID_ARGUMENT', { rejecting: { 'writer.write': () => writer.write(5n) } })
})

test.serial('a second consumer beside a waiting one: INVALID_ARGUMENT', async (t) => {
  const { channel, values, subscription, merged, source } = (await openAll(t)) as Wrong
  for (const [name, each] of Object.entries({ channel, subscription, merged }) as [string, Wrong][]) {
    const loop = each[Symbol.asyncIterator]()
    const waiting = loop.next()
    t.true(await isPending(waiting))
    const rejecting: Calls = {
      [`${name}.receive`]: () => each.receive(),
      [`${name}.waitReadable`]: () => each.waitReadable(),
      [`${name}.batches`]: () => each.batches()[Symbol.asyncIterator]().next(),
      [`a loop over ${name}`]: () => each[Symbol.asyncIterator]().next(),
    }
    if (name === 'channel') rejecting['values.receive'] = () => values.receive()
    await allFail(t, 'INVALID_ARGUMENT', { rejecting }, /one place/)
    if (name !== 'merged') await allFail(t, 'INVALID_ARGUMENT', { throwing: { merge: () => merge([each]) } })
    await loop.return()
    t.true((await waiting).done)
  }
  const throwing = {
    'source.tryReceive': () => source.tryReceive(),
    'source.receiveEach': () => source.receiveEach(() => {}),
    'source.duplex': () => source.duplex(),
    'source.port': () => source.port(),
    'merge([source])': () => merge([source]),
  }
  const rejecting = {
    'source.receive': () => source.receive(),
    'source.waitReadable': () => source.waitReadable(),
    'a loop over source': () => source[Symbol.asyncIterator]().next(),
  }
  await allFail(t, 'INVALID_ARGUMENT', { throwing, rejecting })
})

test.serial('a call after close: CLOSED; what ends resolves, and loops end', async (t) => {
  const all = (await openAll(t)) as Wrong
  const { channel, values, subscription, merged, publisher, listener, membership, subscriber } = all
  const reservation = channel.reserve(4)
  for (const each of [channel, subscription, merged, publisher, membership, listener]) await each.close()
  const throwing: Calls = {
    'channel.sendToken': () => channel.sendToken(1),
    'merged.add': () => merged.add(channel),
    'reservation.commit': () => reservation.commit(),
    'sealed.bytes'() {
      const sealed = SealedBuffer.from(Buffer.from('text'))
      sealed.close()
      return sealed.bytes()
    },
  }
  const rejecting: Calls = {
    'channel.call': () => channel.call('text'),
    'values.call': () => values.call('text'),
    'channel.verify': () => channel.verify(),
    'subscription.verify': () => subscription.verify(),
    'subscriber.verify': () => subscriber.verify(),
  }
  for (const [name, each] of Object.entries({ channel, values, subscription, merged }) as [string, Wrong][]) {
    throwing[`${name}.tryReceive`] = () => each.tryReceive()
    throwing[`${name}.receiveEach`] = () => each.receiveEach(() => {})
    rejecting[`${name}.receive`] = () => each.receive()
    rejecting[`${name}.waitReadable`] = () => each.waitReadable()
  }
  for (const [name, each] of Object.entries({ channel, values, publisher }) as [string, Wrong][]) {
    throwing[`${name}.trySend`] = () => each.trySend('text')
    throwing[`${name}.reserve`] = () => each.reserve(1)
    throwing[`${name}.fill`] = () => each.fill(1, () => 1)
    rejecting[`${name}.send`] = () => each.send('text')
    rejecting[`${name}.waitWritable`] = () => each.waitWritable(1)
    rejecting[`${name}.writable`] = () => each.writable.getWriter().write('text')
  }
  await allFail(t, 'CLOSED', { throwing, rejecting }, /closed|gone/)
  const resolving: Calls = {
    'channel.end': () => channel.end(),
    'publisher.end': () => publisher.end(),
    'publisher.seal': () => publisher.seal(),
    'channel.serve': () => channel.serve(() => 'text'),
    'subscriber.disconnect': () => subscriber.disconnect(),
  }
  for (const [name, each] of Object.entries({ channel, subscription, merged, publisher, membership, listener }))
    resolving[`${name}.close`] = () => (each as Wrong).close()
  for (const [name, call] of Object.entries(resolving))
    t.is(await within(Promise.resolve(call()), name), undefined, `${name} resolves`)
  for (const [name, each] of Object.entries({ channel, values, subscription, merged, membership, listener })) {
    const loop = (each as Wrong)[Symbol.asyncIterator]()
    t.true((await within<Wrong>(loop.next(), `a loop over ${name}`)).done, name)
  }
  reservation.cancel()
})
