// What this machine is.

import fs from 'node:fs'
import os from 'node:os'

export function machine() {
  const read = (file) => {
    try {
      return fs.readFileSync(file, 'utf8').trim()
    } catch {
      return ''
    }
  }
  const info = read('/proc/cpuinfo')
  const field = (name) => info.match(new RegExp(`^${name}\\s*:\\s*(.*)$`, 'm'))?.[1] ?? ''
  const caches = [0, 1, 2, 3]
    .map((index) =>
      ['level', 'type', 'size'].map((name) => read(`/sys/devices/system/cpu/cpu0/cache/index${index}/${name}`)),
    )
    .filter(([, , size]) => size !== '')
    .map(([level, type, size]) => `L${level} ${type.toLowerCase()} ${size}`)
  return {
    cpu: `${field('model name')} (family ${field('cpu family')} model ${field('model')})`,
    cores: os.availableParallelism(),
    caches: caches.join(', '),
    memory_gib: os.totalmem() / 2 ** 30,
    kernel: os.release(),
    hypervisor: info.includes('hypervisor'),
    node: process.version,
  }
}
