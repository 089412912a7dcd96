// What a strict TypeScript program says, under both ways of finding modules.

import { join, RingfenceError, type Channel, type CloseReason, type Options } from 'ringfence'

export async function first(address: string, options: Options): Promise<string | null> {
  try {
    await using channel: Channel = await join(address, options)
    const reason: Promise<CloseReason> = channel.closed
    void reason
    for await (const message of channel) return message.toString('utf8')
    return null
  } catch (error) {
    if (error instanceof RingfenceError && error.code === 'ERR_RINGFENCE_ADDRESS_OCCUPIED') return null
    throw error
  }
}
