// A parent and its child with a private line between them: see README.md.

import { once } from 'node:events'
import { fileURLToPath } from 'node:url'

import { fromParent, spawn } from 'ringfence'

await (process.argv[2] === 'child' ? child() : parent())

async function parent() {
  const self = fileURLToPath(import.meta.url)
  const started = await spawn(process.execPath, [self, 'child'], { spawn: { stdio: 'inherit' } })
  const { channel } = started
  const exited = once(started.child, 'exit')

  console.log(`parent ${process.pid}: my child is process ${channel.peer.pid}, and this is why I believe it:`)
  for (const { step, check, wanted, found } of channel.evidence) {
    console.log(`  ${step.padEnd(12)} ${check.padEnd(14)} ${found}  (wanted: ${wanted})`)
  }
  for (const question of ['6 * 7', '2 ** 10', '1 / 3']) {
    await channel.send(question)
    console.log(`parent: ${question} is ${await channel.receive()}`)
  }
  await channel.end()
  const [code] = await exited
  console.log(`parent: the channel is ${(await channel.closed).reason}, and the child has exited with ${code}`)
}

async function child() {
  const channel = await fromParent()
  for await (const question of channel) {
    const [left, operator, right] = question.toString().split(' ')
    await channel.send(String(calculate(Number(left), operator, Number(right))))
  }
  await channel.end()
}

function calculate(left, operator, right) {
  switch (operator) {
    case '*':
      return left * right
    case '**':
      return left ** right
    default:
      return left / right
  }
}
