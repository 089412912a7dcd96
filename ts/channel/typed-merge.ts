// Values from many sources.

import { borrows, decodeWith, malformed, type Codec, type CodecOptions } from '../adapters/codec.js'
import { invalid } from '../errors.js'
import { checkReceiveEach } from '../endpoint/options.js'
// oxlint-disable-next-line import/no-cycle -- types alone
import type { Merge, MergeSource } from './merge.js'
import { checkWith } from './typed.js'

/** Only `with` makes them. */
const KEY = Symbol('ringfence')

/** Makes a typed merge; only {@link Merge.with} calls it. */
export function typedMerge<Source extends MergeSource, T>(
  merge: Merge<Source>,
  codec: Codec<T>,
  options: CodecOptions,
): TypedMerge<Source, T> {
  checkWith(codec, options)
  return new TypedMerge(KEY, merge, codec, borrows(codec, options))
}

/**
 * A {@link Merge} whose messages are values, each with the source that it is of. No more is `undefined`; a message that cannot be decoded
 * is MALFORMED, with its `bytes`, for one call, and costs neither its source nor the others more.
 */
export class TypedMerge<Source extends MergeSource, T> implements AsyncIterable<[Source, T]>, AsyncDisposable {
  /** The merge itself, with its events, and the messages as bytes. */
  readonly merge: Merge<Source>
  readonly #codec: Codec<T>
  readonly #lends: boolean

  /** @internal */
  constructor(key: symbol, merge: Merge<Source>, codec: Codec<T>, lends: boolean) {
    if (key !== KEY) throw invalid('typed merges are made by with')
    this.merge = merge
    this.#codec = codec
    this.#lends = lends
  }

  /** As {@link Merge.size}. */
  get size(): number {
    return this.merge.size
  }

  /** As {@link Merge.add}. */
  add(source: Source): this {
    this.merge.add(source)
    return this
  }

  /** As {@link Merge.delete}. */
  delete(source: Source): boolean {
    return this.merge.delete(source)
  }

  /** As {@link Merge.receive}; undefined: no more will come. Rejects also with MALFORMED. */
  async receive(options?: { signal?: AbortSignal }): Promise<[Source, T] | undefined> {
    const found = await this.merge.receive(options)
    return found === null ? undefined : [found[0], this.#decode(found[1])]
  }

  /**
   * As {@link Merge.receiveEach}; the values are the visitor's to keep.
   *
   * @throws {@link RingfenceError} also MALFORMED: that message counts as visited, and the next call goes on behind it.
   */
  receiveEach(visit: (source: Source, value: T) => void, max?: number): number {
    checkReceiveEach(visit, max)
    return this.merge.receiveEach((source, bytes, offset, length) => {
      const shown = Buffer.from(bytes.buffer, bytes.byteOffset + offset, length)
      visit(source, this.#decode(this.#lends ? shown : Buffer.concat([shown])))
    }, max)
  }

  /** As {@link Merge.waitReadable}. */
  waitReadable(options?: { signal?: AbortSignal }): Promise<boolean> {
    return this.merge.waitReadable(options)
  }

  [Symbol.asyncIterator](): AsyncIterator<[Source, T], undefined> {
    const messages = this.merge[Symbol.asyncIterator]()
    return {
      next: async () => {
        const { done, value } = await messages.next()
        return done ? { done, value: undefined } : { done: false, value: [value[0], this.#decode(value[1])] }
      },
      return: async () => {
        await messages.return!()
        return { done: true, value: undefined }
      },
    }
  }

  /** As {@link Merge.close}. */
  close(): Promise<void> {
    return this.merge.close()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.merge.close()
  }

  #decode(bytes: Buffer): T {
    const value = decodeWith(this.#codec, bytes)
    if (value === undefined) throw malformed(bytes, new TypeError('the codec has made undefined of it'))
    return value
  }
}
