// The agent of orders-agent.service: it talks to the service alone, as that was started by its unit.

import { execFileSync } from 'node:child_process'

import { harden, join } from 'ringfence'

harden()

const uid = Number(execFileSync('/usr/bin/id', ['-u', 'orders'], { encoding: 'utf8' }))
const channel = await join('/run/orders/agent.sock', {
  policy: { uid, executable: 'any', cgroup: '/system.slice/orders.service' },
})
await channel.send('one of each')
console.log(String(await channel.receive()))
await channel.close()
