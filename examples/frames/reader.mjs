// One of several readers: `node reader.mjs ADDRESS PRODUCER WIDTH HEIGHT checked|unchecked`. Reports the number of received frames to its parent.

import { subscribe } from 'ringfence'

import { checker } from './check.mjs'

const [, , address, producer, width, height, how] = process.argv
const state = checker({ width: Number(width), height: Number(height), checked: how === 'checked' })
// Exits with its parent.
const orphaned = () => process.exit(1)
process.once('disconnect', orphaned)
const subscription = await subscribe(address, {
  policy: { executable: producer },
  maxMessageSize: state.bytesOfFrame,
  wait: true,
})
while (await subscription.waitReadable()) subscription.receiveEach(state.look)
process.send({ count: state.count, seconds: (performance.now() - state.started) / 1000 })
await subscription.close()
process.off('disconnect', orphaned)
process.disconnect()
