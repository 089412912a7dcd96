// What the two sides of a pair say to each other: whole records, one longer than the ring, an empty one, and as many
// short ones as fill the ring twice.

const SIZES = [
  0,
  1,
  7,
  8,
  4096,
  100_000,
  3_000_000,
  ...Array.from({ length: 1000 }, (_, number) => (37 * number) % 5000),
]
const made = (size) => Buffer.alloc(size, size % 251)

exports.speak = async function speak(join, role, address) {
  // The receiver answers once the sender has ended.
  const options = { capacity: 1 << 20, allowHalfOpen: true, signal: AbortSignal.timeout(60_000) }
  const channel = await join(address, options)
  if (role === 'send') {
    for (const size of SIZES) await channel.send(made(size))
    await channel.end()
    const answer = String(await channel.receive())
    if (answer !== String(SIZES.length)) throw new Error(`the receiver counted ${answer}`)
  } else {
    let count = 0
    for await (const message of channel) {
      if (!made(SIZES[count]).equals(message)) throw new Error(`message ${count} is another`)
      count += 1
    }
    await channel.send(String(count))
  }
  await channel.close({ linger: 5000 })
}
