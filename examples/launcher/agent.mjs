// The program that the launcher starts. Its user may still send it signals, SIGUSR1 too, which opens Node's inspector: so this comes
// first. It fails where another process was faster, and then nothing has been said yet.

import { harden, join } from 'ringfence'

harden()

const channel = await join('/run/orders/agent.sock', {
  // The service's user, which has a number of its own. Its policy, in turn:
  // { uid: <this user's>, executable: 'any', gid: <the launcher's> }.
  policy: { uid: 990, executable: 'any' },
})
await channel.send('launched')
console.log(String(await channel.receive()))
await channel.close()
