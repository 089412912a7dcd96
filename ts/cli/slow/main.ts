// Finds out why a running pair is slow, from /proc and, if the processes are observable, from their own statistics.

import { printable } from '../../runtime/printable.js'
import { seenProcesses, type SeenProcess } from '../../runtime/processes.js'
import { Sources } from '../observed.js'
import { print, printJson } from '../output.js'
import { outputTable } from '../text.js'
import { sampleProcesses, type Activity } from './activity.js'
import {
  checkCores,
  checkMemory,
  checkReader,
  checkRing,
  checkShm,
  checkSizes,
  checkWakeups,
  type PairFinding,
} from './findings.js'
import { distanceOf, memoryGroupOf, ringsInShm, shmOf, type SystemPaths } from './machine.js'
import { pairsOf, type Pair } from './streams.js'

/** Milliseconds to wait for the statistics of a process. A stopped process publishes none, and that is then the finding. */
const TIMEOUT = 3000

/** Two processes with a channel, and the findings about it. */
export interface DiagnosedPair {
  address: string | null
  processes: number[]
  findings: PairFinding[]
}

/** Examines a running pair for a second or two. */
export async function diagnosePair(
  target: number | string,
  paths: SystemPaths = { sys: '/sys' },
): Promise<{ processes: SeenProcess[]; pairs: DiagnosedPair[] }> {
  // List the channels before this process subscribes to any statistics, or it would be listed as a subscriber.
  const processes = seenProcesses()
  const sources = new Sources(TIMEOUT)
  const involved = involvedIn(target, processes)
  await sources.find(involved)
  const [activities] = await Promise.all([sampleProcesses([...involved]), sources.ready()])
  const pairs = pairsOf(target, processes, sources.lastTwo())
  await sources.close()
  if (pairs.length === 0) throw new Error(`${nameOf(target)} has no channel, as far as this user may see`)
  const members = new Set(pairs.flatMap(({ pid, peer }) => [pid, peer]))
  return {
    processes: processes.filter(({ pid }) => members.has(pid)),
    pairs: pairs.map((pair) => checkPair(pair, activities, paths)),
  }
}

/** The processes whose statistics are needed: a process and its peers; for an address all, since any may have met its peer there. */
function involvedIn(target: number | string, processes: SeenProcess[]): Set<number> {
  const isInvolved = ({ pid, channels }: SeenProcess) =>
    typeof target === 'string' || pid === target || channels.some(({ peer }) => peer === target)
  return new Set(processes.filter(isInvolved).map(({ pid }) => pid))
}

const nameOf = (target: number | string): string => (typeof target === 'number' ? `process ${target}` : target)

function checkPair({ pid, peer, address, streams }: Pair, activities: Map<number, Activity>, paths: SystemPaths) {
  const processes = [pid, peer]
  const findings: PairFinding[] = []
  const [one, other] = [activities.get(pid), activities.get(peer)]
  if (one !== undefined && other !== undefined)
    findings.push(checkCores(processes, [one, other], distanceOf(one.core, other.core, paths)))
  for (const stream of streams) {
    const activity = activities.get(stream.reader)
    findings.push(checkRing(stream), checkReader(stream, activity), checkWakeups(stream, activity), checkSizes(stream))
  }
  for (const process of processes)
    findings.push(
      checkShm(process, ringsInShm(process), shmOf(process)),
      checkMemory(process, memoryGroupOf(process, paths)),
    )
  return { address, processes, findings }
}

const MARKS = { good: 'good', slow: 'SLOW', unknown: '?' } as const

/** Prints why a pair is slow. */
export async function explain(target: number | string, json: boolean): Promise<void> {
  const diagnosis = await diagnosePair(target)
  if (json) return printJson(diagnosis)
  for (const { address, processes, findings } of diagnosis.pairs) {
    const location = address === null ? '' : ` at ${address}`
    print(`processes ${processes.join(' and ')}${printable(location)}\n\n`)
    const rows = findings.map(({ check, status, processes: pids, found }) => [
      MARKS[status],
      check,
      pids.join(' → '),
      found,
    ])
    print(outputTable(['', 'what', 'process', 'found'], rows))
    for (const status of ['slow', 'unknown'] as const) {
      const matching = findings.filter((finding) => finding.status === status)
      if (matching.length > 0) print(`\n${MARKS[status]}\n`)
      for (const { check, processes: pids, meaning } of matching)
        print(`  ${check}, ${pids.join(' → ')}: ${printable(meaning)}\n`)
    }
    print('\n')
  }
}
