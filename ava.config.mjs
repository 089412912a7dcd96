import { ChildProcess, spawnSync } from 'node:child_process'

// ava kills a worker if its tests run out of time, or on Ctrl+C.
const { kill } = ChildProcess.prototype
ChildProcess.prototype.kill = function killAfterStacks(...signal) {
  const stacks = ['--experimental-websocket', 'scripts/lib/stacks.mjs', String(this.pid)]
  spawnSync(process.execPath, stacks, { stdio: 'inherit', timeout: 60_000 })
  return kill.apply(this, signal)
}
process.once('SIGINT', () => {
  ChildProcess.prototype.kill = kill
})

export default {
  files: ['build/test/**/*.{test,spec}.js'],
  workerThreads: false,
  nodeArguments: ['--enable-source-maps'],
  timeout: '2m',
}
