// Rewrites the lists of system calls in docs/internals/system-calls.md, from traced children in Rust and Node: `node scripts/calls.mjs`. Needs
// strace(1), a build and the tests' build.

import { spawn as start } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { spawn } from 'ringfence'
import { root } from './lib/run.mjs'

const PAGE = join(root, 'docs/internals/system-calls.md')
const LINE = 130
/** Calls that depend on timing, or on a Rust parent: a run may lack them, so they are always listed. */
const SOMETIMES = ['futex', 'membarrier', 'poll']
/** Calls of Node's own threads that depend on timing. */
const SOMETIMES_IN_NODE = ['sched_yield']

const ECHO = `
  import { fromParent } from 'ringfence'
  const channel = await fromParent()
  for await (const message of channel) await channel.send(message)
  await channel.close()
`
const CHILDREN = {
  rust: [join(root, 'target/debug/ringfence-partner'), 'echo', 'parent', process.execPath, '1048576', '65536'],
  node: [process.execPath, '--input-type=module', '--eval', ECHO],
}

const directory = mkdtempSync(join(tmpdir(), 'ringfence-calls-'))
const file = join(directory, 'trace')

/** The calls that a process and its threads make during `work`. */
async function traced(pid, work) {
  const strace = start('strace', ['-f', '-qq', '-o', file, '-p', String(pid)], {
    stdio: ['ignore', 'inherit', 'inherit'],
  })
  const ended = once(strace, 'exit')
  while (/^TracerPid:\t0$/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'))) {
    if (strace.exitCode !== null) throw new Error('strace has not attached')
    await sleep(10)
  }
  await work()
  strace.kill('SIGINT')
  await ended
  const lines = readFileSync(file, 'utf8').matchAll(/^\d+ +(?:<\.\.\. )?(\w+)(?:\(| resumed)/gm)
  return new Set(Array.from(lines, ([, name]) => name))
}

/** Short and long messages, one at a time and in runs. Both sides fall asleep after each run. */
async function converse(channel, rounds) {
  for (let round = 0; round < rounds; round++) {
    const [count, most] = [
      [10, 3000],
      [1, 100],
      [3, 60_000],
    ][round % 3]
    for (let number = 0; number < count; number++) await channel.send(Buffer.alloc((round * 997) % most, number))
    for (let number = 0; number < count; number++) await channel.receive()
    await sleep(round % 5)
  }
}

async function callsOf([command, ...args]) {
  const { child, channel } = await spawn(command, args, {
    policy: { executable: 'any' },
    spawn: { stdio: ['ignore', 'ignore', 'inherit'] },
  })
  await converse(channel, 100)
  const open = await traced(child.pid, () => converse(channel, 3000))
  const exited = once(child, 'exit')
  const closing = await traced(child.pid, async () => {
    await channel.end()
    while ((await channel.receive()) !== undefined);
    await channel.close()
    await exited
  })
  return { open, closing }
}

const without = (set, ...others) => [...set].filter((name) => !others.some((other) => other.has(name))).toSorted()

/** A list as lines of text. */
function wrapped(names) {
  const lines = ['']
  for (const name of names) {
    const longer = `${lines.at(-1)} ${name}`.trim()
    if (longer.length > LINE) lines.push(name)
    else lines[lines.length - 1] = longer
  }
  return lines.join('\n')
}

const rust = await callsOf(CHILDREN.rust)
for (const name of SOMETIMES) rust.open.add(name)
const node = await callsOf(CHILDREN.node)
for (const name of SOMETIMES_IN_NODE) node.open.add(name)
rmSync(directory, { recursive: true })

const lists = {
  open: without(rust.open),
  close: without(rust.closing, rust.open),
  node: without(new Set([...node.open, ...node.closing]), rust.open, rust.closing),
}
let page = readFileSync(PAGE, 'utf8')
for (const [name, calls] of Object.entries(lists)) {
  const list = new RegExp(`(<!-- calls: ${name} -->\n\n\`\`\`text\n)[^\`]*(\n\`\`\`)`)
  if (!list.test(page)) throw new Error(`${PAGE} has no list of the calls: ${name}`)
  page = page.replace(list, `$1${wrapped(calls)}$2`)
}
writeFileSync(PAGE, page)
