import { begin } from './begin.js'
import { openChannel, vacateAtExit, type Channel } from './channel.js'
import { native } from './native.js'
import type { ConnectOptions, PlaceOptions } from './types.js'

/**
 * Meets the other instance at an address. The first one binds it and waits, as the host; the second finds it bound
 * and connects, as the guest; each proves to the other who it is. A third gets ADDRESS_OCCUPIED.
 *
 * @param address - A path (named Unix socket), or `@name` (abstract, which any process on this host may connect to
 * or take first). At most 107 bytes.
 * @throws {@link RingfenceError} INVALID_ARGUMENT, ADDRESS_INVALID, ADDRESS_OCCUPIED, PEER_REFUSED, PEER_LOST,
 * HANDSHAKE_TIMEOUT, PROTOCOL, OBJECT_EXPOSED, OBJECT_UNSOUND, NO_SPACE, ABORTED, UNSUPPORTED
 */
export function join(address: string, options: PlaceOptions = {}): Promise<Channel> {
  return begin('join', native.join, address, options, (raw, { options: { busyPoll } }) => {
    const channel = openChannel(raw, busyPoll ?? 0)
    if (channel.role === 'host') vacateAtExit(channel, address)
    return channel
  })
}

/**
 * Connects to the service at an address, which it never binds. A process may connect several times, and gets a channel
 * each time.
 *
 * Where nobody listens it rejects with PEER_LOST, and where the service is full with ADDRESS_OCCUPIED; with the option
 * `wait` it waits for the service to come, and for a seat. What waiting does not mend is ADDRESS_INVALID: a directory
 * that is missing, a socket that this process may not connect to.
 *
 * At most 16 handshakes of one process with one address are under way at a time; the others wait for their turn, and
 * `timeout` counts from there. A process cannot connect to a service of its own (ADDRESS_OCCUPIED).
 *
 * @param address - As for {@link join}.
 * @throws {@link RingfenceError} as {@link join}
 */
export function connect(address: string, options: ConnectOptions = {}): Promise<Channel> {
  return begin('connect', native.connect, address, options, (raw, { options: { busyPoll } }) =>
    openChannel(raw, busyPoll ?? 0),
  )
}
