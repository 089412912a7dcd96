// Calls between two processes, in both directions.

// oxlint-disable typescript/no-explicit-any -- the values of calls have any type

import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'

import test, { type ExecutionContext } from 'ava'
import {
  connect,
  json,
  merge,
  RemoteError,
  RingfenceError,
  structured,
  type CallContext,
  type Channel,
  type Reservation,
} from 'ringfence'

import { abstractAddress, temporaryDirectory } from './support/address.js'
import { pattern } from './support/bytes.js'
import { urlOf } from './support/internals.js'
import { withoutMemory } from './support/memory.js'
import { joinHere, pair, Partner, type Pair, type PairSettings } from './support/partner.js'
import { isPending, within, blockUntil, turns, until } from './support/until.js'

const code = (name: string) => ({ instanceOf: RingfenceError, code: `ERR_RINGFENCE_${name}` })

interface HostileRequests {
  add?: number
  throws?: string
  back?: number
  waits?: boolean
}

/** A partner that serves numbers. */
async function serving(
  t: ExecutionContext,
  settings: PairSettings = {},
): Promise<Pair & { values: Channel<any, any> }> {
  const made = await pair(t, settings)
  await made.partner.run((kit) => {
    const values = kit.channel.with<unknown>(kit.ringfence.json())
    const reasons: unknown[] = []
    kit.keep['reasons'] = reasons
    kit.keep['served'] = values
      .serve(async (requests, { signal }) => {
        const { add, throws, back, waits } = requests as HostileRequests
        if (throws !== undefined) throw Object.assign(new RangeError(throws), { code: 'E_TEST' })
        if (back !== undefined) return values.call(back)
        if (waits !== true) return add! + 1
        reasons.push('waits')
        await new Promise((resolve) => signal.addEventListener('abort', resolve))
        reasons.push((signal.reason as { code: string }).code)
        return new Promise(() => {})
      })
      .then(
        () => 'resolved',
        (error: { code: string }) => error.code,
      )
  })
  return { ...made, values: made.channel.with<any>(json()) }
}

const reasonsOf = (partner: Partner) => partner.run((kit) => kit.keep['reasons'] as string[])
const servedOf = (partner: Partner) => partner.run((kit) => kit.keep['served'] as Promise<string>)
const reaches = (partner: Partner, reason: string) =>
  until(async () => (await reasonsOf(partner)).includes(reason), `the handler has ${reason}`)

test('a call returns the reply, and thousands in flight in both directions do', async (t) => {
  const { channel, values } = await serving(t)
  t.is(await values.call({ add: 1 }), 2)
  const numbers: number[] = []
  const own = values.serve((number: number) => {
    numbers.push(number)
    return 2 * number
  })
  const calls = Array.from({ length: 20_000 }, (_, n) => values.call(n % 2 === 0 ? { add: n } : { back: n }))
  t.true(channel.stats().callsInFlight > 16_000)
  const replies = await Promise.all(calls)
  t.true(replies.every((reply, n) => reply === (n % 2 === 0 ? n + 1 : 2 * n)))
  t.is(numbers.length, 10_000)
  t.is(channel.stats().callsInFlight, 0)
  t.true(await isPending(own))
})

test('the end rejects the open calls in their order, also after the first was answered', async (t) => {
  for (const isFirstAnswered of [false, true]) {
    const { channel, partner, values } = await serving(t)
    const rejected: number[] = []
    const waits = (number: number) => values.call({ waits: true }).catch(() => rejected.push(number))
    const first = isFirstAnswered ? values.call({ add: 0 }) : waits(0)
    const calls = [waits(1), waits(2)]
    if (isFirstAnswered) await first
    calls.push(waits(3))
    await reaches(partner, 'waits')
    await channel.close()
    await Promise.all([first, ...calls])
    t.deepEqual(rejected, isFirstAnswered ? [1, 2, 3] : [0, 1, 2, 3])
  }
})

test('the stack of an error shows the function that awaits the call', async (t) => {
  const { channel, partner } = await pair(t)
  await partner.run((kit) => {
    void kit.channel.serve(async (request) => {
      if (request.toString() === 'fails') throw new Error('as a test says')
      return new Promise<never>(() => {})
    })
  })
  const rejections: [string, () => Promise<unknown>][] = [
    ['of the handler', () => channel.call('fails')],
    ['timeout', () => channel.call('waits', { timeout: 1 })],
    ['connect', () => connect(abstractAddress())],
  ]
  const stackOf = async (make: () => Promise<unknown>): Promise<string | undefined> => {
    const theCaller = async () => void (await make())
    return (await t.throwsAsync(theCaller()))!.stack
  }
  for (const [name, make] of rejections) t.regex((await stackOf(make))!, /at async theCaller/, name)
  const reading = stackOf(() => channel.receive())
  const calling = stackOf(() => channel.call('waits'))
  await partner.kill()
  for (const stack of await Promise.all([reading, calling])) t.regex(stack!, /at async theCaller/)
})

test('replies come in any order, and bytes of any length', async (t) => {
  const { channel, partner } = await pair(t, { options: { capacity: 65_536 } })
  await partner.run((kit) => {
    let release!: () => void
    const second = new Promise<void>((resolve) => (release = resolve))
    void kit.channel.serve(async (request) => {
      if (request.length === 1) await second
      if (request.length === 2) release()
      return request
    })
  })
  const order: number[] = []
  await Promise.all([1, 2].map((length) => channel.call(pattern(0, length)).then((reply) => order.push(reply.length))))
  t.deepEqual(order, [2, 1])
  for (const length of [0, 3, 8, 4095, 30_000, 65_536, 5_000_000]) {
    const reply = await channel.call(pattern(length, length))
    t.true(reply.equals(pattern(length, length)), `${length}`)
  }
  t.is((await channel.call('text')).toString(), 'text')
})

test('the error of a handler arrives with its name, message and code', async (t) => {
  const { channel, values, partner } = await serving(t)
  const error = await t.throwsAsync(values.call({ throws: 'too far' }), { instanceOf: RemoteError })
  const { name, message, code: of } = error as RemoteError
  t.deepEqual({ name, message, code: of }, { name: 'RangeError', message: 'too far', code: 'E_TEST' })
  t.notRegex(error.stack!, /partner-process/)
  // The request is no JSON.
  const malformed = await t.throwsAsync(channel.call('{'), { instanceOf: RemoteError })
  t.is((malformed as RemoteError).code, 'ERR_RINGFENCE_MALFORMED')
  // The reply has no JSON.
  await t.throwsAsync(values.call({ back: 1 }, { timeout: 60_000, signal: AbortSignal.abort() }), { code: 'ABORT_ERR' })
  const long = await t.throwsAsync(values.call({ throws: 'é'.repeat(1_000_000) }), { instanceOf: RemoteError })
  t.true(long.message.length > 1000 && long.message.length < 10_000)
  t.is(await partner.run((kit) => kit.channel.stats().callsInFlight), 0)
})

test('a caller is told that the handler has returned a value that cannot be sent', async (t) => {
  const { channel, partner } = await pair(t)
  await partner.run((kit) => void kit.channel.serve((() => undefined) as any))
  await t.throwsAsync(channel.call('x'), {
    instanceOf: RemoteError,
    message:
      /^the handler of this call has returned a value that cannot be sent: a message must be bytes or a string, not undefined/,
  })
})

test('a caller gets the code of a RingfenceError that the codec of the handler throws', async (t) => {
  const { channel, partner } = await pair(t)
  await partner.run((kit) => {
    const encode = () => {
      throw new kit.ringfence.RingfenceError('NO_SPACE', 'no memory for the bytes')
    }
    void kit.channel.with({ encode, decode: String }).serve((request) => request)
  })
  await t.throwsAsync(channel.call('x'), {
    instanceOf: RemoteError,
    code: 'ERR_RINGFENCE_NO_SPACE',
    message: 'no memory for the bytes',
  })
})

test('values that a handler throws or returns, whatever they are', async (t) => {
  const { channel, partner } = await pair(t)
  const values = channel.with<any>(structured())
  await partner.run((kit) => {
    void kit.channel.with<any>(kit.ringfence.structured()).serve((what: string) => {
      if (what === 'undefined') return undefined
      if (what === 'function') return () => {}
      // oxlint-disable-next-line no-throw-literal
      if (what === 'text') throw 'a text'
      // oxlint-disable-next-line no-throw-literal
      if (what === 'nothing') throw undefined
      if (what === 'realm') kit.require('node:vm').runInNewContext('throw new RangeError("of a realm")')
      const hostile = Object.defineProperty(new Error('x'), 'name', {
        get() {
          throw new Error('no name')
        },
      })
      throw hostile
    })
  })
  t.is(await values.call('undefined'), undefined)
  const outcomes: unknown[] = []
  for (const what of ['function', 'text', 'nothing', 'realm', 'hostile']) {
    const { name, message, code: of } = (await t.throwsAsync(values.call(what))) as RemoteError
    outcomes.push([name, of, message.slice(0, 20)])
  }
  t.deepEqual(outcomes, [
    ['RingfenceError', 'ERR_RINGFENCE_INVALID_ARGUMENT', 'the handler of this '],
    ['Error', undefined, '"a text"'],
    ['Error', undefined, 'undefined'],
    ['RangeError', undefined, 'of a realm'],
    ['Error', undefined, 'x'],
  ])
  await t.throwsAsync(
    values.call(() => {}),
    code('INVALID_ARGUMENT'),
  )
})

test('a deadline and an abort reject the call and reach the handler', async (t) => {
  const { channel, values, partner } = await serving(t)
  const started = async () => (await reasonsOf(partner)).filter((what) => what === 'waits').length
  // A request that arrives after its deadline does not reach the handler.
  for (let timeout = 20; (await started()) === 0; timeout *= 2)
    await t.throwsAsync(values.call({ waits: true }, { timeout }), code('TIMEOUT'))
  await until(async () => (await reasonsOf(partner)).some((what) => /TIMEOUT|ABORT_ERR/.test(what)), 'it is aborted')
  const before = await started()
  const cause = new Error('as a test says')
  const controller = new AbortController()
  const call = values.call({ waits: true }, { signal: controller.signal })
  await until(async () => (await started()) > before, 'it waits')
  controller.abort(cause)
  t.is((await t.throwsAsync(call, { name: 'AbortError', code: 'ABORT_ERR' })).cause, cause)
  await reaches(partner, 'ABORT_ERR')
  t.is(await values.call({ add: 1 }), 2)
  t.is(channel.stats().callsInFlight, 0)
})

test('a handler that ends because of the deadline changes nothing about the outcome', async (t) => {
  const { channel, partner } = await pair(t)
  await partner.run((kit) => {
    void kit.channel.serve(async (request, { signal }) => {
      await new Promise((resolve) => signal.addEventListener('abort', resolve))
      if (String(request) === 'throws') throw signal.reason
      if (String(request) === 'throws another') throw new Error('aborted')
      return 'late'
    })
  })
  const calls = ['throws', 'throws another', 'replies'].flatMap((how) =>
    Array.from({ length: 50 }, (_, number) => channel.call(how, { timeout: 10 + number })),
  )
  for (const outcome of await Promise.allSettled(calls)) {
    if (outcome.status === 'fulfilled') return t.fail(String(outcome.value))
    const error = outcome.reason as Error
    t.true(error instanceof RingfenceError && (error.code as string) === 'ERR_RINGFENCE_TIMEOUT', String(error))
  }
})

// Serial: the event loop of this process stands still.
test.serial('a reply that is in the ring at the deadline is in time', async (t) => {
  const { channel, partner } = await pair(t)
  const [requests, replied] = ['asked', 'replied'].map((name) => join(temporaryDirectory(t), name)) as [string, string]
  await partner.run(
    (kit, from: string, to: string) => {
      const { existsSync: exists, writeFileSync: write } = kit.require('node:fs') as typeof import('node:fs')
      void kit.channel.serve(async (request) => {
        await kit.until.until(() => exists(from), 'the caller stands still')
        for (let number = 0; number < 100; number += 1) void kit.channel.send(Buffer.alloc(1000))
        // The reply is in the ring two turns later.
        setImmediate(() => setImmediate(() => write(to, '')))
        return request
      })
    },
    requests,
    replied,
  )
  const timeout = 4_000
  const call = channel.call('in time', { timeout })
  const due = performance.now() + timeout
  // The handler waits by now. After its immediates, the event loop runs its timers before it reads a socket.
  await pause(100)
  setImmediate(() => {
    writeFileSync(requests, '')
    blockUntil(() => existsSync(replied) && performance.now() > due + 10, 'the reply is in the ring')
  })
  t.is(String(await call), 'in time')
  t.is(channel.stats().lateReplies, 0)
  for (let number = 0; number < 100; number += 1) t.is((await channel.receive())!.length, 1000)
})

test('a reply that has crossed with its cancellation is dropped and counted', async (t) => {
  const { channel, partner } = await pair(t)
  await partner.run((kit) => void kit.channel.serve(() => 'reply'))
  await channel.call('')
  const controller = new AbortController()
  const call = channel.call('', { signal: controller.signal })
  await turns(1)
  await partner.run((kit) => kit.until.until(() => kit.channel.stats().messagesSent >= 2, 'it has replied'))
  // The reply is in the ring, and may have been read by now.
  controller.abort()
  const outcome = await call.then(
    () => 0,
    () => 1,
  )
  t.is((await channel.call('')).toString(), 'reply')
  t.is(channel.stats().lateReplies, outcome)
})

test('the context of a request has the deadline and the caller', async (t) => {
  const { channel, partner } = await pair(t)
  const contexts: CallContext[] = []
  void channel.serve((_, context) => {
    contexts.push(context)
    return ''
  })
  const before = Date.now()
  await partner.run(async (kit) => {
    await kit.channel.call('')
    await kit.channel.call('', { timeout: 60_000 })
  })
  t.is(contexts[0]!.deadline, undefined)
  t.true(contexts[1]!.deadline! > before && contexts[1]!.deadline! <= Date.now() + 60_001)
  t.false(contexts[1]!.signal.aborted)
  t.is(contexts[1]!.peer.pid, partner.pid)
})

test('messages stay in order for receive, whoever reads the ring', async (t) => {
  const { channel, partner } = await pair(t)
  await partner.run(async (kit) => {
    void kit.channel.serve(async (request) => {
      for (let number = 0; number < 3; number += 1) await kit.channel.send(`${request} ${number}`)
      return request
    })
  })
  for (const name of ['a', 'b']) t.is((await channel.call(name)).toString(), name)
  const received = []
  for (let number = 0; number < 6; number += 1) received.push(String(await channel.receive()))
  t.deepEqual(received, ['a 0', 'a 1', 'a 2', 'b 0', 'b 1', 'b 2'])
  // A waiting consumer also handles the frames that it reads.
  const waiting = channel.receive()
  const call = channel.call('c')
  t.is(String(await waiting), 'c 0')
  t.is(String(await call), 'c')
  const shown: string[] = []
  while (shown.length < 2)
    channel.receiveEach((bytes, offset, length) => shown.push(Buffer.from(bytes.buffer, offset, length).toString()))
  t.is(shown.length, 2)
  // The same for a merge. Calls are answered although the merge is not read.
  const merged = merge([channel])
  t.is(String(await channel.call('d')), 'd')
  const more = []
  for (let number = 0; number < 3; number += 1) more.push(String((await merged.receive())![1]))
  t.deepEqual(more, ['d 0', 'd 1', 'd 2'])
})

test('reading pauses once many messages wait for the program, and goes on when it takes them', async (t) => {
  const { channel, partner } = await pair(t, { options: { capacity: 1 << 20 } })
  await partner.run((kit) => void kit.channel.serve((request) => request))
  await channel.call('')
  const sending = partner.run(async (kit) => {
    for (let number = 0; number < 64; number += 1) await kit.channel.send(kit.bytes.pattern(number, 65_536))
  })
  // The call is behind the messages.
  await until(() => partner.run((kit) => kit.channel.bufferedAmount > 0), 'the ring is full')
  const call = channel.call('behind')
  t.true(await isPending(call))
  for (let number = 0; number < 64; number += 1)
    t.true((await channel.receive())!.equals(pattern(number, 65_536)), `${number}`)
  t.is(String(await call), 'behind')
  await sending
})

test('a lost peer rejects every pending call and serve, and aborts the handlers', async (t) => {
  const { channel, partner, values } = await serving(t)
  const reasons: unknown[] = []
  const own = channel.serve(async (_, { signal }) => {
    await new Promise((resolve) => signal.addEventListener('abort', resolve))
    reasons.push((signal.reason as RingfenceError).code)
    return ''
  })
  // The last ones wait on this side until others are answered.
  const calls = Array.from({ length: 20_000 }, () => values.call({ waits: true }))
  void partner.run((kit) => kit.channel.call('')).catch(() => {})
  await reaches(partner, 'waits')
  const outcomes = Promise.all([own, ...calls].map((call) => t.throwsAsync(call, code('PEER_LOST'))))
  await partner.kill()
  await within(outcomes, 'all of them')
  await until(() => reasons.length === 1, 'the handler is told')
  t.deepEqual(reasons, ['ERR_RINGFENCE_PEER_LOST'])
  await t.throwsAsync(values.call({ add: 1 }), code('PEER_LOST'))
})

test('a clean end is answered to the end: serve resolves, and its side ends too', async (t) => {
  const { channel, values, partner } = await serving(t)
  const calls = Array.from({ length: 10 }, (_, n) => values.call({ add: n }))
  await channel.end()
  t.deepEqual(
    await Promise.all(calls),
    calls.map((_, n) => n + 1),
  )
  t.is(await servedOf(partner), 'resolved')
  await t.throwsAsync(values.call({ add: 1 }), { instanceOf: RingfenceError })
})

test('a peer that ends without an answer rejects the calls', async (t) => {
  const { channel, partner, values } = await serving(t, { options: { allowHalfOpen: true } })
  const call = values.call({ waits: true })
  await reaches(partner, 'waits')
  await partner.run((kit) => kit.channel.end())
  await t.throwsAsync(call, code('PEER_LOST'))
  await channel.close()
})

test("this side's close rejects calls with CLOSED, and ends serve", async (t) => {
  const { channel, values, partner } = await serving(t)
  const own = channel.serve(() => '')
  const call = values.call({ waits: true })
  await reaches(partner, 'waits')
  await channel.close()
  await t.throwsAsync(call, code('CLOSED'))
  await own
  await t.throwsAsync(channel.call(''), code('CLOSED'))
  await t.throwsAsync(
    channel.serve(() => ''),
    code('INVALID_ARGUMENT'),
  )
  await reaches(partner, 'ERR_RINGFENCE_PEER_LOST')
})

test('wrong arguments, and a second serve', async (t) => {
  const { channel, values } = await serving(t)
  void channel.serve(() => '')
  for (const wrong of [() => values.serve(() => 1), () => channel.serve(5 as never)])
    await t.throwsAsync(wrong(), code('INVALID_ARGUMENT'))
  for (const options of [{ timeout: 0 }, { timeout: 'x' }, { signal: 5 }, { wait: 1 }])
    await t.throwsAsync(channel.call('', options as never), code('INVALID_ARGUMENT'))
  await t.throwsAsync(channel.call(5 as never), code('INVALID_ARGUMENT'))
  await t.throwsAsync(channel.call(Buffer.alloc(channel.maxMessageSize - 15)), code('MESSAGE_TOO_LARGE'))
  const other = await pair(t)
  for (const options of [{ concurrency: 0 }, { concurrency: 1.5 }, { most: 1 }])
    await t.throwsAsync(
      other.channel.serve(() => '', options as never),
      code('INVALID_ARGUMENT'),
    )
})

test('a reply that is too long is an error of its call', async (t) => {
  const { channel, partner } = await pair(t, { here: { maxMessageSize: 1000 } })
  await partner.run((kit) => void kit.channel.serve(() => kit.bytes.pattern(0, 2000)))
  const error = await t.throwsAsync(channel.call(''), { instanceOf: RemoteError })
  t.is((error as RemoteError).code, 'ERR_RINGFENCE_MESSAGE_TOO_LARGE')
})

test('concurrency limits the handlers, also those that ignore their signal', async (t) => {
  const { channel, partner } = await pair(t)
  const running: (() => void)[] = []
  let most = 0
  void channel.serve(
    async () => {
      await new Promise<void>((resolve) => {
        most = Math.max(most, running.push(resolve))
      })
      return ''
    },
    { concurrency: 3 },
  )
  await partner.run((kit) => {
    const controller = new AbortController()
    kit.keep['controller'] = controller
    kit.keep['calls'] = Promise.allSettled(
      Array.from({ length: 10 }, () => kit.channel.call('', { signal: controller.signal })),
    )
  })
  await until(() => running.length === 3, 'three run')
  await turns(3)
  t.is(running.length, 3)
  await partner.run(async (kit) => {
    ;(kit.keep['controller'] as AbortController).abort()
    await kit.keep['calls']
    kit.keep['calls'] = Promise.all(Array.from({ length: 4 }, () => kit.channel.call('')))
  })
  await turns(3)
  t.is(running.length, 3, 'the cancelled ones have not returned')
  // Requests whose cancellation was not read yet may still run, so the number of handlers is not known.
  let isDone = false
  const done = partner.run((kit) => kit.keep['calls']).then(() => (isDone = true))
  await until(() => {
    running.shift()?.()
    return isDone
  }, 'all are answered')
  await done
  t.is(most, 3)
})

test('calls go out once a reservation is committed', async (t) => {
  const { channel, partner } = await pair(t)
  await partner.run((kit) => void kit.channel.serve((request) => request))
  const reserved = channel.reserve(4)!
  const call = channel.call('held')
  t.true(await isPending(call))
  reserved.bytes.set([1, 2, 3, 4])
  reserved.commit()
  t.is(String(await call), 'held')
  let filled!: Promise<Buffer>
  channel.fill(1, (bytes, offset) => {
    filled = channel.call('while filling')
    bytes[offset] = 1
    return 1
  })
  t.is(String(await filled), 'while filling')
  t.deepEqual(await partner.run(async (kit) => [...(await kit.channel.receive())!]), [1, 2, 3, 4])
})

test('a call that waits polls first', async (t) => {
  const { channel, partner } = await pair(t, { options: { busyPollMicros: 1_000 } })
  await partner.run((kit) => void kit.channel.serve((request) => request))
  for (let number = 0; number < 50; number += 1) t.is(String(await channel.call(`${number}`)), `${number}`)
})

test('an abort after this side has ended its sending rejects the call', async (t) => {
  const { channel, values, partner } = await serving(t)
  const controller = new AbortController()
  const call = values.call({ waits: true }, { signal: controller.signal })
  await reaches(partner, 'waits')
  await channel.end()
  controller.abort()
  await t.throwsAsync(call, { name: 'AbortError' })
  await turns(2)
})

test('a close that drops the frames of a lost peer ends serve', async (t) => {
  const { channel, partner } = await pair(t, { options: { capacity: 4 << 20 } })
  const served = channel.serve(() => new Promise<string>(() => {}))
  const closed = channel.closed.then(() => channel.close())
  void partner
    .run((kit) => {
      for (let number = 0; number < 16_000; number += 1) void kit.channel.call('').catch(() => {})
      setImmediate(() => process.kill(process.pid, 'SIGKILL'))
    })
    .catch(() => {})
  // The event loop must find the frames and the loss together.
  await turns(1)
  const status = `/proc/${partner.pid}/status`
  // Missing: it has died in that turn, and was reaped.
  const isAlive = () => existsSync(status) && !/^State:\s+Z/m.test(readFileSync(status, 'latin1'))
  while (isAlive());
  await closed
  await within(t.throwsAsync(served, code('PEER_LOST')), 'serve has ended')
})

test('all answers that a peer has left are read', async (t) => {
  const { channel, partner } = await pair(t, { options: { capacity: 1 << 20 } })
  const count = 2000
  const file = join(temporaryDirectory(t), 'closed')
  await partner.run(
    (kit, last, name) => {
      let served = 0
      const close = async () => {
        await kit.channel.close()
        kit.require('node:fs').writeFileSync(name, '')
      }
      void kit.channel.serve((request) => {
        served += 1
        if (served === last) setImmediate(() => void close())
        return request
      })
    },
    count,
    file,
  )
  const calls = Array.from({ length: count }, (_, number) => channel.call(String(number)))
  // The event loop must find the answers and the end together.
  await Promise.resolve()
  await Promise.resolve()
  blockUntil(() => existsSync(file), 'the peer has closed')
  t.deepEqual((await within(Promise.all(calls), 'the calls')).map(Number), [...calls.keys()])
})

test('an answer that is read after the end loses no message behind it', async (t) => {
  const { channel, partner } = await pair(t, { options: { capacity: 8 << 20 } })
  await partner.run((kit) => {
    void kit.channel.serve(async () => {
      for (let number = 0; number < 40; number += 1) await kit.channel.send(kit.bytes.pattern(number, 65_536))
      setImmediate(() => {
        void kit.channel.send('last')
        void kit.channel.close()
      })
      return ''
    })
  })
  const call = channel.call('')
  call.catch(() => {})
  await channel.closed
  for (let number = 0; number < 40; number += 1) t.is((await channel.receive())!.length, 65_536)
  t.is(String(await channel.receive()), 'last')
  t.is(await channel.receive(), undefined)
  await within(Promise.allSettled([call]), 'the call')
})

test('a request that is never sent rejects its call', async (t) => {
  const { channel } = await serving(t)
  channel.reserve(4)
  const call = channel.call('')
  await channel.end()
  await within(t.throwsAsync(call, code('CLOSED')), 'the call')
  t.is(channel.stats().callsInFlight, 0)
})

test('the first call and serve after the end of the peer settle', async (t) => {
  const half = await pair(t, { options: { allowHalfOpen: true } })
  await half.partner.run((kit) => kit.channel.end())
  t.is(await half.channel.receive(), undefined)
  await within(t.throwsAsync(half.channel.call(''), code('PEER_LOST')), 'the call')
  await within(
    half.channel.serve(() => ''),
    'serve',
  )
  const whole = await pair(t)
  await whole.partner.run((kit) => kit.channel.close())
  await whole.channel.closed
  await whole.channel.serve(() => '')
  await t.throwsAsync(whole.channel.call(''), code('PEER_LOST'))
})

test('the end aborts the signals of handlers once it is complete', async (t) => {
  const { channel, partner } = await pair(t)
  const signal = await new Promise<AbortSignal>((resolve) => {
    void channel.serve((_, context) => {
      resolve(context.signal)
      return new Promise<string>(() => {})
    })
    void partner.run((kit) => kit.channel.call('').catch(() => {}))
  })
  channel.destroy()
  t.false(signal.aborted)
  await turns(1)
  t.true(signal.aborted)
})

test('calls that are made while a message is filled come before later ones', async (t) => {
  const { channel, partner } = await pair(t)
  await partner.run((kit) => void kit.channel.serve((request) => request))
  const calls: Promise<Buffer>[] = []
  channel.fill(1, () => {
    calls.push(channel.call('first'))
    return 1
  })
  calls.push(channel.call('second'))
  t.deepEqual((await Promise.all(calls)).map(String), ['first', 'second'])
})

test('a handler that transfers the memory of its request makes no other one empty', async (t) => {
  const { channel, partner } = await pair(t)
  await partner.run((kit) => {
    kit.keep['served'] = kit.channel.serve((request) => {
      const text = request.toString()
      // Transfers the memory on Node 20, and throws on later versions.
      if (text === '2') {
        try {
          new ReadableStream({ type: 'bytes', start: (controller) => controller.enqueue(request) })
        } catch {}
      }
      return text
    })
  })
  const requests = Array.from({ length: 10 }, (_, number) => String(number))
  const outcomes = await Promise.allSettled(requests.map((text) => channel.call(text)))
  for (const [number, outcome] of outcomes.entries()) {
    if (outcome.status === 'fulfilled') t.is(outcome.value.toString(), requests[number])
    else t.is((outcome.reason as RemoteError).code, 'ERR_RINGFENCE_INVALID_ARGUMENT')
  }
  t.is((await channel.call('again')).toString(), 'again')
})

test('a reply that waited for a reservation, and that there is no memory for, is answered with NO_SPACE', async (t) => {
  const { channel, partner } = await pair(t, { options: { capacity: 65_536, maxMessageSize: 1_000_000 } })
  const reserved = new Promise<Reservation>((resolve) => {
    void channel.serve(() => {
      resolve(channel.reserve(8)!)
      return Buffer.alloc(200_000)
    })
  })
  await partner.run((kit) => {
    kit.keep['answer'] = kit.channel.call('').then(
      () => 'a reply',
      (error: { code: string }) => error.code,
    )
  })
  const reservation = await reserved
  await turns(1)
  withoutMemory(() => reservation.cancel(), 4096)
  t.is(await partner.run((kit) => kit.keep['answer'] as Promise<string>), 'ERR_RINGFENCE_NO_SPACE')
})

test('calls need room for the shortest error', async (t) => {
  const { channel } = await pair(t, { options: { maxMessageSize: 27 } })
  await t.throwsAsync(channel.call(''), code('INVALID_ARGUMENT'))
  await t.throwsAsync(
    channel.serve(() => ''),
    code('INVALID_ARGUMENT'),
  )
})

/** A frame as docs/internals/protocol.md describes it. */
function frame(kind: number, id: number, body = Buffer.alloc(0), remaining = 0): Buffer {
  const head = Buffer.alloc(16)
  head.writeUInt32LE(kind, 0)
  head.writeUInt32LE(remaining, 4)
  head.writeBigUInt64LE(BigInt(id), 8)
  return Buffer.concat([head, body])
}

const HOSTILE: [what: string, frames: Buffer[], zeros?: number][] = [
  ['no head', [Buffer.alloc(15)]],
  ['an unknown kind', [frame(6, 0)]],
  ['a kind of nothing', [frame(0, 0)]],
  ['a reply with a deadline', [frame(2, 0, undefined, 1)]],
  ['a cancellation with a body', [frame(1, 0), frame(4, 0, Buffer.alloc(1))]],
  ['a reply to nothing', [frame(2, 7)]],
  ['a reply twice', [frame(2, 0), frame(2, 0)]],
  ['an answer to a cancellation that was not sent', [frame(5, 0)]],
  ['a request out of turn', [frame(1, 1)]],
  ['a request twice', [frame(1, 0), frame(1, 0)]],
  ['a cancellation of nothing', [frame(4, 0)]],
  ['a number beyond all', [frame(2, 2 ** 53)]],
  ['an error that is cut', [frame(3, 0, Buffer.from([1, 0, 0, 0]))]],
  ['an error with more behind it', [frame(3, 0, Buffer.alloc(13))]],
  ['an error that is no UTF-8', [frame(3, 0, Buffer.from([1, 0, 0, 0, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]))]],
  ['more requests than a caller may have', Array.from({ length: 32_769 }, (_, id) => frame(1, id))],
  ['more bytes than a caller may have', Array.from({ length: 40 }, (_, id) => frame(1, id)), 1 << 20],
]

/** Joins with a partner that has the binding alone, and may send any frame. */
async function rawPair(t: ExecutionContext) {
  const address = abstractAddress()
  const partner = await Partner.start(t)
  const joined = joinHere(t, address)
  await partner.run(
    async (kit, url: string, where: string) => {
      const { native, withOperations } = (await import(url)) as any
      kit.keep['native'] = await new Promise((resolve, reject) => {
        native.begin('join', where, { useLibuv: true }, (failure: unknown, raw: unknown) =>
          raw === null ? reject(failure) : resolve(withOperations(raw)),
        )
      })
    },
    urlOf('native.js'),
    address,
  )
  return { channel: await joined, partner }
}

test('a flood of cancellations does not stop the event loop at a deadline', async (t) => {
  const { channel, partner } = await rawPair(t)
  const served = channel.serve(() => 'reply')
  const stop = join(temporaryDirectory(t), 'stop')
  const call = channel.call('never answered', { timeout: 500 })
  const flood = partner.run(
    async (kit, url: string, frames: Uint8Array[], stopped: string) => {
      const { CALL, FLAGS } = (await import(url)) as any
      const { existsSync: exists } = kit.require('node:fs') as typeof import('node:fs')
      const raw = kit.keep['native'] as any
      raw.send(Buffer.from(frames[0]!), 0, CALL)
      const [record, arena] = [24, Buffer.alloc(24_000)]
      for (let at = 0; at < arena.length; at += record) {
        arena.writeUInt32LE(16, at)
        arena.writeUInt32LE((FLAGS | CALL) >>> 0, at + 4)
        arena.set(frames[1]!, at + 8)
      }
      for (let at = 0; !exists(stopped);)
        for (let count = 0; count < 100; count += 1) at = (at + raw.flush(arena, at, arena.length)) % arena.length
    },
    urlOf('native.js'),
    [frame(1, 0), frame(4, 0)],
    stop,
  )
  await t.throwsAsync(call, code('TIMEOUT'))
  // Only a turn of the event loop ends the flood.
  writeFileSync(stop, '')
  await flood
  await channel.close()
  await served
})

for (const [what, frames, zeros = 0] of HOSTILE)
  test(`the channel ends as corrupt: ${what}`, async (t) => {
    const { channel, partner } = await rawPair(t)
    const served = channel.serve(() => new Promise<string>(() => {}))
    const call = channel.call('')
    await partner.run(
      async (kit, url: string, all: Uint8Array[], behind: number) => {
        const { CALL, WHOLE } = (await import(url)) as any
        const raw = kit.keep['native'] as any
        for (const head of all) {
          const each = Buffer.concat([head, Buffer.alloc(behind)])
          let sent = 0
          while (sent !== WHOLE && sent !== -1) {
            sent = raw.send(each, Math.max(sent, 0), CALL)
            if (sent < 0) continue
            await new Promise((resolve) => setImmediate(resolve))
            // The other side may have ended the channel.
            if (raw.listen() !== 0) return
          }
          if (sent === -1) break
        }
      },
      urlOf('native.js'),
      frames,
      zeros,
    )
    await t.throwsAsync(served, code('RING_CORRUPT'))
    const outcome = await call.then(
      () => 'a reply',
      (error: RingfenceError) => error.code,
    )
    t.true(['ERR_RINGFENCE_RING_CORRUPT', 'a reply'].includes(outcome))
  })
