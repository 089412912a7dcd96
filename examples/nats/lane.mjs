// The carrier of messages from a host to another: a subject of a NATS server, or a stream of it (JetStream), which keeps them until
// they were delivered.

import { AckPolicy, DeliverPolicy, jetstream, jetstreamManager } from '@nats-io/jetstream'
import { connect } from '@nats-io/transport-node'

/** Messages that are on their way to the server, or from it, at a time. */
const WINDOW = 256

/** `stream`: whether the server shall keep them. */
export async function openLane(server, subject, stream) {
  const nats = await connect({ servers: server })
  return stream ? new Stream(nats, subject) : new Subject(nats, subject)
}

/** At most once: what the server has, while both bridges are up. */
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

  /** Resolves once the message is on its way. */
  async put(message) {
    this.#nats.publish(this.#subject, message)
    this.#sent += 1
    // NATS itself asks no publisher to wait.
    if (this.#sent % WINDOW === 0) await this.#nats.flush()
  }

  async *messages() {
    for await (const { data } of this.#nats.subscribe(this.#subject)) yield { data, done() {} }
  }

  close() {
    return this.#nats.drain()
  }
}

/** At least once: what the stream has is delivered, whichever bridge is killed and started again. */
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

  /** Makes the stream where it is missing. */
  async prepare() {
    const manager = await jetstreamManager(this.#nats)
    await manager.streams.add({ name: this.#name, subjects: [this.#subject] })
    return manager
  }

  /**
   * Resolves when there is room for another one; `kept`, once the stream has it.
   *
   * @param {string} [id] - What was put by this name a short while ago is not put again.
   */
  async put(message, { id, kept = () => {} } = {}) {
    const options = id === undefined ? {} : { msgID: id }
    const putting = this.#jetstream.publish(this.#subject, message, options).then(kept)
    this.#pending.push(putting)
    // The first that fails ends the bridge: the next one begins where the stream ends.
    if (this.#pending.length >= WINDOW) await this.#pending.shift()
  }

  /** In order, from the first that was not `done`. One reads at a time. */
  async *messages() {
    const manager = await this.prepare()
    const durable_name = `${this.#name}-reader`
    // Messages that the last reader had fetched and not handled come at once, before all that is behind it, and not after a time limit.
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
