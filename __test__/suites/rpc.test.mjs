// Libraries of calls: vscode-jsonrpc over `duplex()` and over a port, birpc, comlink and capnweb over a port.

import assert from 'node:assert/strict'

import { createBirpc } from 'birpc'
import { newMessagePortRpcSession, RpcTarget } from 'capnweb'
import * as comlink from 'comlink'
import * as rpc from 'vscode-jsonrpc/node'

import { failure, suite } from './support.mjs'

const lines = {
  stream(channel) {
    const stream = channel.duplex()
    return rpc.createMessageConnection(new rpc.StreamMessageReader(stream), new rpc.StreamMessageWriter(stream))
  },
  port(channel) {
    const port = channel.port()
    return rpc.createMessageConnection(new rpc.PortMessageReader(port), new rpc.PortMessageWriter(port))
  },
}

const functions = {
  add: (a, b) => a + b,
  echo: (value) => value,
  fail() {
    throw new RangeError('not today')
  },
  hang: () => new Promise(() => {}),
}

class Counter {
  count = 0

  constructor(first = 0) {
    this.count = first
  }

  add(number) {
    return (this.count += number)
  }
}

class Target extends RpcTarget {
  add(a, b) {
    return a + b
  }

  fail() {
    throw new RangeError('not today')
  }

  hang() {
    return new Promise(() => {})
  }

  self() {
    return this
  }

  async each(values, callback) {
    const answers = []
    for (const value of values) answers.push(await callback(value))
    return answers
  }
}

const { test } = await suite(import.meta.url, {
  jsonrpc(channel, line) {
    const connection = lines[line](channel)
    for (const name of ['add', 'fail']) connection.onRequest(name, functions[name])
    connection.onRequest(
      'waits',
      (token) =>
        new Promise((resolve) => {
          // No event reports a call that was cancelled before it started.
          if (token.isCancellationRequested) resolve('cancelled')
          else token.onCancellationRequested(() => resolve('cancelled'))
        }),
    )
    connection.onRequest('hang', functions.hang)
    connection.onRequest('asks', (value) => connection.sendRequest('double', value))
    connection.onRequest('reports', (token) => {
      for (const value of [1, 2, 3]) void connection.sendProgress(new rpc.ProgressType(), token, value)
    })
    connection.onNotification('note', (value) => void connection.sendNotification('noted', value))
    connection.listen()
  },
  birpc(channel) {
    const port = channel.port()
    const remote = createBirpc(
      { ...functions, asks: (value) => remote.double(value), tell: (value) => void remote.told.asEvent(value) },
      { post: (message) => port.postMessage(message), on: (listener) => port.on('message', listener) },
    )
  },
  comlink(channel) {
    const callable = Object.assign((value) => `called with ${value}`, functions, {
      Counter,
      value: 5,
      deep: { value: 6 },
    })
    comlink.expose(callable, channel.port())
  },
  capnweb(channel) {
    newMessagePortRpcSession(channel.port(), new Target())
  },
})

const noListener = () => {}

for (const line of Object.keys(lines)) {
  const jsonrpc = (title, act) =>
    test(
      `vscode-jsonrpc over a ${line}: ${title}`,
      'jsonrpc',
      async (channel, child) => {
        const connection = lines[line](channel)
        connection.onError(noListener)
        connection.onRequest('double', (value) => value * 2)
        await act(connection, child)
        connection.dispose()
      },
      line,
    )
  jsonrpc('calls both ways, and an error', async (connection) => {
    connection.listen()
    assert.equal(await connection.sendRequest('add', 2, 3), 5)
    assert.equal(await connection.sendRequest('asks', 21), 42)
    assert.match((await failure(connection.sendRequest('fail'))).message, /not today/)
    assert.equal((await failure(connection.sendRequest('unknown'))).code, rpc.ErrorCodes.MethodNotFound)
  })
  jsonrpc('a thousand calls at once', async (connection) => {
    connection.listen()
    const numbers = Array.from({ length: 1000 }, (_, number) => number)
    const answers = await Promise.all(numbers.map((number) => connection.sendRequest('add', number, 1)))
    assert.deepEqual(
      answers,
      numbers.map((number) => number + 1),
    )
  })
  jsonrpc('notifications in their order', async (connection) => {
    const noted = []
    const all = new Promise((resolve) => {
      connection.onNotification('noted', (value) => noted.push(value) === 100 && resolve())
    })
    connection.listen()
    for (let number = 0; number < 100; number += 1) void connection.sendNotification('note', number)
    await all
    assert.deepEqual(
      noted,
      Array.from({ length: 100 }, (_, number) => number),
    )
  })
  jsonrpc('a call is cancelled, and another tells its progress', async (connection) => {
    connection.listen()
    const source = new rpc.CancellationTokenSource()
    const waits = connection.sendRequest('waits', source.token)
    setImmediate(() => source.cancel())
    assert.equal(await waits, 'cancelled')
    const values = []
    connection.onProgress(new rpc.ProgressType(), 'here', (value) => values.push(value))
    await connection.sendRequest('reports', 'here')
    assert.deepEqual(values, [1, 2, 3])
  })
  jsonrpc('a peer that is killed closes the connection', async (connection, child) => {
    const closed = new Promise((resolve) => connection.onClose(resolve))
    connection.listen()
    await connection.sendRequest('add', 1, 1)
    child.kill('SIGKILL')
    await closed
  })
}

const birpc = (title, act) =>
  test(`birpc: ${title}`, 'birpc', async (channel, child) => {
    const port = channel.port()
    const told = []
    const remote = createBirpc(
      { double: (value) => value * 2, told: (value) => void told.push(value) },
      {
        post: (message) => port.postMessage(message),
        on: (listener) => port.on('message', listener),
        off: (listener) => port.off('message', listener),
        timeout: 10_000,
      },
    )
    port.on('close', () => remote.$close(new Error('the peer is gone')))
    await act(remote, told, child)
    port.close()
  })

birpc('calls both ways, values of all kinds, and an error', async (remote) => {
  assert.equal(await remote.add(2, 3), 5)
  assert.equal(await remote.asks(21), 42)
  const value = { map: new Map([[1, new Date(0)]]), bytes: new Uint8Array([1, 2]), big: 1n, nothing: undefined }
  assert.deepEqual(await remote.echo(value), value)
  assert.match((await failure(remote.fail())).message, /not today/)
})

birpc('a thousand calls at once, and events', async (remote, told) => {
  const answers = await Promise.all(Array.from({ length: 1000 }, (_, number) => remote.add(number, 1)))
  assert.deepEqual(
    answers,
    Array.from({ length: 1000 }, (_, number) => number + 1),
  )
  for (const value of [1, 2]) await remote.tell(value)
  await remote.echo(0)
  assert.deepEqual(told, [1, 2])
})

birpc('a peer that is killed rejects all calls', async (remote, _, child) => {
  await remote.echo(0)
  const calls = Array.from({ length: 20 }, () => failure(remote.hang()))
  child.kill('SIGKILL')
  for (const error of await Promise.all(calls)) assert.ok(error instanceof Error)
})

const overComlink = (title, act) =>
  test(`comlink: ${title}`, 'comlink', async (channel) => {
    const port = channel.port()
    const remote = comlink.wrap(port)
    await act(remote)
    port.close()
  })

overComlink('a function, its properties, and what they are set to', async (remote) => {
  assert.equal(await remote('this'), 'called with this')
  assert.equal(await remote.value, 5)
  assert.equal(await remote.deep.value, 6)
  await (remote.value = 7)
  assert.equal(await remote.value, 7)
})

overComlink('calls, and an error with its name', async (remote) => {
  assert.equal(await remote.add(2, 3), 5)
  const answers = await Promise.all(Array.from({ length: 500 }, (_, number) => remote.add(number, 1)))
  assert.deepEqual(
    answers,
    Array.from({ length: 500 }, (_, number) => number + 1),
  )
  const error = await failure(remote.fail())
  assert.deepEqual([error.name, error.message], ['RangeError', 'not today'])
})

overComlink('an object by reference', async (remote) => {
  const counter = await new remote.Counter(1)
  assert.equal(await counter.add(1), 2)
})

const overCapnweb = (title, act) =>
  test(`capnweb: ${title}`, 'capnweb', async (channel, child) => {
    const port = channel.port()
    const remote = newMessagePortRpcSession(port)
    await act(remote, child, port)
    remote[Symbol.dispose]()
    port.close()
  })

overCapnweb('calls, and an error with its name', async (remote) => {
  assert.equal(await remote.add(2, 3), 5)
  const answers = await Promise.all(Array.from({ length: 500 }, (_, number) => remote.add(number, 1)))
  assert.deepEqual(
    answers,
    Array.from({ length: 500 }, (_, number) => number + 1),
  )
  const error = await failure(remote.fail())
  assert.deepEqual([error.name, error.message], ['RangeError', 'not today'])
})

overCapnweb('a call upon an answer that has not come, and a callback', async (remote) => {
  assert.equal(await remote.self().self().add(20, 22), 42)
  assert.deepEqual(await remote.each([1, 2, 3], (value) => value * 2), [2, 4, 6])
})

overCapnweb('a peer that is killed rejects all calls', async (remote, child, port) => {
  assert.equal(await remote.add(1, 1), 2)
  const calls = Array.from({ length: 20 }, () => failure(remote.hang()))
  const closed = new Promise((resolve) => port.once('close', resolve))
  child.kill('SIGKILL')
  await closed
  const late = new Promise((resolve) => setTimeout(resolve, 2000, 'still pending'))
  assert.notEqual(await Promise.race([Promise.all(calls), late]), 'still pending')
})
