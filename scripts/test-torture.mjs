// Workers that are terminated at any moment while they send, wait, drain, reserve, close and meet, as often as the
// argument says: `npm run test:torture -- 10000`. `npm test` does the same a few hundred times. Needs a build.

import { fail, run, script, tool } from './lib.mjs'

const times = Number(process.argv[2] ?? 10_000)
if (!Number.isInteger(times) || times < 200) fail('✗ The number of workers is a whole one, from 200 on.')

script('build-test.mjs')
const options = ['build/test/worker.test.js', '--match', 'workers may be terminated*', '--timeout', `${times}s`]
run(`${times} workers`, tool('ava'), options, { env: { RINGFENCE_TORTURE: String(times) } })
