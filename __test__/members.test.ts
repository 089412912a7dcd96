// A program can reach by name only what the published declarations have: nothing internal, with which it could break its own channel.

import { EventEmitter, once } from 'node:events'
import { Duplex } from 'node:stream'
import { fileURLToPath } from 'node:url'

import test, { type ExecutionContext } from 'ava'
import { json, member, merge, publish, RingfenceError, subscribe, type CallContext, type Subscriber } from 'ringfence'
import ts from 'typescript'

import { abstractAddress } from './support/address.js'
import { listenHere, pair } from './support/partner.js'

const declarations = fileURLToPath(new URL('../../dist/esm/index.d.ts', import.meta.url))
const program = ts.createProgram([declarations], {
  target: ts.ScriptTarget.ES2022,
  module: ts.ModuleKind.NodeNext,
  lib: ['lib.es2022.d.ts', 'lib.esnext.disposable.d.ts'],
  types: ['node'],
})
const checker = program.getTypeChecker()
const index = checker.getSymbolAtLocation(program.getSourceFile(declarations)!)!
const exported = new Map(checker.getExportsOfModule(index).map((symbol) => [symbol.name, symbol]))

/** The classes of the engine and of Node, whose members every object of theirs has. */
const platform = new Set<unknown>([Object.prototype, Error.prototype, EventEmitter.prototype, Duplex.prototype])
const ofInstances = [new EventEmitter(), new Duplex(), new Error('any')].flatMap((instance) =>
  Object.getOwnPropertyNames(instance),
)
const ofConstructors = ['length', 'name', 'prototype']
/** `duplex()` documents these, and Node calls the last one. */
const ofSockets = ['bytesRead', 'bytesWritten', 'destroySoon', 'readyState', 'ref', 'unref', '_final']
ofSockets.push('setTimeout', 'setKeepAlive', 'setNoDelay')

/** The public names of a type. */
function namesOf(type: ts.Type): string[] {
  const isPublic = ({ declarations: [first] = [] }: ts.Symbol) =>
    first === undefined || (ts.getCombinedModifierFlags(first) & ts.ModifierFlags.NonPublicAccessibilityModifier) === 0
  return checker
    .getPropertiesOfType(type)
    .filter(isPublic)
    .map(({ name }) => name)
}

/** The declared names of a class or interface, and those of its constructor; none for a class of Node. */
function declared(name: string): { members: string[]; statics: string[] } {
  const alias = exported.get(name)
  if (alias === undefined) return { members: [], statics: [] }
  const symbol = (alias.flags & ts.SymbolFlags.Alias) === 0 ? alias : checker.getAliasedSymbol(alias)
  const isClass = (symbol.flags & ts.SymbolFlags.Class) !== 0
  return {
    members: namesOf(checker.getDeclaredTypeOfSymbol(symbol)),
    statics: isClass ? namesOf(checker.getTypeOfSymbol(symbol)) : [],
  }
}

/** Fails if a program reaches more of an object, or of its constructors, than the type has. */
function ensureDeclared(t: ExecutionContext, object: object, type: string, more: string[] = []): void {
  const { members, statics } = declared(type)
  const known = new Set([...members, ...statics, ...more, ...ofInstances, ...ofConstructors])
  const reached: string[] = []
  let at = object
  for (; !platform.has(at); at = Object.getPrototypeOf(at)) {
    reached.push(...Object.getOwnPropertyNames(at))
    if (at.constructor !== Object) reached.push(...Object.getOwnPropertyNames(at.constructor))
  }
  const inherited = at
  t.deepEqual(
    reached.filter((name) => !known.has(name) && !(name in inherited)),
    [],
    type,
  )
}

test('public objects have the declared members and no others', async (t) => {
  const { channel, partner, address } = await pair(t, { options: { attachments: { sealed: true, descriptors: true } } })
  ensureDeclared(t, channel, 'Channel')
  ensureDeclared(t, channel.with(json()), 'Channel')
  ensureDeclared(t, channel.batches(), 'Loop')
  ensureDeclared(t, channel[Symbol.asyncIterator](), 'Loop')
  ensureDeclared(t, channel.tokens()[Symbol.asyncIterator](), 'Loop')
  const reservation = channel.reserve(8)!
  ensureDeclared(t, reservation, 'Reservation')
  reservation.cancel()

  await partner.run(async ({ channel: there, ringfence }) => {
    await there.send('', { attachments: [ringfence.SealedBuffer.from(new Uint8Array(1)), { fd: 0 }] })
  })
  const [sealed, descriptor] = (await channel.receive())!.attachments!
  ensureDeclared(t, sealed!, 'SealedBuffer')
  ensureDeclared(t, descriptor!, 'ReceivedDescriptor')

  const called = new Promise<CallContext>((resolve) => {
    void channel.serve((request, context) => {
      resolve(context)
      return request
    })
  })
  await partner.run(({ channel: there }) => void there.call('request'))
  ensureDeclared(t, await called, 'CallContext')

  const error = t.throws(() => channel.sendToken(-1), { instanceOf: RingfenceError })
  ensureDeclared(t, error, 'RingfenceError')
  ensureDeclared(t, channel.port(), 'MessagePortLike')
  ensureDeclared(t, channel.duplex(), 'Duplex', ofSockets)
  t.deepEqual(
    Object.keys(channel).filter((name) => !name.startsWith('_')),
    ['address', 'closed', 'role', 'capacity', 'maxMessageSize'],
  )

  const listener = await listenHere(t, abstractAddress())
  ensureDeclared(t, listener, 'Listener')
  ensureDeclared(t, listener[Symbol.asyncIterator](), 'Loop')
  const merged = listener.messages()
  ensureDeclared(t, merged, 'Merge')
  ensureDeclared(t, merge([channel])[Symbol.asyncIterator](), 'Loop')

  const membership = await member(abstractAddress())
  t.teardown(() => membership.close())
  ensureDeclared(t, membership, 'Membership')

  const publisher = await publish(abstractAddress())
  t.teardown(() => publisher.close())
  ensureDeclared(t, publisher, 'Publisher')
  ensureDeclared(t, publisher.with(json()), 'Publisher')
  const connection = once(publisher, 'connection') as Promise<[Subscriber]>
  await partner.run(async ({ keep, ringfence }, where) => {
    keep['subscription'] = await ringfence.subscribe(where)
  }, publisher.address)
  ensureDeclared(t, (await connection)[0], 'Subscriber')

  const other = `${address}-publisher`
  await partner.run(async ({ keep, ringfence }, where) => {
    keep['publisher'] = await ringfence.publish(where)
  }, other)
  const subscription = await subscribe(other)
  t.teardown(() => subscription.close())
  ensureDeclared(t, subscription, 'Subscription')
  ensureDeclared(t, subscription.with(json()), 'Subscription')
})
