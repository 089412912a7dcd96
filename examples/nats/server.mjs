import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'

/** Starts a NATS server on a free port. */
export async function startServer(executable, words = []) {
  const server = spawn(executable, ['--addr', '127.0.0.1', '--port', '-1', ...words], {
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  const exited = Promise.race([once(server, 'exit'), once(server, 'error').then(([error]) => Promise.reject(error))])
  const ready = (async () => {
    for await (const line of createInterface({ input: server.stderr })) {
      const found = /Listening for client connections on (\S+)/.exec(line)
      if (found) return found[1]
    }
    throw new Error('the NATS server has ended before it was ready')
  })()
  const address = await Promise.race([ready, exited.then(() => ready)])
  server.stderr.resume()
  return {
    address,
    async stop() {
      server.kill()
      await exited
    },
  }
}
