// `ringfence doctor` prints all findings and their meaning, worst first.

import { WriteStream } from 'node:tty'

import { internals } from './support/internals.js'
import test from 'ava'
import { doctor } from 'ringfence'

import { captureOutput } from './support/output.js'

const { diagnose } = await internals<{
  diagnose(json: boolean): void
}>('cli/doctor.js')

test.serial('each finding has a row, and its meaning below the row of its status', (t) => {
  const output = captureOutput(t, 'stdout', { columns: 10_000 })
  diagnose(false)
  const { kernel, findings } = doctor()
  const [head, rows, ...meanings] = output.text.split('\n\n')
  t.is(head, `${kernel}, Node ${process.versions.node}`)
  const marks = { good: 'good', limited: 'LIMITED', missing: 'MISSING' }
  const [headings, line, ...cells] = rows!.split('\n')
  t.deepEqual(headings!.trim().split(/ {2,}/), ['what', 'found'])
  t.regex(line!, /^─+ {2}─+ {2}─+$/)
  t.deepEqual(
    cells.map((row) => row.split(/ {2,}/).slice(0, 2)),
    findings.map(({ status, title }) => [marks[status], title]),
  )
  for (const cell of cells) t.not(cell.split(/ {2,}/)[2] ?? '', '', cell)
  // One of each status, in this order.
  const wanted = (['missing', 'limited', 'good'] as const).flatMap((status) => {
    const some = findings.filter((finding) => finding.status === status)
    return some.length === 0 ? [] : [[marks[status], ...some.map(({ title }) => `  ${title}: `)]]
  })
  t.deepEqual(
    meanings.map((part) =>
      part
        .trimEnd()
        .split('\n')
        .map((text, at) => (at === 0 ? text : text.slice(0, text.indexOf(': ') + 2))),
    ),
    wanted,
  )
  for (const part of meanings) for (const meaning of part.trimEnd().split('\n').slice(1)) t.regex(meaning, /: \S/)
})

test.serial('a table is as wide as the terminal, and else 160 columns', (t) => {
  const narrow = captureOutput(t, 'stdout', { columns: 30 })
  diagnose(false)
  const width = (text: string) =>
    Math.max(
      ...text
        .split('\n\n')[1]!
        .split('\n')
        .map((line) => line.length),
    )
  t.is(width(narrow.text), 30)
  const unknown = captureOutput(t, 'stdout')
  diagnose(false)
  t.true(width(unknown.text) <= 160)
})

test.serial('a program reads all of it as JSON', (t) => {
  const output = captureOutput(t, 'stdout')
  diagnose(true)
  const report = JSON.parse(output.text) as ReturnType<typeof doctor>
  const { kernel, findings } = doctor()
  t.is(report.kernel, kernel)
  const names = (all: typeof findings) => all.map(({ name, title, status }) => [name, title, status])
  t.deepEqual(names(report.findings), names(findings))
  for (const { found, meaning } of report.findings) t.true(found !== '' && meaning !== '')
})

test.serial('a terminal with colors shows the marks in color, and NO_COLOR and FORCE_COLOR decide otherwise', (t) => {
  const own = process.env
  t.teardown(() => void (process.env = own))
  const isColored = (isTTY: boolean, env: NodeJS.ProcessEnv) => {
    // Nothing of the real environment: CI, TMUX and others decide how many colors Node assumes.
    process.env = { TERM: 'xterm-256color', ...env }
    const { getColorDepth, hasColors } = WriteStream.prototype
    const output = captureOutput(t, 'stdout', { isTTY, getColorDepth, hasColors })
    diagnose(false)
    const { status } = doctor().findings[0]!
    const [mark, color] = { good: ['good', 32], limited: ['LIMITED', 33], missing: ['MISSING', 31] }[status]
    t.true(output.text.includes(mark as string))
    return output.text.includes(`\n\u001B[${color}m${mark}\u001B[39m\n`)
  }
  t.true(isColored(true, {}))
  t.false(isColored(true, { NO_COLOR: '1' }))
  t.false(isColored(true, { TERM: 'dumb' }))
  t.false(isColored(false, {}))
  t.true(isColored(false, { FORCE_COLOR: '1' }))
  t.false(isColored(false, { FORCE_COLOR: '0' }))
})
