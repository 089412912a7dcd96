// The program that the launcher starts. Processes of its user may send it SIGUSR1, which opens Node's inspector, so it hardens itself
// first. That fails if another process was faster, and nothing was sent yet then.

import { harden, join } from 'ringfence'

harden()

const channel = await join('/run/orders/agent.sock', {
  // The service's user id. The service's policy is:
  // { uid: <this user's>, executable: 'any', gid: <the launcher's> }.
  policy: { uid: 990, executable: 'any' },
})
await channel.send('launched')
console.log(String(await channel.receive()))
await channel.close()
