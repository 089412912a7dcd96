// The file that is received into: what was there stays until everything has come.

import { randomBytes } from 'node:crypto'
import { rmSync, type Stats } from 'node:fs'
import { access, constants, lstat, open, readlink, rename, stat, type FileHandle } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import type { Writable } from 'node:stream'

import { isFifo, writeFifo } from './fifo.js'

/** Links that are followed, as the kernel does. */
const LINKS = 40
/** Of the target's name in that of the temporary file: a name has at most 255 bytes. */
const NAME = 40

export interface Target {
  /** Where it is written to. Closes what it was opened for when it ends. */
  sink: Writable
  /** Everything has come: it is what the path names from here on. */
  keep(): Promise<void>
  /** Closes it. What was not kept is removed. */
  close(): Promise<void>
}

/**
 * Opens a target for writing. A regular file, or none, is written beside it, under another name, until `keep`; a device, a
 * FIFO or what is open already (`/dev/stdout`) is written to as it is. Where the process exits before, nothing stays behind.
 *
 * @param signal - Calls off the waiting for a FIFO's reader.
 */
export async function openTarget(path: string, signal: AbortSignal | undefined): Promise<Target> {
  const place = await follow(path)
  const old = place === null ? undefined : await stat(place).catch(ifMissing)
  if (place === null || (old !== undefined && !old.isFile())) return openAsItIs(path, signal)
  // No file can be put there in the end, when all has come.
  if (old === undefined && (place === '' || place.endsWith('/'))) throw new Error(`${path || "''"} names no file`)
  // Who may not write the old one may not replace it either, though the directory would allow it.
  if (old !== undefined) await access(place, constants.W_OK)
  const name = `.${basename(place).slice(0, NAME)}.${randomBytes(6).toString('hex')}.part`
  const temporary = join(dirname(place), name)
  // O_EXCL: a file that another process has put there is not written to.
  const file = await open(temporary, 'wx', old === undefined ? 0o666 : 0o600)
  const remove = () => rmSync(temporary, { force: true })
  process.on('exit', remove)
  const close = async () => {
    process.off('exit', remove)
    await file.close().finally(remove)
  }
  try {
    if (old !== undefined) await takeAfter(file, old)
  } catch (error) {
    await close()
    throw error
  }
  return { sink: file.createWriteStream(), keep: () => rename(temporary, place), close }
}

async function openAsItIs(path: string, signal: AbortSignal | undefined): Promise<Target> {
  const keep = async () => {}
  if (await isFifo(path)) {
    const sink = await writeFifo(path, signal)
    return { sink, keep, close: async () => void sink.destroy() }
  }
  const file = await open(path, 'w')
  return { sink: file.createWriteStream(), keep, close: () => file.close() }
}

/**
 * Where a path leads, also where nothing is there yet. null: to something that is open, as `/dev/stdout` and the shell's `>(…)`
 * do. Such a link's text names nothing, or not the open file itself, which a rename would not replace.
 */
async function follow(path: string): Promise<string | null> {
  const proc = (await lstat('/proc').catch(ifMissing))?.dev
  let place = path
  for (let followed = 0; followed < LINKS; followed += 1) {
    const found = await lstat(place).catch(ifMissing)
    if (!found?.isSymbolicLink()) return place
    if (found.dev === proc) return null
    place = resolve(dirname(place), await readlink(place))
  }
  // Too many: the next call says so.
  return path
}

/** The owner, group and mode of the file that it will replace. */
async function takeAfter(file: FileHandle, old: Stats): Promise<void> {
  const mine = await file.stat()
  let mode = old.mode & 0o7777
  if (mine.uid !== old.uid || mine.gid !== old.gid) {
    try {
      await file.chown(old.uid, old.gid)
    } catch {
      // Another group than the old one's gets no more than all users have.
      mode = (mode & 0o707) | ((mode & 0o007) << 3)
    }
  }
  await file.chmod(mode)
}

function ifMissing(error: NodeJS.ErrnoException): undefined {
  if (error.code === 'ENOENT') return undefined
  throw error
}
