// Finds out why a running pair is slow, from /proc and, if the processes are observable, from their own statistics.

import { printable } from '../../runtime/printable.js'
import { seenProcesses, type SeenProcess } from '../../runtime/processes.js'
import { Sources } from '../observed.js'
import { print, printJson } from '../output.js'
import { table } from '../text.js'
import { watchProcesses, type Activity } from './activity.js'
import {
  judgeCores,
  judgeMemory,
  judgeReader,
  judgeRing,
  judgeShm,
  judgeSizes,
  judgeWakeUps,
  type Ailment,
} from './findings.js'
import { distanceOf, memoryGroupOf, ringsInShm, shmOf, type Places } from './machine.js'
import { pairsOf, type Pair } from './streams.js'

/** Milliseconds to wait for the statistics of a process. A stopped process publishes none, and that is then the finding. */
const PATIENCE = 3000

/** Two processes with a channel, and the findings about it. */
export interface DiagnosedPair {
  address: string | null
  processes: number[]
  findings: Ailment[]
}

/** Examines a running pair for a second or two. */
export async function diagnosePair(
  target: number | string,
  places: Places = { sys: '/sys' },
): Promise<{ processes: SeenProcess[]; pairs: DiagnosedPair[] }> {
  // List the channels before this process subscribes to any statistics, or it would be listed as a subscriber.
  const processes = seenProcesses()
  const sources = new Sources(PATIENCE)
  const concerned = concernedBy(target, processes)
  await sources.find(concerned)
  const [activities] = await Promise.all([watchProcesses([...concerned]), sources.ready()])
  const pairs = pairsOf(target, processes, sources.lastTwo())
  await sources.close()
  if (pairs.length === 0) throw new Error(`${nameOf(target)} has no channel, as far as this user may see`)
  const both = new Set(pairs.flatMap(({ pid, peer }) => [pid, peer]))
  return {
    processes: processes.filter(({ pid }) => both.has(pid)),
    pairs: pairs.map((pair) => judge(pair, activities, places)),
  }
}

/** The processes whose statistics are needed: a process and its peers; for an address all, since any may have met its peer there. */
function concernedBy(target: number | string, processes: SeenProcess[]): Set<number> {
  const isIt = ({ pid, channels }: SeenProcess) =>
    typeof target === 'string' || pid === target || channels.some(({ peer }) => peer === target)
  return new Set(processes.filter(isIt).map(({ pid }) => pid))
}

const nameOf = (target: number | string): string => (typeof target === 'number' ? `process ${target}` : target)

function judge({ pid, peer, address, streams }: Pair, activities: Map<number, Activity>, places: Places) {
  const processes = [pid, peer]
  const findings: Ailment[] = []
  const [one, other] = [activities.get(pid), activities.get(peer)]
  if (one !== undefined && other !== undefined)
    findings.push(judgeCores(processes, [one, other], distanceOf(one.core, other.core, places)))
  for (const stream of streams) {
    const activity = activities.get(stream.reader)
    findings.push(judgeRing(stream), judgeReader(stream, activity), judgeWakeUps(stream, activity), judgeSizes(stream))
  }
  for (const process of processes)
    findings.push(
      judgeShm(process, ringsInShm(process), shmOf(process)),
      judgeMemory(process, memoryGroupOf(process, places)),
    )
  return { address, processes, findings }
}

const MARKS = { good: 'good', slow: 'SLOW', unknown: '?' } as const

/** Prints why a pair is slow. */
export async function explain(target: number | string, json: boolean): Promise<void> {
  const diagnosis = await diagnosePair(target)
  if (json) return printJson(diagnosis)
  for (const { address, processes, findings } of diagnosis.pairs) {
    const where = address === null ? '' : ` at ${address}`
    print(`processes ${processes.join(' and ')}${printable(where)}\n\n`)
    const rows = findings.map(({ check, status, processes: whom, found }) => [
      MARKS[status],
      check,
      whom.join(' → '),
      printable(found),
    ])
    print(`${table(['', 'what', 'process', 'found'], rows, process.stdout.columns ?? 160)}\n`)
    for (const status of ['slow', 'unknown'] as const) {
      const some = findings.filter((finding) => finding.status === status)
      if (some.length > 0) print(`\n${MARKS[status]}\n`)
      for (const { check, processes: whom, meaning } of some)
        print(`  ${check}, ${whom.join(' → ')}: ${printable(meaning)}\n`)
    }
    print('\n')
  }
}
