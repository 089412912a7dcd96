// FIFOs and named pipes. A blocking open, read or write waits for the process at the other side, on a thread that cannot be stopped. The
// exit of this process would wait for that thread. So this module uses non-blocking calls and the event loop.

import { constants, openSync } from 'node:fs'
import { stat } from 'node:fs/promises'
import { Socket } from 'node:net'
import { setTimeout as pause } from 'node:timers/promises'

import { asTimeout } from './exit.js'

/** Milliseconds between two checks for a reader. The kernel does not notify a writer of one. */
const PERIOD = 20

/** Whether a path leads to a FIFO. False if nothing is there. */
export async function isFifo(path: string): Promise<boolean> {
  return (await stat(path).catch(() => undefined))?.isFIFO() === true
}

/** Opens a FIFO for reading. Its first byte or its end arrives once a process has opened it for writing. */
export function readFifo(path: string): Socket {
  const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK)
  return new Socket({ fd, readable: true, writable: false })
}

/** Opens a FIFO for writing, once a process has opened it for reading. */
export async function writeFifo(path: string, signal: AbortSignal | undefined): Promise<Socket> {
  for (;;) {
    try {
      const fd = openSync(path, constants.O_WRONLY | constants.O_NONBLOCK)
      return new Socket({ fd, readable: false, writable: true })
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENXIO') throw error
    }
    await pause(PERIOD, undefined, { signal }).catch(asTimeout(`no process opened ${path} for reading`))
  }
}
