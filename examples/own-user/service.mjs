// The service of orders.service: it lets in what was started by orders-agent.service, as that unit's user.

import { execFileSync } from 'node:child_process'

import { harden, join } from 'ringfence'

// First of all: the policy drops the check of the executable, which is not visible to another user anyway.
harden()

const uid = Number(execFileSync('/usr/bin/id', ['-u', 'orders-agent'], { encoding: 'utf8' }))
const channel = await join('/run/orders/agent.sock', {
  policy: { uid, executable: 'any', cgroup: '/system.slice/orders-agent.service' },
  mode: 0o660,
  group: 'orders-agents',
})
for (const { step, check, found } of channel.evidence) console.log(`${step} ${check}: ${found}`)
for await (const order of channel) await channel.send(`done: ${order}`)
await channel.close()
