import { RingfenceError, type ErrorName } from '../errors.js'

/** The command line is invalid. */
export class UsageError extends Error {}

const CODES: Record<ErrorName, number> = {
  INVALID_ARGUMENT: 2,
  ADDRESS_INVALID: 3,
  ADDRESS_OCCUPIED: 3,
  PEER_REFUSED: 4,
  PEER_LOST: 5,
  CLOSED: 5,
  EVICTED: 5,
  HANDSHAKE_TIMEOUT: 6,
  TIMEOUT: 6,
  CHILD_EXITED: 5,
  PROTOCOL: 7,
  OBJECT_EXPOSED: 7,
  OBJECT_UNSOUND: 7,
  RING_CORRUPT: 7,
  MALFORMED: 7,
  // A line does not fit into the ring, which is not the peer's fault.
  MESSAGE_TOO_LARGE: 8,
  NO_SPACE: 8,
  UNSUPPORTED: 9,
}

/** The exit code for an error. */
export function exitCode(error: unknown): number {
  if (error instanceof UsageError) return 2
  // Standard output may be a file.
  if (!(error instanceof RingfenceError)) return isDiskFull(error) ? CODES.NO_SPACE : 1
  if (error.code === 'ABORT_ERR') return 6
  return CODES[error.code.slice('ERR_RINGFENCE_'.length) as ErrorName] ?? 1
}

const isDiskFull = (error: unknown) =>
  ['ENOSPC', 'EDQUOT', 'EFBIG'].includes((error as NodeJS.ErrnoException | null)?.code ?? '')

/** Converts the error of a call whose signal was aborted by --timeout. */
export function asTimeout(what: string): (error: unknown) => never {
  return (error) => {
    throw (error as NodeJS.ErrnoException).code === 'ABORT_ERR'
      ? new RingfenceError('TIMEOUT', `${what} in time`, { cause: error })
      : error
  }
}
