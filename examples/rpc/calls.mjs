// ringfence's own calls, with functions by name. The deadline travels, and a peer that is gone rejects every pending call.

import { json } from 'ringfence'

/**
 * The other side's functions. `functions`: this side's. `timeout`: milliseconds that a call may take. `concurrency`: calls that this side
 * works on at a time; more wait.
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
