// The attacks, each in its own sandbox. A function resolves with the failure of the attempt, and rejects if the attempt succeeded.

/** Code that must fail with an error in the sandbox. */
const fails =
  (code) =>
  async ({ channel, input }) => {
    const error = await channel.call({ code, input }, { timeout: 10_000 }).then(
      (value) => {
        throw new Error(`it succeeded: ${JSON.stringify(value)}`)
      },
      (reason) => reason,
    )
    if (error.name === 'RingfenceError') throw error
    return `refused: ${error.code ?? error.message}`
  }

/** Code after which the channel is closed for this reason. */
const ends =
  (code, wanted) =>
  async ({ channel, input }) => {
    const error = await channel.call({ code, input }, { timeout: 30_000 }).catch((reason) => reason)
    if (error?.name !== 'RingfenceError') throw new Error(`the code returned ${error}`)
    const { reason } = await channel.closed
    if (reason !== wanted) throw new Error(`the channel is ${reason}`)
    return `the channel is closed as ${reason}: ${error.code}`
  }

export const attempts = {
  'opens the network': fails(`
    await new Promise((resolve, reject) => require('node:net').connect(443, '1.1.1.1').on('connect', resolve).on('error', reject))`),

  'reads a file of yours': fails(`return require('node:fs').readFileSync(input.secret, 'utf8')`),

  'kills the host': fails(`process.kill(input.host, 'SIGKILL')`),

  // The sandboxed code can write only its own ring. It overwrites the ring with junk after each message.
  'corrupts the ring': ends(
    `
    const { readFileSync, openSync, writeSync } = require('node:fs')
    const memory = openSync('/proc/self/mem', 'r+')
    const [, from, to] = /^(\\w+)-(\\w+) rw-s .*ringfence/m.exec(readFileSync('/proc/self/maps', 'utf8'))
    const [start, end] = [parseInt(from, 16), parseInt(to, 16)]
    const junk = Buffer.alloc(end - start, 0xa5)
    for (;;) {
      await channel.send({})
      writeSync(memory, junk, 0, junk.length, start)
    }`,
    'corrupt',
  ),

  'floods the host': async ({ channel, input }) => {
    const before = process.memoryUsage.rss()
    let longest = 0
    let last = performance.now()
    const clock = setInterval(() => {
      longest = Math.max(longest, performance.now() - last)
      last = performance.now()
    })
    const flood = channel.call({ code: `for (;;) await channel.send('x'.repeat(1000))`, input }, { timeout: 2000 })
    // The host reads some messages and keeps none.
    const reading = (async () => {
      for await (const _ of channel);
    })()
    await flood.catch((error) => {
      if (error.code !== 'ERR_RINGFENCE_TIMEOUT') throw error
    })
    clearInterval(clock)
    channel.destroy()
    await reading
    const grown = Math.max(0, process.memoryUsage.rss() - before) / 2 ** 20
    return `${channel.stats().messagesReceived} messages in 2 s; the host's event loop waited ${longest.toFixed(0)} ms at most, and it grew by ${grown.toFixed(0)} MiB`
  },

  'never answers': async ({ channel, input }) => {
    const error = await channel.call({ code: 'for (;;);', input }, { timeout: 500 }).catch((reason) => reason)
    return `${error.code} after its deadline`
  },

  'takes all memory': async ({ channel, input, limited }) => {
    if (!limited) return 'skipped: this user may not create a cgroup'
    const code = `const hoard = []; for (;;) hoard.push(Buffer.alloc(16 << 20, 1))`
    return ends(code, 'lost')({ channel, input })
  },
}
