import test from 'ava'
import { fileURLToPath } from 'node:url'

type State = { steal: number; others: number }
type Look = { near: boolean }
const { disturbances } = (await import(fileURLToPath(new URL('../../bench/node/machine.mjs', import.meta.url)))) as {
  disturbances: (state: State, looks: Look[]) => string[]
}

const near = Array.from({ length: 20 }, () => ({ near: true }))
const quiet = { steal: 0.001, others: 0.02 }

test('a benchmark on an idle machine with near cores was quiet', (t) => {
  t.deepEqual(disturbances(quiet, near), [])
})

test('stolen time, other processes and far cores each make a benchmark not quiet', (t) => {
  t.deepEqual(disturbances({ ...quiet, steal: 0.03 }, near), ['the hypervisor took 3.0 % of the time (at most 1.0 %)'])
  t.deepEqual(disturbances({ ...quiet, others: 0.5 }, near), ['other processes used 50.0 % of a core (at most 10.0 %)'])
  const far = near.map((look, index) => ({ near: index >= 4 }))
  t.deepEqual(disturbances(quiet, far), ['the cores were far apart around 20.0 % of the runs (at most 10.0 %)'])
})
