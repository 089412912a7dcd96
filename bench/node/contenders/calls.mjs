// Calls without an RPC library: the request is a number of eight bytes, and the reply the next number.

import os from 'node:os'
import path from 'node:path'
import process from 'node:process'

import { optional } from '../optional.mjs'
import { contender, own, ringfence } from './contender.mjs'
import { open } from './rpc.mjs'

const grpc = await optional('../deps/grpc.mjs')

/** Microseconds of spinning if both sides poll, longer than any round trip between two awake cores. */
const BUSY_POLL = 200

const read = (bytes) => bytes.readDoubleLE()

function number(n) {
  const bytes = Buffer.allocUnsafe(8)
  bytes.writeDoubleLE(n)
  return bytes
}

/** Both sides of `channel.call`. */
export async function called(channel, { side }, counter) {
  if (side === 'b') void channel.serve((request) => number(counter.bump(read(request))))
  return { bump: async (n) => read(await channel.call(number(n))) }
}

/** A message each way, without call ids. */
async function sent(channel, { side }, counter) {
  async function answer() {
    for await (const message of channel) void channel.send(number(counter.bump(read(message))))
  }
  if (side === 'b') void answer()
  return {
    async bump(n) {
      void channel.send(number(n))
      return read(await channel.receive())
    },
  }
}

const over = (ends, busyPollMicros) => async (setup, counter) =>
  ends(await ringfence.join(`@${setup.job.tag}`, { busyPollMicros }), setup, counter)

/** The channel of `fork()`, with a number for each call, as a program would add it. */
async function forked({ side, child }, counter) {
  const end = side === 'a' ? child : process
  const pending = new Map()
  let last = 0
  end.on('message', ({ id, n, next }) => {
    if (side === 'b') {
      end.send({ id, next: counter.bump(n) })
      return
    }
    pending.get(id)(next)
    pending.delete(id)
  })
  return {
    bump: (n) =>
      new Promise((resolve) => {
        pending.set(++last, resolve)
        end.send({ id: last, n })
      }),
  }
}

async function remote({ side, job, line }, counter) {
  const where = `unix:${path.join(os.tmpdir(), `${job.tag}.grpc`)}`
  const method = '/bench.Counter/Bump'
  const itself = (bytes) => bytes
  if (side === 'b') {
    const types = {
      requestSerialize: itself,
      responseSerialize: itself,
      requestDeserialize: itself,
      responseDeserialize: itself,
    }
    const service = { bump: { path: method, requestStream: false, responseStream: false, ...types } }
    const server = new grpc.Server()
    server.addService(service, { bump: ({ request }, answer) => answer(null, number(counter.bump(read(request)))) })
    await new Promise((resolve, reject) =>
      server.bindAsync(where, grpc.ServerCredentials.createInsecure(), (error) => (error ? reject(error) : resolve())),
    )
    line.send('bound')
    return null
  }
  await line.receive()
  const client = new grpc.Client(where, grpc.credentials.createInsecure())
  return {
    bump: (n) =>
      new Promise((resolve, reject) => {
        const settle = (error, next) => (error ? reject(error) : resolve(read(next)))
        client.makeUnaryRequest(method, itself, itself, number(n), settle)
      }),
  }
}

const inTurn = (_, size) => (size === 1 ? null : 'one at a time only: messages have no call id')
const timed = { times: true }
const inOrder = { ...timed, takes: inTurn }
const by = (connect) => (setup) => open(setup, (counter) => connect(setup, counter))

export const calls = [
  own('message/ringfence', 'send and receive, both sides asleep between', by(over(sent, 0)), inOrder),
  own('call/ringfence', 'call and serve, both sides asleep between', by(over(called, 0)), timed),
  own('message-polled/ringfence', 'send and receive, both sides poll', by(over(sent, BUSY_POLL)), inOrder),
  own('call-polled/ringfence', 'call and serve, both sides poll', by(over(called, BUSY_POLL)), timed),
  contender('advanced/child-process', 'node', "the channel of fork(), serialization 'advanced'", by(forked), {
    ...timed,
    ipc: 'advanced',
  }),
  contender('grpc/unix', '@grpc/grpc-js', 'a unary call over a Unix socket, without generated code', by(remote), {
    ...timed,
    unavailable: grpc.why,
  }),
]
