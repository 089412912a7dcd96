// Carries messages from one host to another: over a subject of a NATS server, or over a stream (JetStream), which stores them until
// they are delivered.

import { AckPolicy, DeliverPolicy, jetstream, jetstreamManager } from '@nats-io/jetstream'
import { connect } from '@nats-io/transport-node'

/** The maximum number of messages in flight to or from the server. */
const WINDOW = 256

/** `stream`: whether the server stores the messages. */
export async function openLane(server, subject, stream) {
  const nats = await connect({ servers: server })
  return stream ? new Stream(nats, subject) : new Subject(nats, subject)
}

/** At most once: delivers messages while both bridges run. */
class Subject {
  #nats
  #subject
  #sent = 0

  constructor(nats, subject) {
    this.#nats = nats
    this.#subject = subject
  }

  get maxMessageSize() {
    return this.#nats.info.max_payload
  }

  async prepare() {}

  /** Resolves once the message was sent. */
  async put(message) {
    this.#nats.publish(this.#subject, message)
    this.#sent += 1
    // NATS has no backpressure for publishers.
    if (this.#sent % WINDOW === 0) await this.#nats.flush()
  }

  async *messages() {
    for await (const { data } of this.#nats.subscribe(this.#subject)) yield { data, done() {} }
  }

  close() {
    return this.#nats.drain()
  }
}

/** At least once: stored messages are delivered even if bridges are killed and restarted. */
class Stream {
  #nats
  #subject
  #name
  #jetstream
  #pending = []

  constructor(nats, subject) {
    this.#nats = nats
    this.#subject = subject
    this.#name = subject.replaceAll('.', '-')
    this.#jetstream = jetstream(nats)
  }

  get maxMessageSize() {
    return this.#nats.info.max_payload
  }

  /** Creates the stream if it is missing. */
  async prepare() {
    const manager = await jetstreamManager(this.#nats)
    await manager.streams.add({ name: this.#name, subjects: [this.#subject] })
    return manager
  }

  /**
   * Resolves when there is room for another message; `kept` resolves once the stream has stored it.
   *
   * @param {string} [id] - A message with the id of a recent one is not stored again.
   */
  async put(message, { id, kept = () => {} } = {}) {
    const options = id === undefined ? {} : { msgID: id }
    const putting = this.#jetstream.publish(this.#subject, message, options).then(kept)
    this.#pending.push(putting)
    // The first failure ends the bridge. The next bridge continues at the end of the stream.
    if (this.#pending.length >= WINDOW) await this.#pending.shift()
  }

  /** Yields messages in order, from the first that was not `done`. Only one reader at a time. */
  async *messages() {
    const manager = await this.prepare()
    const durable_name = `${this.#name}-reader`
    // Messages that the previous reader fetched and did not handle are redelivered immediately and first, not after a timeout.
    const before = await manager.consumers.info(this.#name, durable_name).catch(() => null)
    if (before !== null) await manager.consumers.delete(this.#name, durable_name)
    await manager.consumers.add(this.#name, {
      durable_name,
      ack_policy: AckPolicy.All,
      max_ack_pending: 4 * WINDOW,
      deliver_policy: DeliverPolicy.StartSequence,
      opt_start_seq: (before?.ack_floor.stream_seq ?? 0) + 1,
    })
    const consumer = await this.#jetstream.consumers.get(this.#name, durable_name)
    for await (const message of await consumer.consume({ max_messages: WINDOW })) {
      yield { data: message.data, done: () => message.ack() }
    }
  }

  async close() {
    await Promise.all(this.#pending)
    await this.#nats.drain()
  }
}
