// Memory that several messages share: a reader of one message must never see the bytes of another.

import test from 'ava'

import { internals } from './support/internals.js'

interface Block {
  readonly maxSize: number
  readonly minLength: number
  readonly maxLength: number
  memory: Buffer
  words: Uint32Array
  buffer: ArrayBuffer
  used: number
  makeRoom(length: number): void
}

interface Insides {
  Block: { short(): Block; long(): Block }
  MAX_SHARED: number
}

/** Not exported by the package. */
const { Block, MAX_SHARED } = await internals<Insides>('channel/block.js')
const { recordSize } = await internals<{ recordSize(length: number): number }>('native.js')

test('a record is as long as its head and its message, in steps of 8 bytes', (t) => {
  const head = recordSize(0)
  t.true(head > 0)
  for (const [length, size] of [
    [1, 8],
    [7, 8],
    [8, 8],
    [9, 16],
    [4095, 4096],
    [4096, 4096],
    [4097, 4104],
  ] as const)
    t.is(recordSize(length) - head, size, String(length))
})

test('short and long messages have separate blocks, and every length has one', (t) => {
  const [short, long] = [Block.short(), Block.long()]
  t.is(short.minLength, 0)
  t.is(long.minLength, short.maxLength + 1)
  t.is(long.maxLength, MAX_SHARED)
  t.is(MAX_SHARED, 4096, 'from there on a message has memory of its own')
  t.is(short.maxSize, 8192)
  t.is(long.maxSize, 8 * recordSize(MAX_SHARED))
})

test('a block allocates memory on first use, and again once that is used up', (t) => {
  const block = Block.short()
  t.is(block.memory.length, 0)
  block.makeRoom(0)
  const first = block.memory
  t.is(first.length, block.maxSize)
  t.is(block.memory.buffer, block.buffer)
  t.is(block.words.buffer, block.buffer)

  block.used = first.length - recordSize(100)
  block.makeRoom(100)
  t.is(block.memory, first, 'it has just enough')
  t.is(block.used, first.length - recordSize(100))
  block.used += 8
  block.makeRoom(100)
  t.not(block.buffer, first.buffer, 'another')
  t.is(block.used, 0)
  t.is(block.memory.length, first.length)
})

test('each block is twice as large as the previous one, so that a channel with few messages uses little memory', (t) => {
  const block = Block.long()
  const sizes = Array.from({ length: 5 }, () => {
    block.makeRoom(MAX_SHARED)
    block.used = block.memory.length
    return block.memory.length
  })
  t.deepEqual(sizes, [8192, 16_384, 32_768, block.maxSize, block.maxSize])
})
