// Random combinations of pairs, services, calls, merges, members, children, publishers and subscribers in both languages, while
// processes are killed, stopped, forked, replaced by another program, and short of resources.
//
//     node __test__/soak/main.mjs [--minutes N] [--seed S] [--play N] [--rust FILE] [--languages LANGUAGE,…] [--without EVENT,…] [--slow N]
//
// A play is one address with its processes. Several plays run concurrently. Each process keeps a ledger on disk of the messages
// that it has received, and of those that it has sent (once the call has confirmed that they are in the ring). After a play the
// ledgers are compared: if a reader has read to the end, a sent message that it has not received was lost. Each wait of this
// program has a limit. A failure is reported with its seed and the number of the play, and `--seed S --play N` repeats the play
// with the same random numbers.
//
// It uses the build of `npm test`: dist/, and the Rust process in target/debug, or the one given by `--rust`.

import { execFileSync, spawn } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { cpus, tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { draws } from '../../scripts/lib/draws.mjs'

const root = fileURLToPath(new URL('../..', import.meta.url))
const NODE = process.execPath
const ACTOR = fileURLToPath(new URL('actor.mjs', import.meta.url))

const { values } = parseArgs({
  options: {
    minutes: { type: 'string', default: '2' },
    seed: { type: 'string', default: String(Date.now() % 1_000_000) },
    play: { type: 'string' },
    rust: { type: 'string', default: join(root, 'target', 'debug', 'ringfence-soak') },
    languages: { type: 'string', default: 'rust,node' },
    without: { type: 'string', default: '' },
    slow: { type: 'string', default: '1' },
  },
})
const RUST = values.rust
const LANGUAGES = values.languages.split(',')
const WITHOUT = values.without.split(',')
/** The slowdown of the processes, by a sanitizer for example. Events are rarer and limits longer by this factor. */
const SLOW = Number(values.slow)
const minutes = Number(values.minutes)
const seed = Number(values.seed)
if (!(minutes > 0 && SLOW > 0) || !Number.isSafeInteger(seed)) {
  console.error('usage: npm run soak -- [--minutes N] [--seed S] [--play N]; more options: see __test__/soak/main.mjs')
  process.exit(2)
}
for (const file of [RUST, join(root, 'dist', 'esm', 'index.js')]) {
  if (!existsSync(file)) {
    console.error(`✗ There is no ${file}: npm run build && npm run build:test`)
    process.exit(2)
  }
}

/** A play without a session for that long hangs, and so does a process that does not exit on request. */
const LIMIT = 180_000 * SLOW
/** If the processes lack resources, they may get nowhere, which is noticed after a shorter time. */
const STARVED = 30_000 * SLOW
const END_LIMIT = 90_000 * SLOW

const LATE = Symbol('late')
/** The result of a promise, or `LATE`. */
const within = (milliseconds, promise) => Promise.race([promise, sleep(milliseconds, LATE)])

/** Whether this machine allows the command. */
const may = (command, ...words) => {
  try {
    execFileSync(command, words, { stdio: 'ignore' })
    return true
  } catch {
    return false
  }
}
/** The directory of memory cgroups, and the file of the limit; null if none can be created. */
function findCgroups() {
  const mount = '/sys/fs/cgroup'
  const isIn = (file) => existsSync(join(mount, file)) && /\bmemory\b/.test(readFileSync(join(mount, file), 'utf8'))
  const found = isIn('cgroup.subtree_control')
    ? { home: mount, limit: 'memory.max', swap: 'memory.swap.max', ofSwap: () => 0 }
    : {
        home: join(mount, 'memory'),
        limit: 'memory.limit_in_bytes',
        swap: 'memory.memsw.limit_in_bytes',
        ofSwap: (bytes) => bytes,
      }
  const folder = join(found.home, `ringfence-soak-${process.pid}`)
  try {
    makeCgroup(found, folder, 256 << 20)
    execFileSync('rmdir', [folder])
    return found
  } catch {
    return null
  }
}

function makeCgroup({ limit, swap, ofSwap }, folder, bytes) {
  mkdirSync(folder, { recursive: true })
  writeFileSync(join(folder, limit), String(bytes))
  // Memory above the limit would go to swap. A machine without swap has no such file.
  if (existsSync(join(folder, swap))) writeFileSync(join(folder, swap), String(ofSwap(bytes)))
}

const cgroups = findCgroups()
const can = {
  limits: may('prlimit', '--nofile=100', 'true'),
  idle: may('chrt', '--idle', '0', 'true'),
  tmpfs: may('unshare', '-m', 'sh', '-c', 'mount -t tmpfs -o size=64k none /dev/shm'),
  cgroup: cgroups !== null,
}

const LEFT_OUT = Object.entries(can).flatMap(([name, is]) => (is ? [] : [name]))

/** The memory limit in bytes of a process in a cgroup, including its runtime. A parent has children of both languages there. */
const memoryOf = ({ role, language }) => (language === 'rust' && role !== 'parent' ? 8 : 96) << 20

/** The processes of each kind of play. */
const KINDS = {
  pair: ['join', 'join'],
  service: ['listen', 'connect', 'connect', 'connect'],
  calls: ['answer', 'ask', 'ask', 'ask'],
  merge: ['collect', 'connect', 'connect', 'connect'],
  member: ['member', 'member'],
  child: ['parent'],
  broadcast: ['publish', 'subscribe', 'subscribe', 'subscribe'],
}

/** Events for the processes of a play. */
const EVENTS = [
  'nothing',
  'kill',
  'kill',
  'stop',
  'zombie',
  'exec',
  'fork',
  'nofile',
  'as',
  'idle',
  'worker',
  'throw',
  'tmpfs',
  'cgroup',
]

/** Events that leave a process short of descriptors or memory. Its calls may fail for that, with these codes. */
const SHORTAGES = new Set(['nofile', 'as', 'cgroup', 'tmpfs'])
const SHORT = /^(NO_SPACE|EMFILE)\b/

const isPossible = (event) =>
  !(
    WITHOUT.includes(event) ||
    (['worker', 'throw'].includes(event) && !LANGUAGES.includes('node')) ||
    (['exec', 'fork', 'as'].includes(event) && !LANGUAGES.includes('rust')) ||
    (['nofile', 'as'].includes(event) && !can.limits) ||
    (event === 'idle' && !can.idle) ||
    (event === 'tmpfs' && !can.tmpfs) ||
    (event === 'cgroup' && !can.cgroup)
  )

const totals = {
  plays: 0,
  sessions: 0,
  messages: 0,
  attachments: 0,
  kills: 0,
  stops: 0,
  forks: 0,
  execs: 0,
  codes: new Map(),
}

class Play {
  constructor(number) {
    this.number = number
    this.draw = draws(seed * 1_000_003 + number)
    this.kind = this.draw.pick(Object.keys(KINDS))
    this.event = this.draw.pick(EVENTS.filter(isPossible))
    this.folder = mkdtempSync(join(tmpdir(), 'ringfence-soak-'))
    this.address = join(this.folder, 'socket')
    mkdirSync(join(this.folder, 'ledgers'))
    this.wanted = this.draw.between(3, 24)
    this.count = this.draw.pick([20, 200, 600])
    this.ids = 1
    this.sessions = 0
    this.story = []
    this.wrong = []
    this.actors = []
    this.isOver = false
    const languages = KINDS[this.kind].map(() => this.draw.pick(LANGUAGES))
    if (this.event === 'worker' || this.event === 'throw') languages[0] = 'node'
    if (['exec', 'fork', 'as'].includes(this.event)) languages[0] = 'rust'
    this.cast = KINDS[this.kind].map((role, at) => ({ role, language: languages[at], at }))
    // The process to which it happens.
    this.victim = ['worker', 'throw', 'exec', 'fork', 'as'].includes(this.event) ? 0 : this.draw.below(this.cast.length)
  }

  tell(what) {
    this.story.push(`${(performance.now() - this.began).toFixed(0)} ms: ${what}`)
    if (this.story.length > 400) this.story.splice(100, 1)
  }

  fail(what) {
    this.wrong.push(what)
    this.tell(`✘ ${what}`)
  }

  start(part) {
    const id = this.ids * 1000
    this.ids += 1
    const shm = this.event === 'tmpfs' && this.kind === 'pair' ? ['shm'] : []
    const isVictim = part.at === this.victim
    const extra = isVictim && ['worker', 'throw'].includes(this.event) ? [this.event] : []
    // The share of its cgroup's memory: small rings, rings of which a few fill it, and rings that do not fit.
    const share = isVictim && this.event === 'cgroup' ? this.draw.pick([0, 0.25, 4]) : 0
    if (share > 0) extra.push(`capacity=${memoryOf(part) * share}`)
    const ledger = join(this.folder, 'ledgers', extra[0] === 'worker' ? '%.ledger' : `${id}.ledger`)
    const words = [part.role, this.address, ledger, id, this.count, `${NODE},${RUST}`, ...shm, ...extra]
    const own = part.language === 'rust' ? [RUST] : [NODE, '--expose-gc', ACTOR]
    const command = this.wrap([...own, ...words.map(String)], part, isVictim)
    const child = spawn(command[0], command.slice(1), { stdio: ['pipe', 'pipe', 'pipe'] })
    const isGreedy = share > 1
    const actor = { part, id, isGreedy, child, pid: null, isGone: false, isKilled: false, isDone: false, complaint: '' }
    child.on('error', (error) => this.fail(`${command[0]}: ${error.message}`))
    child.stdin.on('error', () => {})
    child.stderr.on('data', (text) => (actor.complaint = `${actor.complaint}${text}`.slice(-4000)))
    createInterface({ input: child.stdout }).on('line', (line) => this.hear(actor, line))
    actor.gone = new Promise((resolve) => child.stdout.once('close', resolve)).then(() => this.gone(actor))
    part.actor = actor
    this.actors.push(actor)
    this.tell(`${part.language} ${part.role} ${id} starts${isVictim ? ` (${this.event})` : ''}`)
    return actor
  }

  /** The command, wrapped so that the event happens from the start. */
  wrap(command, part, isVictim) {
    if (this.event === 'tmpfs')
      return ['unshare', '-m', 'sh', '-c', 'mount -t tmpfs -o size=48k none /dev/shm && exec "$@"', 'sh', ...command]
    if (!isVictim) return command
    const isRust = part.language === 'rust'
    switch (this.event) {
      case 'nofile':
        return ['prlimit', `--nofile=${isRust ? this.draw.between(14, 60) : this.draw.between(34, 90)}`, ...command]
      case 'as':
        return ['prlimit', `--as=${this.draw.between(300, 900) << 20}`, ...command]
      case 'idle':
        return ['chrt', '--idle', '0', ...command]
      case 'zombie':
        // A parent that never reaps its child.
        return ['sh', '-c', 'exec 3<&0; "$@" <&3 3<&- & exec 3<&-; exec sleep 1000 >&- 2>&-', 'sh', ...command]
      case 'cgroup': {
        const folder = join(cgroups.home, `ringfence-soak-${process.pid}-${this.number}`)
        if (this.cgroup === undefined) makeCgroup(cgroups, folder, memoryOf(part))
        this.cgroup = folder
        return ['sh', '-c', `echo $$ > ${folder}/cgroup.procs && exec "$@"`, 'sh', ...command]
      }
      default:
        return command
    }
  }

  hear(actor, line) {
    const [word] = line.split(' ', 1)
    const rest = line.slice(word.length + 1)
    switch (word) {
      case 'here':
        actor.pid = Number(rest)
        break
      case 'session':
        this.sessions += 1
        totals.sessions += 1
        this.onSession?.()
        break
      case 'code':
        totals.codes.set(rest.split(' ')[0], (totals.codes.get(rest.split(' ')[0]) ?? 0) + 1)
        if (SHORT.test(rest) && !SHORTAGES.has(this.event)) this.fail(`${actor.id} lacks nothing: ${rest}`)
        else this.tell(`${actor.id}: ${rest}`)
        break
      case 'traces':
        actor.traces = JSON.parse(rest)
        break
      case 'done':
        actor.isDone = true
        break
      default:
        if (!this.isExcused(rest)) this.fail(`${actor.id} (${actor.part.language} ${actor.part.role}): ${line}`)
    }
  }

  /** With too little memory or too few descriptors, parts of a language's runtime fail with their own messages. */
  isExcused(what) {
    return (
      ['as', 'nofile', 'cgroup'].includes(this.event) &&
      /EMFILE|ENOMEM|Cannot allocate|too many open files|os error (11|12|24)/i.test(what)
    )
  }

  gone(actor) {
    actor.isGone = true
    const starved = ['as', 'nofile', 'cgroup'].includes(this.event) && actor.part.at === this.victim
    if (!actor.isDone && !actor.isKilled && !starved) {
      this.fail(`${actor.id} (${actor.part.language} ${actor.part.role}) has ended by itself: ${actor.complaint}`)
    }
    // A process that died from a lack of resources is restarted, like one that was killed.
    if (!actor.isDone && starved && !this.isOver) {
      this.tell(`${actor.id} has ended: ${actor.complaint.slice(-300)}`)
      setTimeout(() => !this.isOver && this.start(actor.part), 50)
    }
  }

  signal(actor, signal) {
    if (actor.pid === null || actor.isGone) return false
    try {
      process.kill(actor.pid, signal)
      return true
    } catch {
      return false
    }
  }

  async kill(actor) {
    actor.isKilled = true
    this.tell(`${actor.id} is killed`)
    totals.kills += 1
    if (!this.signal(actor, 'SIGKILL')) actor.child.kill('SIGKILL')
    // Its children have its standard output, too.
    if ((await within(END_LIMIT, actor.gone)) === LATE) {
      const { language, role } = actor.part
      this.fail(`${actor.id} (${language} ${role}) is killed, and what it has started does not end: ${this.waits()}`)
      actor.child.stdout.destroy()
      await actor.gone
    }
  }

  /** Repeats the event until the play is over. */
  async disturb() {
    // On a busy machine no session may end between two events. Each event without a session doubles the pause.
    let patience = SLOW
    let sessions = 0
    while (!this.isOver) {
      await Promise.race([sleep(this.draw.between(20, 700) * patience), this.over])
      patience = this.sessions > sessions ? SLOW : Math.min(patience * 2, 32 * SLOW)
      sessions = this.sessions
      const { actor } = this.cast[this.victim]
      if (this.isOver || actor === undefined || actor.pid === null || actor.isGone) continue
      switch (this.event) {
        case 'kill':
        case 'zombie':
          await this.kill(actor)
          this.zombieParents(actor)
          if (!this.isOver) this.start(actor.part)
          await sleep(this.draw.between(50, 1500) * SLOW)
          break
        case 'stop': {
          this.tell(`${actor.id} is stopped`)
          totals.stops += 1
          this.signal(actor, 'SIGSTOP')
          await sleep(this.draw.between(1, 600))
          this.signal(actor, 'SIGCONT')
          break
        }
        case 'exec':
          this.tell(`${actor.id} executes another program`)
          totals.execs += 1
          actor.isKilled = true
          actor.child.stdin.write('exec\n')
          await sleep(this.draw.between(100, 600))
          await this.kill(actor)
          if (!this.isOver) this.start(actor.part)
          await sleep(this.draw.between(200, 1500) * SLOW)
          break
        case 'fork':
          this.tell(`${actor.id} forks`)
          totals.forks += 1
          actor.child.stdin.write('fork\n')
          await sleep(this.draw.between(50, 500))
          if (this.draw.below(2) === 0) {
            await this.kill(actor)
            if (!this.isOver) this.start(actor.part)
          }
          break
        case 'cgroup':
          // If the kernel has not killed it, each channel failed with an error. A new process may need less.
          if (!actor.isGreedy) break
          await sleep(1000)
          if (actor.isGone) break
          await this.kill(actor)
          if (!this.isOver) this.start(actor.part)
          break
        default:
          return
      }
    }
  }

  /** The zombie stays until here; then its parent exits as well. */
  zombieParents(actor) {
    if (this.event === 'zombie') actor.child.kill('SIGKILL')
  }

  async run() {
    this.began = performance.now()
    for (const part of this.cast) {
      this.start(part)
      await sleep(this.draw.below(30))
    }
    const session = () => new Promise((resolve) => (this.onSession = resolve))
    let end
    this.over = new Promise((resolve) => (end = resolve))
    const disturbing = this.disturb()
    // Without resources a play may get nowhere, but it must end.
    const mayStarve = SHORTAGES.has(this.event)
    const starved = sleep(STARVED, LATE)
    // On a busy machine fewer sessions are enough.
    while (this.sessions < this.wanted && performance.now() < this.began + 2 * LIMIT) {
      const outcome = await (mayStarve ? Promise.race([session(), starved]) : within(LIMIT, session()))
      if (outcome !== LATE) continue
      if (!(mayStarve || this.wrong.length > 0)) {
        this.fail(`it hangs after ${this.sessions} of ${this.wanted} sessions: ${this.waits()}`)
      }
      break
    }
    this.isOver = true
    end()
    await disturbing
    await Promise.all(this.actors.map((actor) => this.finish(actor)))
    this.compare()
    await this.leaveCgroup()
    totals.plays += 1
    if (this.wrong.length === 0) rmSync(this.folder, { recursive: true, force: true })
  }

  /**
   * A process that was reaped may still count as a member for a moment: the kernel (6.18) removes it when its core runs something
   * else.
   */
  async leaveCgroup() {
    if (!this.cgroup) return
    const end = performance.now() + END_LIMIT
    while (!may('rmdir', this.cgroup)) {
      if (performance.now() > end) {
        const left = readFileSync(join(this.cgroup, 'cgroup.procs'), 'utf8').trim().split('\n')
        this.fail(`${this.cgroup} cannot be removed, and has the processes [${left.join(', ')}]`)
        return
      }
      await sleep(10)
    }
  }

  /** The processes of this play, including the children of actors, and what their threads wait for. */
  waits() {
    const found = []
    for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
      try {
        const command = readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ')
        if (!command.includes(this.folder)) continue
        const threads = readdirSync(`/proc/${pid}/task`).map((thread) => {
          const waits = readFileSync(`/proc/${pid}/task/${thread}/wchan`, 'utf8')
          return `${waits} (${readFileSync(`/proc/${pid}/task/${thread}/syscall`, 'utf8').trim()})`
        })
        found.push(`${pid} [${command.trim()}]: ${threads.join(', ')}`)
      } catch {
        // It has exited in the meantime.
      }
    }
    return found.join('; ')
  }

  async finish(actor) {
    if (!actor.isGone) {
      this.signal(actor, 'SIGCONT')
      actor.child.stdin.end('stop\n')
      if ((await within(END_LIMIT, actor.gone)) === LATE) {
        this.fail(`${actor.id} (${actor.part.language} ${actor.part.role}) does not end: ${this.waits()}`)
        await this.kill(actor)
      }
    }
    this.zombieParents(actor)
    const { traces } = actor
    if (traces === undefined) return
    if (traces.mappings > 0) this.fail(`${actor.id} has left ${traces.mappings} mappings`)
    if (traces.attachments > 0) this.fail(`${actor.id} has left ${traces.attachments} attachments`)
    const isRust = actor.part.language === 'rust'
    // Its standard streams, the ledger, and what a process opens once. Node's event loop has about twenty.
    if (traces.descriptors > (isRust ? 10 : 45))
      this.fail(`${actor.id} has left ${traces.descriptors} descriptors: ${JSON.stringify(traces.kinds)}`)
    if (traces.threads > (isRust ? 3 : 20)) this.fail(`${actor.id} has left ${traces.threads} threads`)
    // A sanitizer needs memory for itself.
    if (SLOW === 1 && Number.parseInt(traces.memory, 10) > 600_000)
      this.fail(`${actor.id} has ${traces.memory} of memory`)
  }

  /** If a reader has read to the end, it must have every message that was in the ring. */
  compare() {
    const ledgers = new Map()
    const folder = join(this.folder, 'ledgers')
    for (const file of readdirSync(folder)) {
      const bytes = readFileSync(join(folder, file))
      const words = Array.from({ length: Math.floor(bytes.length / 8) }, (_, at) =>
        Number(bytes.readBigUInt64LE(at * 8)),
      )
      const records = []
      for (let at = 0; at < words.length; at += 6) records.push(words.slice(at, at + 6))
      ledgers.set(Number(basename(file, '.ledger')), records)
    }
    for (const [id, records] of ledgers) {
      for (const [session, record] of records.entries()) {
        const [peer, peerSession = 0, , received = 0, end = 0, attached = 0] = record
        if (!peer) continue
        totals.messages += received
        totals.attachments += attached
        // A sender that was killed may have recorded nothing of its last session.
        const other = ledgers.has(peer) ? (ledgers.get(peer)[peerSession] ?? []) : undefined
        if (other === undefined) {
          this.fail(`${id}.${session} has messages of ${peer}.${peerSession}, which has no ledger`)
          continue
        }
        const [, , sent = 0] = other
        // The last message may not be recorded yet when its sender is killed.
        if (received > sent + 1)
          this.fail(`${id}.${session} has ${received} messages, of which ${peer}.${peerSession} has sent ${sent}`)
        const isRead = end === 1 || end === 2
        if (isRead && received < sent) {
          this.fail(
            `lost: ${peer}.${peerSession} has sent ${sent}, and ${id}.${session} has read ${received} to the end (${end})`,
          )
        }
      }
    }
  }
}

const before = new Set(readdirSync('/dev/shm'))
const failures = []
const end = performance.now() + minutes * 60_000
let next = values.play === undefined ? 0 : Number(values.play)
const last = values.play === undefined ? Infinity : next + 1

async function lane() {
  while (performance.now() < end && next < last && failures.length < 3) {
    const play = new Play(next)
    next += 1
    await play.run()
    if (play.wrong.length > 0) {
      failures.push(play)
      console.log(`✘ play ${play.number} (${play.kind}, ${play.event}; --seed ${seed} --play ${play.number}):`)
      console.log(
        play.story
          .slice(-60)
          .map((line) => `    ${line}`)
          .join('\n'),
      )
    }
  }
}

console.log(`seed ${seed}, ${minutes} min${LEFT_OUT.length > 0 ? `; not allowed here: ${LEFT_OUT.join(', ')}` : ''}`)
const lanes = Math.max(2, Math.min(8, cpus().length))
await Promise.all(Array.from({ length: lanes }, lane))
// Other programs on this machine may also create names, each for a moment.
const added = () => readdirSync('/dev/shm').filter((name) => name.startsWith('ringfence') && !before.has(name))
let left = added()
for (let looks = 0; looks < 100 && left.length > 0; looks += 1) {
  await sleep(20)
  const still = new Set(added())
  left = left.filter((name) => still.has(name))
}
if (left.length > 0) failures.push({ number: -1, wrong: [`names in /dev/shm: ${left.join(', ')}`] })
const { plays, sessions, messages, attachments, kills, stops, forks, execs, codes } = totals
console.log(
  `${plays} plays, ${sessions} channels to their end, ${messages} messages, ${attachments} attachments, ${kills} kills, ${stops} stops, ${forks} forks, ${execs} execs`,
)
console.log(`codes: ${[...codes].map(([code, count]) => `${code} ${count}`).join(', ') || 'none'}`)
for (const { number, wrong } of failures) for (const what of wrong) console.log(`✘ ${number}: ${what}`)
console.log(
  failures.length === 0 ? 'Nothing was lost, left or late.' : `${failures.length} plays went wrong, seed ${seed}`,
)
process.exit(failures.length === 0 ? 0 : 1)
