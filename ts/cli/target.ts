// The output file of `receive`. An existing file stays unchanged until everything has arrived.

import { randomBytes } from 'node:crypto'
import { rmSync, type Stats } from 'node:fs'
import { access, constants, lstat, open, readlink, rename, stat, type FileHandle } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import type { Writable } from 'node:stream'

import { isFifo, writeFifo } from './fifo.js'

/** Maximum number of symbolic links to follow, the same as in the kernel. */
const MAX_LINKS = 40
/** Characters of the target's name that the temporary file's name includes. A name may have at most 255 bytes. */
const MAX_NAME = 40

export interface Target {
  /** The stream to write to. Closes the file when it ends. */
  sink: Writable
  /** Call once everything has arrived. Puts the new file at the path. */
  keep(): Promise<void>
  /** Closes the target, and removes the temporary file unless `keep` has put it at the path. */
  close(): Promise<void>
}

/**
 * Opens a target for writing. If the path names a regular file or nothing, the data goes to a temporary file beside it until `keep`. If the
 * process exits earlier, the temporary file is removed. A device, a FIFO or an open file (`/dev/stdout`) is written to directly.
 *
 * @param signal - Aborts the wait for a FIFO's reader.
 */
export async function openTarget(path: string, signal: AbortSignal | undefined): Promise<Target> {
  const resolved = await follow(path)
  const old = resolved === null ? undefined : await stat(resolved).catch(ifMissing)
  if (resolved === null || (old !== undefined && !old.isFile())) return openInPlace(path, signal)
  // Fail now: no file could be put at such a path after the transfer.
  if (old === undefined && (resolved === '' || resolved.endsWith('/'))) throw new Error(`${path || "''"} names no file`)
  // Without write permission for the old file, a user may not replace it either, even if the directory's permissions allow it.
  if (old !== undefined) await access(resolved, constants.W_OK)
  const name = `.${basename(resolved).slice(0, MAX_NAME)}.${randomBytes(6).toString('hex')}.part`
  const temporary = join(dirname(resolved), name)
  // 'wx' is O_EXCL: never writes to a file that another process has created.
  const file = await open(temporary, 'wx', old === undefined ? 0o666 : 0o600)
  const remove = () => rmSync(temporary, { force: true })
  process.on('exit', remove)
  const close = async () => {
    process.off('exit', remove)
    await file.close().finally(remove)
  }
  try {
    if (old !== undefined) await copyOwnership(file, old)
  } catch (error) {
    await close()
    throw error
  }
  return { sink: file.createWriteStream(), keep: () => rename(temporary, resolved), close }
}

async function openInPlace(path: string, signal: AbortSignal | undefined): Promise<Target> {
  const keep = async () => {}
  if (await isFifo(path)) {
    const sink = await writeFifo(path, signal)
    return { sink, keep, close: async () => void sink.destroy() }
  }
  const file = await open(path, 'w')
  return { sink: file.createWriteStream(), keep, close: () => file.close() }
}

/**
 * Follows the symbolic links of a path, whose target may not exist yet. Returns null for a link to an open file, as `/dev/stdout` and the
 * shell's `>(…)` are. The text of such a link does not name the open file itself, so a rename could not replace it.
 */
async function follow(path: string): Promise<string | null> {
  const procDevice = (await lstat('/proc').catch(ifMissing))?.dev
  let resolved = path
  for (let followed = 0; followed < MAX_LINKS; followed += 1) {
    const found = await lstat(resolved).catch(ifMissing)
    if (!found?.isSymbolicLink()) return resolved
    if (found.dev === procDevice) return null
    resolved = resolve(dirname(resolved), await readlink(resolved))
  }
  // Too many links: the next system call fails with the reason.
  return path
}

/** Copies the owner, group and mode of the file that will be replaced. */
async function copyOwnership(file: FileHandle, old: Stats): Promise<void> {
  const current = await file.stat()
  let mode = old.mode & 0o7777
  if (current.uid !== old.uid || current.gid !== old.gid) {
    try {
      await file.chown(old.uid, old.gid)
    } catch {
      // The owner or group could not be copied. The group then gets only the permissions of all users.
      mode = (mode & 0o707) | ((mode & 0o007) << 3)
    }
  }
  await file.chmod(mode)
}

function ifMissing(error: NodeJS.ErrnoException): undefined {
  if (error.code === 'ENOENT') return undefined
  throw error
}
