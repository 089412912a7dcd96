// ringfence's own calls, with functions by name. The deadline is sent with each call, and the loss of the peer rejects every pending call.

import { json } from 'ringfence'

/**
 * Returns the other side's functions. `functions`: this side's. `timeout`: milliseconds for a call. `concurrency`: the number of calls that this
 * side runs at a time; further calls wait.
 */
export function overCalls(channel, functions, { timeout = 60_000, concurrency = 1000, codec = json() } = {}) {
  const values = channel.with(codec)
  if (functions !== undefined) {
    const serving = values.serve(
      ([name, ...args]) => {
        if (!Object.hasOwn(functions, name)) throw new TypeError(`there is no function ${name}`)
        return functions[name](...args)
      },
      { concurrency },
    )
    // `closed` reports the end as well.
    serving.catch(() => {})
  }
  const remote = new Proxy(
    {},
    { get: (_, name) => (name === 'then' ? undefined : (...args) => values.call([name, ...args], { timeout })) },
  )
  return { remote, close: () => channel.close({ linger: 1000 }) }
}
