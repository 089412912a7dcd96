// The relay between the two ends of a connection: forwards data in both directions.

import { pipeline } from 'node:stream'

import { connect } from 'ringfence'

const [address, pairs] = process.argv.slice(2)

for (let number = 0; number < Number(pairs); number += 1) {
  const one = (await connect(address)).duplex()
  const other = (await connect(address)).duplex()
  pipeline(one, other, one, () => {})
}
process.on('disconnect', () => process.exit(0))
process.send('ready')
