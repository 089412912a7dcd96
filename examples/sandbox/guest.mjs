// The runner inside the sandbox, which runs the code that it receives. The host is safe even if that code takes over this process.

import { createRequire } from 'node:module'

import { fromParent, structured } from 'ringfence'

const AsyncFunction = (async () => {}).constructor
const require = createRequire(import.meta.url)

const channel = await fromParent({ codec: structured() })
try {
  await channel.serve(({ code, input }, { signal }) => {
    const run = new AsyncFunction('input', 'signal', 'channel', 'require', code)
    return run(input, signal, channel, require)
  })
} catch (error) {
  // The host has destroyed the channel, or was killed.
  if (error.code !== 'ERR_RINGFENCE_PEER_LOST') throw error
}
