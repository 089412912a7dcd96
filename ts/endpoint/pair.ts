import { runHandshakeAt } from './handshake.js'
import { openChannel, vacateAtExit, type Channel } from '../channel/channel.js'
import type { Codec } from '../adapters/codec.js'
import type { JoinOptions } from '../types.js'

/**
 * Connects to the other instance at an address. The first process binds the address and waits, as the host. The second finds it bound and
 * connects, as the guest. Each proves its identity to the other. A third process gets ADDRESS_OCCUPIED.
 *
 * With the option `codec`, the messages are values.
 *
 * @example
 * ```js
 * const channel = await join('/run/me/meet', { timeout: 10_000 })
 * await channel.send('hello')
 * console.log(String(await channel.receive()))
 * await channel.close()
 * ```
 *
 * @param address - A path (named Unix socket), or `@name` (abstract, which any process on this host may connect to or bind first). At
 * most 107 bytes.
 * @throws {@link RingfenceError} INVALID_ARGUMENT, ADDRESS_INVALID, ADDRESS_OCCUPIED, PEER_REFUSED, PEER_LOST,
 * HANDSHAKE_TIMEOUT, PROTOCOL, OBJECT_EXPOSED, OBJECT_UNSOUND, NO_SPACE, TIMEOUT, UNSUPPORTED; AbortError by the signal
 */
export function join<T>(address: string, options: JoinOptions & { codec: Codec<T> }): Promise<Channel<T, T>>
export function join(address: string, options?: JoinOptions): Promise<Channel>
export function join(address: string, options: JoinOptions = {}): Promise<Channel> {
  return runHandshakeAt('join', address, options, (raw, opening) => {
    const channel = openChannel(raw, opening)
    if (channel.role === 'host') vacateAtExit(channel, address)
    return channel
  })
}
