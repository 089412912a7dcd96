// Reading and writing files from the command line, in this process.

import { spawnSync } from 'node:child_process'
import { once } from 'node:events'
import fs, {
  chownSync,
  chmodSync,
  closeSync,
  createReadStream,
  fstatSync,
  lstatSync,
  mkdirSync,
  openSync,
  readFileSync,
  readdirSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import promises from 'node:fs/promises'
import { syncBuiltinESMExports } from 'node:module'
import { join } from 'node:path'
import type { Readable, Writable } from 'node:stream'
import { text } from 'node:stream/consumers'
import { finished } from 'node:stream/promises'

import test, { type ExecutionContext } from 'ava'

import { temporaryDirectory } from './support/address.js'
import { internals } from './support/internals.js'
import { isPending, within, turns, until } from './support/until.js'

interface Target {
  sink: Writable
  keep(): Promise<void>
  close(): Promise<void>
}

interface Source {
  size(): Promise<number | undefined>
  read(): Readable
  close(): Promise<void>
}

const moduleAt = (name: string) => internals(`cli/${name}.js`)
const { openTarget } = (await moduleAt('target')) as {
  openTarget(path: string, signal?: AbortSignal): Promise<Target>
}
const { openSource, requireOpen, readUntil } = (await moduleAt('source')) as {
  openSource(path?: string): Promise<Source>
  requireOpen(fd: number, what: string, remedy?: string): void
  readUntil(source: Source, over: Promise<Error | undefined>): AsyncGenerator<Buffer>
}
const { UsageError } = (await moduleAt('exit')) as { UsageError: new () => Error }

/** A directory with a file in it. */
function scene(t: ExecutionContext) {
  const directory = temporaryDirectory(t)
  const file = join(directory, 'file')
  writeFileSync(file, 'as it was')
  return { directory, file }
}

function fifoOf(t: ExecutionContext): string {
  const fifo = join(temporaryDirectory(t), 'fifo')
  t.is(spawnSync('mkfifo', [fifo]).status, 0)
  return fifo
}

async function fill(target: Target, content: string): Promise<void> {
  target.sink.end(content)
  await finished(target.sink)
}

async function replace(path: string, content: string): Promise<void> {
  const target = await openTarget(path)
  await fill(target, content)
  await target.keep()
  await target.close()
}

test.serial(
  'data is in a temporary file until it is kept; otherwise, or if the process exits, that file is removed',
  async (t) => {
    const { directory, file } = scene(t)
    const before = process.listeners('exit')
    const target = await openTarget(file)
    const part = readdirSync(directory).find((name) => name !== 'file')!
    t.regex(part, /^\.file\.[0-9a-f]{12}\.part$/)
    await fill(target, 'the new one')
    t.is(readFileSync(file, 'utf8'), 'as it was')
    await target.keep()
    t.is(readFileSync(file, 'utf8'), 'the new one')
    await target.close()
    t.deepEqual(readdirSync(directory), ['file'])

    const dropped = await openTarget(file)
    await fill(dropped, 'another')
    await dropped.close()
    t.deepEqual(readdirSync(directory), ['file'])
    t.deepEqual(process.listeners('exit'), before)

    const exited = await openTarget(file)
    const atExit = process.listeners('exit').filter((one) => !before.includes(one))
    t.is(readdirSync(directory).length, 2)
    for (const listener of atExit) (listener as () => void)()
    t.deepEqual(readdirSync(directory), ['file'])
    await exited.close()
    t.is(readFileSync(file, 'utf8'), 'the new one')
  },
)

test.serial('a new file has the default mode, a replaced one the mode of the old one', async (t) => {
  const { directory, file } = scene(t)
  const umask = process.umask(0o027)
  try {
    await replace(join(directory, 'new'), '')
  } finally {
    process.umask(umask)
  }
  t.is(statSync(join(directory, 'new')).mode & 0o7777, 0o640)
  chmodSync(file, 0o2751)
  const target = await openTarget(file)
  t.is(statSync(file).mode & 0o7777, 0o2751)
  await target.keep()
  await target.close()
  t.is(statSync(file).mode & 0o7777, 0o2751)
  const long = join(directory, 'n'.repeat(255))
  await replace(long, 'long')
  t.is(readFileSync(long, 'utf8'), 'long')
})

const isRoot = process.geteuid!() === 0

;(isRoot ? test.serial : test.serial.skip)(
  'a replaced file keeps its owner and group; one who may not give it away lets no other group have more',
  async (t) => {
    const { directory, file } = scene(t)
    for (const [uid, gid] of [
      [12_345, 0],
      [0, 54_321],
    ] as const) {
      chownSync(file, uid, gid)
      chmodSync(file, 0o664)
      await replace(file, 'replaced')
      const { uid: owner, gid: group, mode } = statSync(file)
      t.deepEqual([owner, group, mode & 0o777], [uid, gid, 0o664])
    }
    chownSync(directory, 12_345, 12_345)
    for (const [old, mode] of [
      [0o664, 0o644],
      [0o606, 0o666],
      [0o771, 0o711],
    ] as const) {
      chownSync(file, 0, 54_321)
      chmodSync(file, old)
      process.seteuid!(12_345)
      try {
        await replace(file, 'replaced')
      } finally {
        process.seteuid!(0)
      }
      t.is(statSync(file).uid, 12_345)
      t.is(statSync(file).mode & 0o777, mode, old.toString(8))
    }
  },
)

test('links are followed from where they are; too many links and wrong paths are errors', async (t) => {
  const { directory, file } = scene(t)
  mkdirSync(join(directory, 'deep'))
  symlinkSync('../file', join(directory, 'deep', 'up'))
  symlinkSync('deep/up', join(directory, 'down'))
  symlinkSync('deep/nothing', join(directory, 'dangling'))
  const target = await openTarget(join(directory, 'down'))
  await fill(target, 'through two')
  t.is(readFileSync(file, 'utf8'), 'as it was')
  await target.keep()
  await target.close()
  t.is(readFileSync(file, 'utf8'), 'through two')
  await replace(join(directory, 'dangling'), 'there now')
  t.is(readFileSync(join(directory, 'deep', 'nothing'), 'utf8'), 'there now')
  for (const link of ['down', 'dangling', 'deep/up']) t.true(lstatSync(join(directory, link)).isSymbolicLink())
  symlinkSync('loop', join(directory, 'loop'))
  await t.throwsAsync(openTarget(join(directory, 'loop')), { code: 'ELOOP' })
  await t.throwsAsync(openTarget(join(file, 'below')), { code: 'ENOTDIR' })
  await t.throwsAsync(openTarget(join(directory, 'nowhere', 'file')), { code: 'ENOENT' })
  await t.throwsAsync(openTarget(directory), { code: 'EISDIR' })
  await t.throwsAsync(openTarget(`${directory}/`), { code: 'EISDIR' })
  await t.throwsAsync(openTarget(`${directory}/new/`), { message: `${directory}/new/ names no file` })
  await t.throwsAsync(openTarget(''), { message: "'' names no file" })
  t.deepEqual(readdirSync(directory).sort(), ['dangling', 'deep', 'down', 'file', 'loop'])
})

test('open descriptors and devices are written in place', async (t) => {
  const { directory, file } = scene(t)
  const open = openSync(file, 'r+')
  t.teardown(() => closeSync(open))
  symlinkSync(`/proc/self/fd/${open}`, join(directory, 'link'))
  const { ino } = fstatSync(open)
  for (const path of [`/dev/fd/${open}`, join(directory, 'link')]) {
    await replace(path, path)
    t.is(readFileSync(file, 'utf8'), path)
    t.is(statSync(file).ino, ino)
  }
  await replace('/dev/null', 'gone')
  t.true(statSync('/dev/null').isCharacterDevice())
  t.deepEqual(readdirSync(directory).sort(), ['file', 'link'])
})

/** The targets of all open descriptors of this process. */
const openNow = () =>
  readdirSync('/proc/self/fd').map((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`)
    } catch {
      // It was closed in the meantime.
      return ''
    }
  })
const timesOpen = (path: string) => openNow().filter((name) => name === path).length

test.serial('everything that was opened is closed, whether it was used or not', async (t) => {
  const { file } = scene(t)
  const fifo = fifoOf(t)
  for (const path of [file, '/dev/zero', fifo])
    for (const read of [true, false]) {
      const before = timesOpen(path)
      const source = await openSource(path)
      t.is(timesOpen(path), before + 1)
      if (read && path !== fifo) await once(source.read(), 'data')
      await source.close()
      await until(() => timesOpen(path) === before, `${path} is closed`)
    }
  const before = timesOpen('/dev/full')
  const target = await openTarget('/dev/full')
  t.is(timesOpen('/dev/full'), before + 1)
  await target.close()
  t.is(timesOpen('/dev/full'), before)
})

test('without a file, standard input is read; its size is unknown, and it stays open', async (t) => {
  const source = await openSource()
  t.is(await source.size(), undefined)
  t.is(source.read(), process.stdin)
  await source.close()
  t.false(process.stdin.destroyed)
})

test.serial('only users who may read the target may read the temporary file, from its creation on', async (t) => {
  const { directory, file } = scene(t)
  chmodSync(file, 0o600)
  const modes: number[] = []
  const { open: begin } = promises
  const umask = process.umask(0)
  promises.open = async (...words) => {
    const handle = await begin(...words)
    modes.push((await handle.stat()).mode & 0o777)
    return handle
  }
  syncBuiltinESMExports()
  try {
    await replace(file, 'secret')
    await replace(join(directory, 'new'), 'for all')
  } finally {
    process.umask(umask)
    promises.open = begin
    syncBuiltinESMExports()
  }
  t.deepEqual(modes, [0o600, 0o666])
})

test.serial('if the mode of the file cannot be kept, no temporary file is left', async (t) => {
  const { directory, file } = scene(t)
  const before = process.listeners('exit')
  const { open: begin } = promises
  promises.open = async (...words) => {
    const handle = await begin(...words)
    handle.chmod = () => Promise.reject(Object.assign(new Error('as this test has it'), { code: 'EPERM' }))
    return handle
  }
  syncBuiltinESMExports()
  try {
    await t.throwsAsync(openTarget(file), { code: 'EPERM' })
  } finally {
    promises.open = begin
    syncBuiltinESMExports()
  }
  t.deepEqual(readdirSync(directory), ['file'])
  t.deepEqual(process.listeners('exit'), before)
  t.false(openNow().some((name) => name.startsWith(directory)))
})

test.serial('a FIFO that is removed while it waits for its reader is an error', async (t) => {
  const fifo = fifoOf(t)
  const { openSync: begin } = fs
  let looks = 0
  fs.openSync = (...words) => {
    if (words[0] === fifo) looks += 1
    return begin(...words)
  }
  syncBuiltinESMExports()
  t.teardown(() => {
    fs.openSync = begin
    syncBuiltinESMExports()
  })
  const waiting = openTarget(fifo)
  await until(() => looks > 1, 'a reader is looked for')
  t.true(await isPending(waiting))
  rmSync(fifo)
  await t.throwsAsync(within(waiting, 'its failure'), { code: 'ENOENT' })
})

test('a FIFO is written once it has a reader, and a signal cancels the wait', async (t) => {
  const fifo = fifoOf(t)
  const never = new AbortController()
  const waiting = openTarget(fifo, never.signal)
  t.true(await isPending(waiting))
  never.abort()
  await t.throwsAsync(waiting, {
    code: 'ERR_RINGFENCE_TIMEOUT',
    message: `no process opened ${fifo} for reading in time`,
  })
  const opening = openTarget(fifo)
  const reader = text(createReadStream(fifo))
  const target = await within(opening, 'its reader')
  await fill(target, 'through the FIFO')
  await target.keep()
  await target.close()
  t.is(await within(reader, 'its end'), 'through the FIFO')
  t.true(statSync(fifo).isFIFO())
  const again = openTarget(fifo)
  const cut = text(createReadStream(fifo))
  const left = await within(again, 'its reader')
  await left.close()
  t.is(await within(cut, 'the end of one that is let go of'), '')
})

test('a file is read to its end, and its size is read again; other sources have no size', async (t) => {
  const { file } = scene(t)
  const source = await openSource(file)
  writeFileSync(file, 'x'.repeat(1_000_000))
  t.is(await source.size(), 1_000_000)
  t.is(await text(source.read()), 'x'.repeat(1_000_000))
  await source.close()
  for (const path of ['/dev/null', fifoOf(t)]) {
    const other = await openSource(path)
    t.is(await other.size(), undefined)
    await other.close()
  }
  await t.throwsAsync(openSource(join(file, 'below')), { code: 'ENOTDIR' })
  await t.throwsAsync(openSource(`${file}-missing`), { code: 'ENOENT' })
  const directory = temporaryDirectory(t)
  await t.throwsAsync(openSource(directory), {
    message: new RegExp(`^${directory} is a directory: .tar c ${directory} \\|`),
  })
})

test('a source is read until the peer has left', async (t) => {
  const fifo = fifoOf(t)
  const writer = openSync(fifo, 'r+')
  t.teardown(() => closeSync(writer))
  const source = await openSource(fifo)
  let leave!: (why: Error) => void
  const over = new Promise<Error>((resolve) => (leave = resolve))
  const reading = readUntil(source, over)
  writeFileSync(writer, 'a word')
  t.is(String((await reading.next()).value), 'a word')
  const next = reading.next()
  t.true(await isPending(next))
  const why = new Error('nobody is there')
  leave(why)
  t.is(await t.throwsAsync(within(next, 'its end')), why)
  await source.close()

  // An end without a failure does not stop reading, and an end after the last chunk is ignored.
  const { file } = scene(t)
  for (const [first, then] of [
    [Promise.resolve(undefined), undefined],
    [new Promise<Error>((resolve) => (leave = resolve)), why],
  ] as const) {
    // Standard input behaves like this if the shell redirects it from a file: it is not closed at its end.
    const stream = createReadStream('', { fd: openSync(file, 'r'), autoClose: false })
    const whole = { ...(await openSource(file)), read: () => stream }
    let content = ''
    await turns(2)
    for await (const chunk of readUntil(whole, first)) content += String(chunk)
    t.is(content, 'as it was')
    if (then !== undefined) leave(then)
    await turns(2)
    t.false(stream.destroyed)
    stream.destroy()
    await whole.close()
  }
})

test('a closed standard stream, which Node replaces by /dev/null, differs from one that was redirected there', (t) => {
  const opened = (path: string, flags: string) => {
    const fd = openSync(path, flags)
    t.teardown(() => closeSync(fd))
    return fd
  }
  const error = t.throws(() => requireOpen(opened('/dev/null', 'r+'), 'input'))
  t.true(error instanceof UsageError)
  t.is(error.message, 'standard input is closed: name a FILE (/dev/null where that is meant)')
  t.throws(() => requireOpen(opened('/dev/null', 'r+'), 'output', 'open it'), {
    message: 'standard output is closed: open it',
  })
  const { file } = scene(t)
  for (const [path, flags] of [
    ['/dev/null', 'r'],
    ['/dev/null', 'w'],
    ['/dev/zero', 'r+'],
    [file, 'r+'],
  ] as const)
    t.notThrows(() => requireOpen(opened(path, flags), 'input'), `${path} ${flags}`)
})
