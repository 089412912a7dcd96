// `stacks.mjs PID …`: prints the JavaScript stacks and active handles of these processes and their descendants, for tests that hang.
//
// Node starts its inspector on SIGUSR1, in a thread of its own. So this works if the event loop is blocked too, unless it is blocked outside
// of JavaScript. All processes use the same port, one after the other. In Node 20 this needs `--experimental-websocket`.

import { readFileSync, readdirSync, readlinkSync } from 'node:fs'
import { basename } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'

const INSPECTOR = 'http://127.0.0.1:9229/json/list'
/** Milliseconds for a running program to stop, and an idle one to answer. */
const LIMIT = 3000
/** Evaluated in the process. */
const HANDLES = `process.pid + '\\n' + process.report.getReport().libuv
  .filter(({ is_active, type }) => is_active && !['async', 'check', 'prepare'].includes(type))
  .map(({ is_active, address, ...handle }) => '    ' + JSON.stringify(handle).replaceAll('\\\\u0000', '')).join('\\n')`

function withDescendants(pids) {
  const children = (pid) => {
    try {
      const threads = readdirSync(`/proc/${pid}/task`)
      return threads.flatMap(
        (thread) => readFileSync(`/proc/${pid}/task/${thread}/children`, 'latin1').match(/\d+/g) ?? [],
      )
    } catch {
      return []
    }
  }
  return pids.flatMap((pid) => [pid, ...withDescendants(children(pid))])
}

/** SIGUSR1 would end other programs. */
function isNode(pid) {
  try {
    return basename(readlinkSync(`/proc/${pid}/exe`)) === 'node'
  } catch {
    return false
  }
}

async function inspector() {
  for (const end = performance.now() + LIMIT; ; await pause(50))
    try {
      const [{ webSocketDebuggerUrl: url }] = await (await fetch(INSPECTOR)).json()
      return url
    } catch (error) {
      if (performance.now() > end) throw error
    }
}

async function show(pid) {
  console.log(`\nNode process ${pid}: ${readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ')}`)
  console.log(`  kernel function of the main thread: ${readFileSync(`/proc/${pid}/wchan`, 'latin1')}`)
  process.kill(pid, 'SIGUSR1')
  const socket = new WebSocket(await inspector())
  const waiting = new Map()
  const urls = new Map()
  socket.addEventListener('message', ({ data }) => {
    const { id, method, result, params } = JSON.parse(data)
    if (method === 'Debugger.scriptParsed') urls.set(params.scriptId, params.url)
    waiting.get(id ?? method)?.(result ?? params)
  })
  const next = (key) => Promise.race([new Promise((resolve) => waiting.set(key, resolve)), pause(LIMIT)])
  let count = 0
  const ask = (method, params = {}) => {
    socket.send(JSON.stringify({ id: (count += 1), method, params }))
    return next(count)
  }
  const evaluate = (expression) => ask('Runtime.evaluate', { expression })

  await new Promise((resolve) => socket.addEventListener('open', resolve))
  await ask('Debugger.enable')
  const paused = next('Debugger.paused')
  void ask('Debugger.pause')
  const frames = (await paused)?.callFrames ?? []
  console.log(frames.length > 0 ? '  JavaScript stack:' : '  no JavaScript is running')
  for (const { functionName, location } of frames) {
    const { scriptId, lineNumber, columnNumber } = location
    console.log(`    at ${functionName || '(anonymous)'} (${urls.get(scriptId)}:${lineNumber + 1}:${columnNumber + 1})`)
  }
  if (frames.length === 0) await ask('Debugger.disable')
  const handles = await evaluate(HANDLES)
  console.log(`  active handles of ${handles?.result?.value ?? 'a process that does not answer'}`)
  // The next process needs the port.
  void evaluate('process._debugEnd()')
  await ask('Debugger.disable')
  socket.close()
}

for (const pid of new Set(withDescendants(process.argv.slice(2)))) {
  if (!isNode(pid) || Number(pid) === process.pid) continue
  await show(pid).catch((error) => console.log(`  the inspector does not start: ${error.message}`))
}
