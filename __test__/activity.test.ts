// Sampling the activity of processes, over a fake /proc that changes between two samples. machine.test.ts uses real
// processes.

import timers from 'node:timers/promises'
import { syncBuiltinESMExports } from 'node:module'

import test, { type ExecutionContext } from 'ava'

import { clock } from './support/clock.js'
import { fails, useFakeFiles, type FakeFiles } from './support/fake-proc.js'
import { slow, type Activity } from './support/slow.js'

const { sampleProcesses } = (await slow('activity')) as {
  sampleProcesses(pids: readonly number[]): Promise<Map<number, Activity>>
}

const SAMPLES = 11

interface ThreadState {
  core: number
  ran?: number
  delayed?: number
  ticks?: [user: number, system: number]
  sleeps?: number
  state?: string
  cores?: string
}

/** A thread, with its times in milliseconds. */
function thread(pid: number, id: number, settings: ThreadState): FakeFiles {
  const at = `/proc/${pid}/task/${id}`
  const { core, ran = 0, delayed = 0, ticks = [0, 0], sleeps = 0, state = 'S', cores = '0-3' } = settings
  const words = Array.from({ length: 50 }, (_, word) => String(1000 + word))
  words[0] = state
  words.splice(11, 2, ...ticks.map(String))
  words[36] = String(core)
  return {
    [`${at}/stat`]: `${id} (a) T 1 2) ${words.join(' ')}\n`,
    [`${at}/status`]:
      `Name:\ta\nCpus_allowed:\tf\nCpus_allowed_list:\t${cores}\nMems_allowed_list:\t0\n` +
      `nonvoluntary_ctxt_switches:\t99\nvoluntary_ctxt_switches:\t${sleeps}\nnonvoluntary_ctxt_switches:\t77\n`,
    [`${at}/schedstat`]: `${ran * 1e6} ${delayed * 1e6} 1234\n`,
  }
}

/** A process with these threads, by their ids. */
const process = (pid: number, threads: { [id: number]: ThreadState | undefined }): FakeFiles =>
  Object.assign(
    { [`/proc/${pid}/task`]: Object.keys(threads) },
    ...Object.entries(threads).map(([id, settings]) => thread(pid, Number(id), settings!)),
  ) as FakeFiles

/**
 * The result of sampling these processes. Each sample sees the next of these states of /proc; later samples see the
 * last one.
 */
async function found(t: ExecutionContext, pids: number[], samples: FakeFiles[], counts = true) {
  const files: FakeFiles = {}
  let sample = 0
  const showNext = () => {
    for (const path of Object.keys(files)) delete files[path]
    if (counts) files['/proc/self/schedstat'] = '1 2 3\n'
    Object.assign(files, samples[Math.min(sample, samples.length - 1)])
    sample += 1
  }
  showNext()
  const restore = useFakeFiles(files)
  const { setTimeout: pause } = timers
  timers.setTimeout = ((milliseconds: number) => {
    clock.now += milliseconds
    showNext()
    return Promise.resolve()
  }) as never
  syncBuiltinESMExports()
  try {
    return await sampleProcesses(pids)
  } finally {
    t.is(sample, SAMPLES)
    timers.setTimeout = pause
    restore()
  }
}

/** The states of /proc for all samples, made from the number of the sample. */
const steps = (make: (step: number) => FakeFiles) => Array.from({ length: SAMPLES }, (_, step) => make(step))

test.serial('how busy a process is, and how often it sleeps, is the sum of its threads', async (t) => {
  const samples = steps((step) =>
    process(7, {
      7: { core: 1, ran: 1000 + 30 * step, delayed: 500 + 6 * step, sleeps: 10 + 3 * step },
      8: { core: 2, ran: 9000 + 24 * step, delayed: 0, sleeps: 600 },
    }),
  )
  // Samples are 60 ms apart.
  t.deepEqual(
    await found(t, [7], samples),
    new Map([[7, { isStopped: false, busy: 1, isPinned: false, core: 1, sleepsPerSecond: 50 }]]),
  )
})

test.serial('the core is the one on which the process ran longest', async (t) => {
  const on = (core: (step: number) => number, ran: (step: number) => number) =>
    steps((step) => process(7, { 7: { core: core(step), ran: ran(step) } }))
  const coreOf = async (samples: FakeFiles[]) => (await found(t, [7], samples)).get(7)!.core
  // During two samples it runs on one core for 30 ms each; during the others on another core, for 5 ms each.
  t.is(
    await coreOf(
      on(
        (step) => (step === 2 || step === 5 ? 6 : 1),
        (step) => 5 * step + 25 * (Number(step >= 2) + Number(step >= 5)),
      ),
    ),
    6,
  )
  t.is(
    await coreOf(
      on(
        (step) => (step < 6 ? 4 : 5),
        (step) => 10 * step,
      ),
    ),
    4,
    'as long on both: where it was first',
  )
  t.is(
    await coreOf(
      on(
        (step) => (step < 9 ? 4 : 5),
        () => 100,
      ),
    ),
    5,
    'where it has not run, the last',
  )
  // The times of two threads on one core are added.
  const two = steps((step) =>
    process(7, { 7: { core: 1, ran: 30 * step }, 8: { core: 2, ran: 20 * step }, 9: { core: 2, ran: 20 * step } }),
  )
  t.is((await found(t, [7], two)).get(7)!.core, 2)
})

test.serial('threads that start and exit are counted while they exist', async (t) => {
  const samples = steps((step) =>
    process(7, {
      7: { core: 1, ran: 6 * step },
      ...(step < 5 ? { 8: { core: 2, ran: 5000 + 60 * step, sleeps: 40 } } : {}),
      ...(step >= 8 ? { 9: { core: 3, ran: 70_000 + 3 * step, sleeps: 5000 } } : {}),
    }),
  )
  t.deepEqual((await found(t, [7], samples)).get(7), {
    isStopped: false,
    busy: (60 + 240 + 6) / 600,
    isPinned: false,
    core: 2,
    sleepsPerSecond: 0,
  })
})

test.serial(
  'the last sample says whether a signal or a debugger has stopped it, or whether it is pinned to one core',
  async (t) => {
    for (const [state, isStopped] of Object.entries({ T: true, t: true, S: false, R: false, D: false, Z: false })) {
      const samples = steps((step) => process(7, { 7: { core: 1, state: step < 10 ? 'S' : state } }))
      t.is((await found(t, [7], samples)).get(7)!.isStopped, isStopped, state)
    }
    for (const [cores, isPinned] of Object.entries({ '3': true, '12': true, '0-1': false, '1,3': false })) {
      const samples = steps((step) =>
        process(7, { 7: { core: 1, cores: step < 10 ? '0-99' : cores }, 8: { core: 1, cores: '5' } }),
      )
      t.is((await found(t, [7], samples)).get(7)!.isPinned, isPinned, cores)
    }
  },
)

test.serial('without the kernel’s nanoseconds or context switches, ticks are used', async (t) => {
  const samples = steps((step) => {
    const files = process(7, { 7: { core: 1, ticks: [100 + 2 * step, 50 + step] } })
    delete files['/proc/7/task/7/schedstat']
    files['/proc/7/task/7/status'] = 'Cpus_allowed_list:\t0-3\n'
    return files
  })
  t.like((await found(t, [7], samples, false)).get(7), { busy: 0.5, core: 1, sleepsPerSecond: 0 })
  // A thread that exits between the reads of two files has no time in another unit.
  const gone = steps((step) => {
    const files = process(7, {
      7: { core: 1, ran: 6 * step, ticks: [7000, 0] },
      8: { core: 2, ran: 6 * step, delayed: 90_000 },
    })
    if (step === 5) delete files['/proc/7/task/8/schedstat']
    return files
  })
  t.is((await found(t, [7], gone)).get(7)!.busy, (60 + 48) / 600)
})

test.serial('a process that is seen in one sample only has a core and nothing else', async (t) => {
  const samples = steps((step) => (step < 10 ? {} : process(7, { 7: { core: 3, ran: 5000, sleeps: 70 } })))
  t.like((await found(t, [7], samples)).get(7), { busy: 0, core: 3, sleepsPerSecond: 0 })
})

test.serial('a process that has exited, or that this user may not read, is left out', async (t) => {
  const there = process(7, { 7: { core: 1 } })
  const gone = steps((step) => (step < 10 ? { ...there, ...process(8, { 8: { core: 1 } }) } : there))
  t.deepEqual([...(await found(t, [8, 7, 9], gone)).keys()], [7])
  for (const part of ['', '/7/stat', '/7/status', '/7/schedstat'])
    for (const code of ['ENOENT', 'ESRCH', 'EACCES'])
      t.is((await found(t, [7], [{ ...there, [`/proc/7/task${part}`]: fails(code) }])).size, 0, `${part} ${code}`)
  t.deepEqual(await found(t, [], [there]), new Map())
})

test.serial('a local error during a sample is reported, and says nothing about the process', async (t) => {
  const there = process(7, { 7: { core: 1 } })
  for (const part of ['', '/7/stat', '/7/status', '/7/schedstat'])
    for (const code of ['EMFILE', 'ENOMEM']) {
      const files = { ...there, [`/proc/7/task${part}`]: fails(code) }
      const restore = useFakeFiles({ '/proc/self/schedstat': '', ...files })
      try {
        await t.throwsAsync(sampleProcesses([7]), { code: 'ERR_RINGFENCE_NO_SPACE' }, `${part} ${code}`)
      } finally {
        restore()
      }
    }
})
