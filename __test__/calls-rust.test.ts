// Calls between a Node process and a Rust process, in both directions.

import test, { type ExecutionContext } from 'ava'
import { RemoteError, RingfenceError, type Channel, type Options } from 'ringfence'

import { abstractAddress, untilBound } from './support/address.js'
import { pattern } from './support/bytes.js'
import { joinHere } from './support/partner.js'
import { RustPartner, rustPartner, type RustSettings } from './support/rust.js'
import { isPending } from './support/until.js'

const CAPACITY = 8192
const LONGEST = 100_000
const NODE: Options = { capacity: CAPACITY, maxMessageSize: LONGEST, policy: { executable: rustPartner } }
const SIZES = [0, 1, 8, 100, CAPACITY / 8, CAPACITY / 2, CAPACITY, LONGEST / 2 - 16]

const lost = { instanceOf: RingfenceError, code: 'ERR_RINGFENCE_PEER_LOST' }

async function meet(
  t: ExecutionContext,
  settings: Pick<RustSettings, 'deed' | 'sizes'>,
): Promise<{ channel: Channel; rust: RustPartner }> {
  const address = abstractAddress()
  const rust = new RustPartner(t, { address, capacity: CAPACITY, longest: LONGEST, ...settings })
  await untilBound(address)
  const channel = await joinHere(t, address, NODE)
  t.is(await rust.readLine(), `host ${process.pid}`)
  return { channel, rust }
}

test('a Rust process serves a Node process: replies of every size, thousands in flight, and messages beside them', async (t) => {
  const { channel, rust } = await meet(t, { deed: 'answer' })
  for (const [number, size] of SIZES.entries()) {
    const request = pattern(number, size)
    t.deepEqual(await channel.call(request), Buffer.concat([request, request]))
  }
  void channel.serve((request) => `${request.toString()} to Node`)
  t.is((await channel.call('back')).toString(), 'from Rust to Node')
  await channel.send('a message')
  const numbers = Array.from({ length: 5000 }, (_, number) => String(number))
  const replies = await Promise.all(numbers.map((number) => channel.call(number)))
  t.true(replies.every((reply, number) => reply.toString() === numbers[number]!.repeat(2)))
  t.is((await channel.receive())?.toString(), 'a message')
  await channel.end()
  for (let thread = 0; thread < 4; thread += 1) t.is(await rust.readLine(), 'served')
  t.deepEqual(await rust.exited, [0, null])
})

test('errors, panics, deadlines and aborts travel to a Rust process and back', async (t) => {
  const { channel, rust } = await meet(t, { deed: 'answer' })
  const failed = await t.throwsAsync(channel.call('fail'), { instanceOf: RemoteError, code: 'E_NO' })
  t.deepEqual([failed?.name, failed?.message], ['RangeError', 'not today'])
  await t.throwsAsync(channel.call('panic'), { instanceOf: RemoteError, message: 'the handler has panicked' })
  const late = channel.call('hang', { timeout: 50 })
  await t.throwsAsync(late, { code: 'ERR_RINGFENCE_TIMEOUT' })
  const abort = new AbortController()
  const aborted = channel.call('hang', { signal: abort.signal })
  // Two threads print. A request that arrives after its deadline is not handled.
  const lines: string[] = []
  const untilLine = async (wanted: string) => {
    while (![wanted, '(the end)'].some((line) => lines.includes(line))) lines.push(await rust.readLine())
    t.true(lines.includes(wanted), String(lines))
  }
  await untilLine('hangs')
  abort.abort()
  await t.throwsAsync(aborted, { name: 'AbortError' })
  await untilLine('cancelled')
  if (lines.includes('hangs until its deadline')) await untilLine('cancelled at its deadline')
  t.is((await channel.call('still ')).toString(), 'still still ')
  t.is(channel.stats().callsInFlight, 0)
})

test('each pending call to a killed Rust process fails', async (t) => {
  const { channel, rust } = await meet(t, { deed: 'answer' })
  // The last ones wait on this side until others are answered.
  const calls = Array.from({ length: 20_000 }, () => channel.call('hang'))
  t.is(await rust.readLine(), 'hangs')
  await rust.kill()
  for (const call of calls) await t.throwsAsync(call, lost)
})

test('a Node process serves a Rust process, and its pending call fails when the channel is destroyed', async (t) => {
  const { channel, rust } = await meet(t, { deed: 'ask', sizes: SIZES })
  const aborts: string[] = []
  const serving = channel.serve(async (request, { signal, deadline }) => {
    const text = request.toString('latin1')
    if (text === 'fail') throw Object.assign(new RangeError('not today'), { code: 'E_NO' })
    if (text === 'due') return `due ${deadline! > Date.now() && deadline! <= Date.now() + 60_000}`
    if (text !== 'hang') return request
    await new Promise((resolve) => signal.addEventListener('abort', resolve))
    if (deadline === undefined) aborts.push('cancelled')
    return request
  })
  t.is(await rust.readLine(), `asked ${SIZES.length}`)
  t.is(await rust.readLine(), 'RangeError: not today E_NO')
  t.is(await rust.readLine(), 'due true')
  t.is(await rust.readLine(), 'TIMED_OUT')
  t.is(await rust.readLine(), 'the first hangs')
  t.is(await rust.readLine(), 'asked 2000')
  t.deepEqual(aborts, ['cancelled'])
  t.true(await isPending(serving))
  channel.destroy()
  t.is(await rust.readLine(), 'PEER_LOST')
  t.deepEqual(await rust.exited, [0, null])
})
