// The answers of the callback `authorize`, and how the binding gets them. policy.test.ts asks it about real processes.

import test, { type ExecutionContext } from 'ava'
import type { Identity, Policy } from 'ringfence'

import { internals } from './support/internals.js'

interface Authorizer {
  answer: ((id: number, verdict: number, found: string) => void) | undefined
  ask(id: number, identity: Identity): void
  causeOf(failure: { question?: number } | null): unknown
}

interface Insides {
  Authorizer: { of(policy: object | undefined): Authorizer | undefined }
}

/** Not exported by the package. */
const { Authorizer } = await internals<Insides>('endpoint/authorize.js')

const [NO, YES, FAILED] = [0, 1, 2]
const identity = { pid: 1, uid: 2 } as unknown as Identity

type Answer = [id: number, verdict: number, found: string]

/** Calls this callback, and waits for the answer. */
async function ask(t: ExecutionContext, authorize: unknown): Promise<{ answer: Answer; cause: unknown }> {
  const authorizer = Authorizer.of({ authorize })!
  const answer = await new Promise<Answer>((resolve) => {
    authorizer.answer = (...given) => resolve(given)
    authorizer.ask(7, identity)
  })
  t.is(authorizer.causeOf(null), undefined)
  t.is(authorizer.causeOf({}), undefined)
  const cause = authorizer.causeOf({ question: 7 })
  t.is(authorizer.causeOf({ question: 7 }), undefined, 'a cause is told once')
  return { answer, cause }
}

test('a policy without the callback asks nothing', (t) => {
  for (const policy of [undefined, {}, { uid: 0 }, { authorize: undefined }]) t.is(Authorizer.of(policy), undefined)
})

test('the callback is a method of its policy, and is asked once, with the identity', async (t) => {
  const asked: unknown[] = []
  const policy: Policy = {
    authorize(this: unknown, ...given: unknown[]) {
      asked.push(this, ...given)
      return true
    },
  }
  const authorizer = Authorizer.of(policy)!
  t.deepEqual(asked, [])
  await new Promise<void>((resolve) => {
    authorizer.answer = () => resolve()
    authorizer.ask(0, identity)
  })
  t.is(asked.length, 2)
  t.is(asked[0], policy)
  t.is(asked[1], identity)
})

test('true is yes and false is no, also by a promise', async (t) => {
  for (const verdict of [true, false])
    for (const authorize of [() => verdict, async () => verdict])
      t.deepEqual(await ask(t, authorize), { answer: [7, verdict ? YES! : NO!, String(verdict)], cause: undefined })
})

test('any answer but a boolean refuses the peer, and is reported with a cause', async (t) => {
  for (const [verdict, found] of [
    [undefined, 'undefined'],
    [null, 'null'],
    [1, '1'],
    [0, '0'],
    ['true', '"true"'],
    [{}, 'an object'],
    [new Boolean(true), 'an object'],
  ] as const) {
    const { answer, cause } = await ask(t, () => verdict)
    t.deepEqual(answer, [7, FAILED, found])
    t.true(cause instanceof TypeError)
    t.is((cause as Error).message, `authorize must answer true or false, not ${found}`)
  }
})

test('an exception of the callback refuses the peer, whatever is thrown, and is the cause', async (t) => {
  const hidden = Object.defineProperty(new Error('hidden'), 'message', {
    get() {
      throw new Error('reading it throws')
    },
  })
  const { proxy, revoke } = Proxy.revocable({}, {})
  revoke()
  for (const [thrown, found] of [
    [new Error('no'), 'no'],
    [new TypeError('no'), 'no'],
    ['no', '"no"'],
    [undefined, 'undefined'],
    [null, 'null'],
    [{}, 'an object'],
    [hidden, 'a value that cannot be shown'],
    [proxy, 'a value that cannot be shown'],
  ] as const) {
    for (const authorize of [
      () => {
        throw thrown
      },
      () => Promise.reject(thrown as Error),
    ]) {
      const { answer, cause } = await ask(t, authorize)
      t.deepEqual(answer, [7, FAILED, `an exception: ${found}`])
      t.true(cause === thrown)
    }
  }
})

test('an answer before the handshake exists, or after it is over, is no error', async (t) => {
  for (const [authorize, hasCause] of [
    [() => true, false],
    [() => 5, true],
    [() => Promise.reject(new Error('no')), true],
  ] as const) {
    const authorizer = Authorizer.of({ authorize })!
    t.notThrows(() => authorizer.ask(0, identity))
    await new Promise((resolve) => setImmediate(resolve))
    t.is(authorizer.causeOf({ question: 0 }) !== undefined, hasCause)
  }
})

test('only the last 256 exceptions are kept', async (t) => {
  const authorizer = Authorizer.of({
    authorize: ({ pid }: Identity) => {
      throw new Error(String(pid))
    },
  })!
  const count = 300
  let answers = 0
  await new Promise<void>((resolve) => {
    authorizer.answer = () => {
      answers += 1
      if (answers === count) resolve()
    }
    for (let pid = 0; pid < count; pid += 1) authorizer.ask(pid, { pid } as unknown as Identity)
  })
  const kept = Array.from({ length: count }, (_, question) => authorizer.causeOf({ question }) as Error | undefined)
  const first = count - 256
  t.is(
    kept.findIndex((cause) => cause !== undefined),
    first,
  )
  kept.slice(first).forEach((cause, index) => t.is(cause?.message, String(first + index)))
})
