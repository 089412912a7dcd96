// FIFOs and pipes that have a name. A call that opens one, reads from it or writes to it waits for the process at its other side, on a
// thread that nothing ends: an exit of this process would wait for that thread. So all of that is left to the event loop.

import { constants, openSync } from 'node:fs'
import { stat } from 'node:fs/promises'
import { Socket } from 'node:net'
import { setTimeout as pause } from 'node:timers/promises'

import { RingfenceError } from '../errors.js'

/** Milliseconds between two looks for a reader: the kernel does not tell when one comes. */
const PERIOD = 20

/** Whether a path leads to a FIFO. One that leads nowhere does not. */
export async function isFifo(path: string): Promise<boolean> {
  const found = await stat(path).catch(() => undefined)
  return found?.isFIFO() === true
}

/** Opens a FIFO to read from. Its first byte, or its end, comes once a process has opened it to write. */
export function readFifo(path: string): Socket {
  const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK)
  return new Socket({ fd, readable: true, writable: false })
}

/** Opens a FIFO to write to, once a process has opened it to read. */
export async function writeFifo(path: string, signal: AbortSignal | undefined): Promise<Socket> {
  for (;;) {
    try {
      const fd = openSync(path, constants.O_WRONLY | constants.O_NONBLOCK)
      return new Socket({ fd, readable: false, writable: true })
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENXIO') throw error
    }
    await pause(PERIOD, undefined, { signal }).catch((error: unknown) => {
      throw new RingfenceError('TIMEOUT', `no process came to read from ${path} in time`, { cause: error })
    })
  }
}
