// A service that depends only on its channel: it cannot tell whether its partner is on this host, or is the bridge
// to another host.
//
//     node service.mjs ADDRESS asks COUNT
//     node service.mjs ADDRESS answers

import { join } from 'ringfence'

const [address, what, count] = process.argv.slice(2)
const channel = await join(address)

if (what === 'answers') {
  for await (const question of channel) await channel.send(`${question} is ${Number(question) ** 2}`)
  await channel.end()
} else {
  const asking = (async () => {
    for (let number = 0; number < Number(count); number += 1) await channel.send(String(number))
    await channel.end()
  })()
  let answers = 0
  for await (const answer of channel) {
    const wanted = `${answers} is ${answers ** 2}`
    if (String(answer) !== wanted) throw new Error(`the answer is ${answer}, and not ${wanted}`)
    answers += 1
  }
  await asking
  console.log(`${answers} questions were answered on the other host, in order`)
  if (answers !== Number(count)) process.exitCode = 1
}
await channel.closed
