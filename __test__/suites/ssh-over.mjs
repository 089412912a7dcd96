// Preloaded into ssh2's own tests: its clients and servers communicate over channels, through a relay in another
// process.

import { fork } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'

import { listen } from 'ringfence'
import Client from 'ssh2/lib/client.js'
import Server from 'ssh2/lib/server.js'

/** The highest number of connections of one test file. */
const PAIRS = 48

const address = `@ringfence-suites-${process.pid}`
const listener = await listen(address, { capacity: 65_536, maxPeers: 2 * PAIRS, maxPeersPerProcess: 2 * PAIRS })
const relay = fork(fileURLToPath(new URL('ssh-relay.mjs', import.meta.url)), [address, String(PAIRS)], { execArgv: [] })
const channels = []
for await (const channel of listener) if (channels.push(channel.unref()) === 2 * PAIRS) break
await once(relay, 'message')
listener.unref()
relay.unref()
relay.channel.unref()

/** The two ends of a connection. A client needs one synchronously, so all are created in advance. */
function pair() {
  if (channels.length === 0) throw new Error(`there are more than ${PAIRS} connections`)
  return channels.splice(0, 2).map((channel) => channel.ref().duplex())
}

const servers = new Map()
const { listen: listenAt } = Server.prototype
Server.prototype.listen = function (...words) {
  this._srv.once('listening', () => servers.set(this.address().port, this))
  return listenAt.apply(this, words)
}

const { connect } = Client.prototype
Client.prototype.connect = function (settings) {
  const server = servers.get(settings.port)
  if (server === undefined || settings.sock !== undefined) return connect.call(this, settings)
  const [own, other] = pair()
  setImmediate(() => server.injectSocket(other))
  return connect.call(this, { ...settings, sock: own })
}
