// A policy that requires the kernel to confine a child.

import { spawnSync } from 'node:child_process'

import test from 'ava'
import { spawn, type ChildOptions, type Confined, type RingfenceError } from 'ringfence'

const CHILD = `
  import { fromParent } from 'ringfence'
  const policy = { namespace: 'any', executable: 'any' }
  const channel = await fromParent({ handshakeTimeout: 60_000, policy })
  for await (const message of channel) await channel.send(message)
`
const node = [process.execPath, '--input-type=module', '--eval', CHILD]

/** Starts the child by a launcher, with this requirement. */
function start(launcher: readonly string[], confined: Confined) {
  const [command, ...args] = [...launcher, ...node]
  const policy = { namespace: 'any', executable: 'any', confined } as const
  const options: ChildOptions = { handshakeTimeout: 60_000, policy, spawn: { stdio: ['ignore', 'ignore', 'ignore'] } }
  return spawn(command!, args, options)
}

const runs = (command: string, ...args: string[]) => spawnSync(command, args).status === 0

const launchers: [title: string, launcher: string[], confined: Confined][] = [
  ['no_new_privs', ['setpriv', '--no-new-privs'], { noNewPrivs: true }],
  ['a user namespace of its own', ['unshare', '-Ur'], { userNamespace: 'other', noCapabilities: true }],
  ['a network namespace of its own', ['unshare', '-Urn'], { networkNamespace: 'other' }],
]

for (const [title, launcher, confined] of launchers) {
  const [command, ...args] = launcher
  const available = runs(command!, ...args, 'true') ? test : test.skip
  available(`a child with ${title} passes, and each check has evidence`, async (t) => {
    const started = await start(launcher, confined)
    const { channel } = started
    await channel.verify()
    for (const name of Object.keys(confined)) {
      for (const step of ['executable', 'final', 'verify']) {
        const found = channel.evidence.find((one) => one.step === step && one.check === `confined.${name}`)
        t.is(found?.outcome, 'passed', `${step} ${name}`)
        t.truthy(found?.wanted, name)
        t.truthy(found?.found, name)
      }
    }
    await channel.send('to and fro')
    t.is(String(await channel.receive()), 'to and fro')
    await started[Symbol.asyncDispose]()
  })
}

const refusals: [name: string, confined: Confined, advice: RegExp][] = [
  ['noNewPrivs', { noNewPrivs: true }, /setpriv --no-new-privs/],
  ['seccomp', { seccomp: true }, /bwrap --seccomp/],
  ['userNamespace', { userNamespace: 'other' }, /bwrap --unshare-user/],
  ['networkNamespace', { networkNamespace: 'other' }, /bwrap --unshare-net/],
]

for (const [name, confined, advice] of refusals) {
  test(`a child without ${name} is refused, and the error says what to do`, async (t) => {
    const error = await t.throwsAsync<RingfenceError>(start([], confined), { message: advice })
    t.is(error?.code, 'ERR_RINGFENCE_PEER_REFUSED')
    t.is(error?.check, `confined.${name}`)
    t.truthy(error?.wanted)
    t.truthy(error?.found)
  })
}
