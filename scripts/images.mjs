// The pictures of the documentation that are made from something; docs/images/channel.svg is drawn by hand.
//
//     node scripts/images.mjs chart      docs/images/speed.svg, from docs/internals/bench/results.json
//     node scripts/images.mjs terminal   docs/images/terminal.svg, from a run of the real programs: as root, which can start
//                                        a process of another user; needs a build

import { spawn, spawnSync } from 'node:child_process'
import { chmodSync, cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as wait } from 'node:timers/promises'
import { fail, root, subcommand } from './lib/run.mjs'

import { figures, usualPlacement } from '../bench/pages/markdown.mjs'

const images = join(root, 'docs', 'images')
const escape = (text) => String(text).replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;')

// The chart.

const CONTENDERS = [
  ['ringfence', 'ringfence'],
  ['unix-corked', 'Unix socket, gathered by hand'],
  ['message-port', 'MessagePort (threads)'],
  ['redis', 'Redis'],
  ['unix', 'Unix socket'],
  ['zeromq', 'ZeroMQ'],
  ['child-process', 'child_process'],
]

/** Two panels of bars: many short messages, and a stream of longer ones. */
function drawChart() {
  const results = JSON.parse(readFileSync(join(root, 'docs', 'internals', 'bench', 'results.json'), 'utf8'))
  const { cells } = results.halves.find((half) => half.name === 'node')
  const figure = (contender, size, name) => {
    const cell = cells.find((one) => one.contender === contender && one.measure === 'one' && one.size === size)
    const summary = figures(cell, usualPlacement(cells))?.summary
    if (summary === undefined) fail(`✗ docs/internals/bench/results.json has no ${contender} at ${size} B.`)
    return summary[name].median
  }
  const panels = [
    { title: '64 B, million messages a second', size: 64, name: 'messages_per_second', unit: 1e6, x: 230 },
    { title: '1 KiB, GB a second', size: 1024, name: 'bytes_per_second', unit: 1e9, x: 560 },
  ]
  const [width, bar, top] = [230, 22, 84]
  const height = top + CONTENDERS.length * (bar + 10) + 40
  const out = CONTENDERS.map(([id, name], row) => {
    const strong = id === 'ringfence' ? ' strong' : ''
    return `<text class="name${strong}" x="218" y="${top + row * (bar + 10) + 16}" text-anchor="end">${name}</text>`
  })
  for (const { title, size, name, unit, x } of panels) {
    const values = CONTENDERS.map(([id]) => figure(id, size, name) / unit)
    const most = Math.max(...values)
    out.push(`<text class="panel" x="${x}" y="${top - 14}">${title}</text>`)
    for (const [row, value] of values.entries()) {
      const y = top + row * (bar + 10)
      const long = Math.max((value / most) * width, 1.5)
      const text = value >= 10 ? value.toFixed(1) : value.toFixed(2)
      out.push(
        `<rect class="${row === 0 ? 'ours' : 'theirs'}" x="${x}" y="${y}" width="${long.toFixed(1)}" height="${bar}" rx="3"/>`,
        `<text class="value" x="${(x + long + 7).toFixed(1)}" y="${y + 16}">${text}</text>`,
      )
    }
  }
  const { machine } = results
  const where = `${machine.cpu.split(' (')[0]}${machine.hypervisor ? ', virtual' : ''}, ${machine.cores} cores; Node ${results.node.slice(1)}; ${results.date}; medians of ${results.runs}`
  writeFileSync(
    join(images, 'speed.svg'),
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 ${height}" width="860" height="${height}" role="img" aria-label="Throughput in Node beside other ways between two processes">
<style>
  text { font: 13px system-ui, "DejaVu Sans", sans-serif; fill: #343a40 }
  .page { fill: #ffffff } .title { font-size: 16px; font-weight: 600 } .panel { font-weight: 600 }
  .strong { font-weight: 700 } .note { font-size: 12px; fill: #495057 }
  .ours { fill: #d6336c } .theirs { fill: #adb5bd }
  @media (prefers-color-scheme: dark) {
    text { fill: #e9ecef } .page { fill: #16181d } .note { fill: #adb5bd } .ours { fill: #f06595 } .theirs { fill: #5c636a }
  }
</style>
<rect class="page" width="860" height="${height}" rx="10"/>
<text class="title" x="24" y="34">Between two processes in Node: one send a message, every byte written and read</text>
${out.join('\n')}
<text class="note" x="24" y="${height - 18}">${escape(where)}</text>
</svg>
`,
  )
  console.log('docs/images/speed.svg')
}

// The terminal.

const COLUMNS = 104
const ALICE = 1000
const MALLORY = 1001
const RECEIVE = 'ringfence receive @photos --evidence | tar x'
const SEND = 'tar c . | ringfence send @photos'
/** A process of another user that wants alice as its peer. Only alice's own policy stops it. */
const STEAL = `node -e "const { join } = require('ringfence')
  join('@photos', { policy: { uid: ${ALICE} } }).catch((e) => console.log(e.code, e.message))"`

/**
 * One run of the real programs, and what each of three terminals showed. The times are not those of the run, which is over in
 * a moment: they are for reading.
 */
async function recordTerminal() {
  if (process.getuid() !== 0) fail('✗ Only root can start a process of another user.')
  const [home, fast] = [tmpdir(), '/dev/shm'].map((place) => mkdtempSync(join(place, 'ringfence-images-')))
  try {
    const bin = join(home, 'bin')
    for (const folder of [bin, join(home, 'node_modules')]) mkdirSync(folder)
    for (const part of ['package.json', 'dist', 'binding'])
      cpSync(join(root, part), join(home, part), { recursive: true })
    // All of them run one executable, which every user can reach.
    cpSync(process.execPath, join(bin, 'node'))
    writeFileSync(join(bin, 'ringfence'), `#!/bin/sh\nexec ${bin}/node ${home}/dist/esm/cli.js "$@"\n`)
    for (const file of [home, join(bin, 'node'), join(bin, 'ringfence')]) chmodSync(file, 0o755)
    symlinkSync(home, join(home, 'node_modules', 'ringfence'))
    // In memory, so that it is not the disk that is shown.
    const [work, received] = [join(fast, 'photos'), join(fast, 'received')]
    for (const folder of [work, received]) mkdirSync(folder)
    for (let number = 1; number <= 6; number += 1) cpSync(join(bin, 'node'), join(work, `photo-${number}.raw`))
    spawnSync('chown', ['-R', `${ALICE}:${ALICE}`, work, received])
    spawnSync('chmod', ['-R', 'a+rX', home, fast])

    const at = (user, cwd, line) => {
      const text = []
      const shown = `stty cols ${COLUMNS}; ${line}`
      const ids = [`--reuid=${user}`, `--regid=${user}`, '--clear-groups']
      const env = { PATH: `${bin}:${process.env.PATH}`, HOME: home, TERM: 'xterm', SHELL: '/bin/sh' }
      const child = spawn('setpriv', [...ids, 'script', '-qefc', shown, '/dev/null'], {
        cwd,
        env,
        stdio: ['ignore', 'pipe', 'inherit'],
      })
      child.stdout.on('data', (chunk) => text.push(chunk))
      return { ended: new Promise((resolve) => child.once('close', resolve)), lines: () => onScreen(text) }
    }
    const receiver = at(ALICE, received, RECEIVE)
    // The receiver is the host once the kernel has its name.
    for (let looks = 0; !readFileSync('/proc/net/unix', 'latin1').includes('@photos\n'); looks += 1) {
      if (looks > 400) fail('✗ ringfence receive has bound no address.')
      await wait(25)
    }
    const stranger = at(MALLORY, home, STEAL)
    await stranger.ended
    const sender = at(ALICE, work, SEND)
    await sender.ended
    await receiver.ended
    const panes = [
      { who: 'alice', title: 'alice', line: RECEIVE, ran: receiver },
      { who: 'mallory', title: 'mallory, another user', line: STEAL, ran: stranger },
      { who: 'alice', title: 'alice, in another terminal', line: SEND, ran: sender },
    ]
    writeFileSync(join(images, 'terminal.svg'), drawTerminal(panes))
    console.log('docs/images/terminal.svg')
  } finally {
    for (const folder of [home, fast]) rmSync(folder, { recursive: true, force: true })
  }
}

/** The final contents of the terminal: a carriage return starts the line again. */
function onScreen(chunks) {
  const text = Buffer.concat(chunks).toString().replaceAll('\r\n', '\n').replaceAll('\u001B[K', '')
  const lines = text.split('\n').map((line) => line.slice(line.lastIndexOf('\r') + 1).trimEnd())
  return lines.flatMap(wrap).filter((line, index, all) => line !== '' || index < all.length - 1)
}

function wrap(line) {
  const parts = []
  for (let rest = line; parts.length === 0 || rest !== ''; rest = rest.slice(COLUMNS))
    parts.push(rest.slice(0, COLUMNS))
  return parts
}

/** A long table is left out in its middle, and says so. */
function shorten(lines) {
  const [head, tail] = [16, 5]
  const left = lines.length - head - tail
  if (left < 2) return lines
  return [...lines.slice(0, head), `⋮   ${left} further checks`, ...lines.slice(-tail)]
}

const [CELL, LEADING, EDGE] = [8.05, 18, 18]

/** Each line of the three panes, and the second in which it comes. */
function drawTerminal(panes) {
  const width = Math.ceil(COLUMNS * CELL + 2 * EDGE)
  const out = []
  const rules = []
  // The order of the story: the receiver waits, the stranger is refused, the sender comes, and both have their output.
  const begins = [0.5, 3, 10.5]
  const answers = [13.5, 7.5, 16]
  const length = 24
  const appear = (second) => {
    const name = `t${rules.length}`
    const percent = ((second / length) * 100).toFixed(2)
    rules.push(`@keyframes ${name} { 0% { opacity: 0 } ${percent}% { opacity: 1 } 100% { opacity: 1 } }`)
    return `style="animation: ${name} ${length}s step-end infinite"`
  }
  const text = (content, column, y, attributes) => {
    const [x, long] = [EDGE + column * CELL, content.length * CELL]
    return `<text x="${x.toFixed(1)}" y="${y}" textLength="${long.toFixed(1)}" lengthAdjust="spacingAndGlyphs" ${attributes}>${escape(content)}</text>`
  }
  let y = 0
  for (const [index, { who, title, line, ran }] of panes.entries()) {
    out.push(
      `<rect class="bar" x="0" y="${y}" width="${width}" height="26"/>`,
      `<text class="title" x="${EDGE}" y="${y + 18}">${escape(title)}</text>`,
    )
    y += 26 + LEADING + 4
    const prompt = `${who}$`
    out.push(text(prompt, 0, y, `class="prompt ${who}"`))
    let column = prompt.length + 1
    // Typed a word at a time.
    for (const [word, part] of line.split(/ |(?<=\n)/).entries()) {
      const second = begins[index] + word * 0.2
      if (part.trim() !== '') out.push(text(part.trim(), column, y, appear(second)))
      column += part.length + 1
      if (!part.endsWith('\n')) continue
      y += LEADING
      column = prompt.length + 1
      out.push(text('>', prompt.length - 1, y, `class="prompt ${who}" ${appear(second)}`))
    }
    for (const [row, shown] of shorten(ran.lines()).entries()) {
      y += LEADING
      if (shown === '') continue
      const bad = who === 'mallory' ? 'class="bad" ' : ''
      const second = answers[index] + row * 0.1
      // Runs of blanks would be drawn as one.
      for (const match of shown.matchAll(/\S+(?: \S+)*/g)) {
        const good = match[0] === 'ok' ? 'class="good" ' : bad
        out.push(text(match[0], match.index, y, good + appear(second)))
      }
    }
    y += 14
  }
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${y}" width="${width}" height="${y}" role="img" aria-label="A transfer between two terminals of one user, with the evidence of each check, and another user who is refused">
<style>
  text { font: 13px ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; fill: #dee2e6; white-space: pre }
  .page { fill: #16181d } .bar { fill: #2b2f36 } .title { fill: #adb5bd; font: 12.5px system-ui, "DejaVu Sans", sans-serif }
  .prompt { font-weight: 700 } .alice { fill: #74c0fc } .mallory { fill: #ff8787 } .good { fill: #8ce99a } .bad { fill: #ffa8a8 }
  @media (prefers-reduced-motion: reduce) { text { animation: none !important } }
${rules.map((rule) => `  ${rule}`).join('\n')}
</style>
<clipPath id="edge"><rect width="${width}" height="${y}" rx="10"/></clipPath>
<g clip-path="url(#edge)">
<rect class="page" width="${width}" height="${y}"/>
${out.join('\n')}
</g>
</svg>
`
}

await subcommand({ chart: drawChart, terminal: recordTerminal })
