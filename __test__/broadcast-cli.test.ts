// The command line: lines from one process to many.

import { spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, openSync, readFileSync, readdirSync, readlinkSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

import test, { type ExecutionContext } from 'ava'

import { abstractAddress } from './support/address.js'
import { urlOf } from './support/internals.js'
import { within, until } from './support/until.js'

const cli = fileURLToPath(urlOf('cli.js'))

/** Whether this process may open the mappings of another one. Only root may. */
const canOpenMaps = process.geteuid!() === 0

/** A mapping may disappear before it is read. */
function linkOf(path: string): string {
  try {
    return readlinkSync(path)
  } catch {
    return ''
  }
}

interface Run {
  child: ChildProcess
  /** The output up to now. */
  output(): string
  complaints(): string
  done: Promise<{ code: number | null; output: string; complaints: string }>
}

function run(t: ExecutionContext, ...words: string[]): Run {
  const child = spawn(process.execPath, [cli, ...words], { stdio: ['pipe', 'pipe', 'pipe'] })
  t.teardown(() => child.kill('SIGKILL'))
  let [output, complaints] = ['', '']
  child.stdout.setEncoding('utf8').on('data', (more: string) => {
    output += more
  })
  child.stderr.setEncoding('utf8').on('data', (more: string) => {
    complaints += more
  })
  child.stdin.on('error', () => {})
  const done = once(child, 'close').then(([code]) => ({ code: code as number | null, output, complaints }))
  return { child, output: () => output, complaints: () => complaints, done }
}

const lines = (count: number) => Array.from({ length: count }, (_, number) => `line ${number}\n`).join('')

test('each subscriber gets every line, including a last one without a newline, and then the end', async (t) => {
  const address = abstractAddress()
  const subscribers = [1, 2, 3].map(() => run(t, 'subscribe', address))
  const publisher = run(t, 'publish', address, '--audience', '3')
  publisher.child.stdin!.write(lines(1000))
  // The lines must arrive before the end of the input does.
  for (const subscriber of subscribers) await until(() => subscriber.output() === lines(1000), 'the lines are there')
  publisher.child.stdin!.end('\nlast')
  t.deepEqual(await within(publisher.done, 'the end'), { code: 0, output: '', complaints: '' })
  for (const subscriber of subscribers)
    t.deepEqual(await within(subscriber.done, 'an end'), { code: 0, output: `${lines(1000)}\nlast\n`, complaints: '' })
})

test('with --count a subscriber exits on its own, and the others continue', async (t) => {
  const address = abstractAddress()
  const [brief, long] = [run(t, 'subscribe', address, '--count', '2'), run(t, 'subscribe', address)]
  const publisher = run(t, 'publish', address, '--audience', '2')
  publisher.child.stdin!.write(lines(3))
  t.deepEqual(await within(brief.done, 'its end'), { code: 0, output: lines(2), complaints: '' })
  publisher.child.stdin!.end('more\n')
  t.is((await within(long.done, 'an end')).output, `${lines(3)}more\n`)
  t.is((await publisher.done).code, 0)
})

test('with --raw chunks are passed on as they are, and with --no-newline they are written as they are', async (t) => {
  const address = abstractAddress()
  const subscriber = run(t, 'subscribe', address, '--no-newline')
  const publisher = run(t, 'publish', address, '--audience', '1', '--raw', '7')
  publisher.child.stdin!.end('twenty bytes in all.')
  t.deepEqual(await within(subscriber.done, 'an end'), { code: 0, output: 'twenty bytes in all.', complaints: '' })
  t.is((await publisher.done).code, 0)
})

test('a line that is too long is reported, with what to do', async (t) => {
  const publisher = run(t, 'publish', abstractAddress(), '--capacity', '64K')
  publisher.child.stdin!.end('x'.repeat(10_000))
  const { code, complaints } = await within(publisher.done, 'its failure')
  t.is(code, 8)
  t.regex(complaints, /a line has more than 8192 bytes.*--capacity/)
})

/**
 * Whether a process watches a file with a lease. Before it does, it would not notice that another process opened its
 * memory briefly.
 */
function hasLease(pid: number): boolean {
  // Ordinal, class, state, mode, pid: proc_locks(5).
  const locks = readFileSync('/proc/locks', 'utf8').split('\n')
  return locks.map((line) => line.trim().split(/\s+/)).some((words) => words[1] === 'LEASE' && words[4] === String(pid))
}

;(canOpenMaps ? test : test.skip)(
  'where its memory is opened while it waits, for its audience or for a line, it fails',
  async (t) => {
    for (const words of [['--audience', '1'], []]) {
      const publisher = run(t, 'publish', abstractAddress(), ...words)
      const maps = `/proc/${publisher.child.pid}/map_files`
      let ring: string | undefined
      await until(() => {
        ring = readdirSync(maps).find((range) => linkOf(`${maps}/${range}`).startsWith('/memfd:ringfence'))
        return ring !== undefined && hasLease(publisher.child.pid!)
      }, 'it publishes')
      closeSync(openSync(`${maps}/${ring}`, 'r'))
      const { code, complaints } = await within(publisher.done, 'its failure')
      t.is(code, 7)
      t.regex(complaints, /another process tried to open the publisher's shared memory/)
    }
  },
)

test('after the publisher is killed, everything that it published is written, and the exit code reports the loss', async (t) => {
  const address = abstractAddress()
  const subscriber = run(t, 'subscribe', address)
  const publisher = run(t, 'publish', address, '--audience', '1')
  publisher.child.stdin!.write(lines(100))
  await until(() => subscriber.output() === lines(100), 'the lines are there')
  publisher.child.kill('SIGKILL')
  const { code, complaints } = await within(subscriber.done, 'its end')
  t.is(code, 5)
  t.regex(complaints, /process \d+, has ended, .*: its last messages may be missing/)
})

test('a late subscriber gets the last line at once with --from latest', async (t) => {
  const address = abstractAddress()
  const early = run(t, 'subscribe', address)
  const publisher = run(t, 'publish', address, '--audience', '1')
  publisher.child.stdin!.write(lines(10))
  await until(() => early.output() === lines(10), 'the lines are there')
  const late = run(t, 'subscribe', address, '--from', 'latest', '--count', '1')
  t.is((await within(late.done, 'the last line')).output, 'line 9\n')
  publisher.child.stdin!.end()
  t.is((await publisher.done).code, 0)
})

/** A publisher whose subscribers are stopped before it publishes, except the last one to subscribe. */
async function publishToStopped(t: ExecutionContext, subscribers: string[][], ...how: string[]) {
  const address = abstractAddress()
  const publisher = run(t, 'publish', address, '--evidence', '--audience', String(subscribers.length + 1), ...how)
  const stopped = subscribers.map((words) => run(t, 'subscribe', address, '--evidence', ...words))
  for (const { child, complaints } of stopped) {
    await until(() => publisher.complaints().includes(`subscriber is process ${child.pid}\n`), 'it has connected')
    // A subscriber that is stopped during its handshake would find no publisher later, and would wait for the next one.
    await until(() => complaints().includes(`publisher is process ${publisher.child.pid}\n`), 'it has subscribed')
    child.kill('SIGSTOP')
  }
  const other = run(t, 'subscribe', address)
  const content = lines(10_000)
  publisher.child.stdin!.end(content)
  const { code, complaints } = await within(publisher.done, 'the end of the publisher')
  t.is(code, 0)
  t.is((await within(other.done, 'an end')).output, content)
  for (const { child } of stopped) child.kill('SIGCONT')
  const warnings = complaints.split('\n').filter((line) => line.startsWith('ringfence: '))
  return { content, stopped, warnings }
}

test('a publisher exits after its input, even if subscribers that it never waits for are stopped', async (t) => {
  const deliveries = ['best-effort', 'latest'].map((delivery) => ['--delivery', delivery])
  // For a reliable subscriber it would wait longer than this test may take.
  const { content, stopped, warnings } = await publishToStopped(t, deliveries, '--stall', '1000')
  t.deepEqual(warnings, [])
  // Published messages stay readable for them.
  const [all, last] = await within(Promise.all(stopped.map(({ done }) => done)), 'their ends')
  t.like(all, { code: 0, output: content })
  t.true(last!.output.endsWith('line 9999\n'))
})

test('a publisher waits for a stopped reliable subscriber for up to its stall, and the remainder stays readable', async (t) => {
  const { content, stopped, warnings } = await publishToStopped(t, [[]], '--stall', '3')
  const notRead = `process ${stopped[0]!.child.pid} has not read everything after 3 s; it can still read the remainder`
  t.deepEqual(warnings, [`ringfence: ${notRead}`])
  t.like(await within(stopped[0]!.done, 'its end'), { code: 0, output: content })
})

test('a publisher reports that nobody has subscribed', async (t) => {
  const publisher = run(t, 'publish', abstractAddress())
  publisher.child.stdin!.end(lines(3))
  const { code, complaints } = await within(publisher.done, 'its end')
  t.is(code, 0)
  t.regex(
    complaints,
    /^ringfence: no process has subscribed: no message \(of 3\) .*--audience 1 waits for a subscriber\n$/,
  )
  const empty = run(t, 'publish', abstractAddress())
  empty.child.stdin!.end()
  t.deepEqual(await within(empty.done, 'its end'), { code: 0, output: '', complaints: '' })
})

test('arguments that cannot be parsed are a usage error', async (t) => {
  for (const [words, said] of [
    [['subscribe', '@x', '--delivery', 'twice'], /--delivery takes reliable/],
    [['subscribe', '@x', '--from', 'then'], /--from takes now/],
    [['subscribe', '@x', 'file'], /takes no file/],
    [['publish', '@x', '--backing', 'shm'], /memfd/],
    [['send', '@x', '--count', '5'], /send takes no --count: it is an option of subscribe/],
  ] as const) {
    const { code, complaints } = await within(run(t, ...words).done, 'its failure')
    t.is(code, 2, words.join(' '))
    t.regex(complaints, said)
  }
})

test('a directory as input and a closed standard output are reported before any peer is waited for', async (t) => {
  const published = await within(run(t, 'publish', abstractAddress(), '/', '--audience', '1').done, 'its failure')
  t.is(published.code, 1)
  t.regex(published.complaints, /\/ is a directory/)
  const words = [process.execPath, cli, 'subscribe', abstractAddress()]
  const subscribed = spawnSync('sh', ['-c', '"$@" >&-', 'sh', ...words], { encoding: 'utf8', timeout: 60_000 })
  t.is(subscribed.status, 2)
  t.regex(subscribed.stderr, /standard output is closed/)
})
