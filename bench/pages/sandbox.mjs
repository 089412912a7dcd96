// The results of `sandbox` as a page.

import { placementOf } from '../node/rounds.mjs'
import { duration } from '../node/text.mjs'
import { asTimes, block, figures, flow, hasRun, rate, render, spread, table } from './markdown.mjs'

const time = (value) => spread(value, duration)

export const ROWS = [
  {
    what: 'round trip of 64 B, both sides asleep between, p50',
    measure: 'rtt-parked',
    size: 64,
    figure: 'p50_ns',
    show: time,
  },
  { what: 'round trip of 64 B, both sides poll, p50', measure: 'rtt-polled', size: 64, figure: 'p50_ns', show: time },
  { what: 'one way, 64 B', measure: 'one', size: 64, figure: 'messages_per_second', show: rate },
  {
    what: 'one way, 1 MiB',
    measure: 'one',
    size: 1 << 20,
    figure: 'messages_per_second',
    show: (value) => flow(value, 1 << 20),
  },
  { what: 'a call of 8 B, both sides asleep between, p50', measure: 'rpc', size: 1, figure: 'p50_ns', show: time },
]

/** The ratios of the rounds in which both runs had the same placement: the two ran one after the other. */
function ratios(plain, sandboxed, figure) {
  const of = (run) => run.round_trip?.[figure] ?? run[figure]
  return plain.runs
    .map((run, round) => [run, sandboxed.runs[round]])
    .filter(([run, other]) => other && placementOf(run) === placementOf(other))
    .map(([run, other]) => of(other) / of(run))
    .sort((a, b) => a - b)
}

function rows({ cells }, placement) {
  const found = ROWS.map((row) => {
    const cellOf = (place) =>
      cells.find(
        ({ measure, size, contender }) => measure === row.measure && size === row.size && contender.endsWith(place),
      )
    return [row, cellOf('/spawned'), cellOf('/sandboxed')]
  })
  return found
    .filter(([, plain]) => hasRun(plain))
    .map(([{ what, figure, show }, plain, sandboxed]) => {
      const texts = [plain, sandboxed].map((cell) => {
        const { summary, mark } = figures(cell, placement) ?? {}
        return summary ? `${show(summary[figure])}${mark}` : '–'
      })
      const all = ratios(plain, sandboxed, figure)
      const at = (part) => asTimes(all[Math.floor(part * (all.length - 1))])
      return [what].concat(texts, all.length > 0 ? [at(0.5), `${at(0.25)} to ${at(0.75)}`] : ['–', '–'])
    })
}

export function page(results) {
  const section = (half, placement) =>
    block(
      '## Figures',
      `Medians of the two, then the median of the rounds' ratios and their middle half. If that half includes 1, the run shows no difference.`,
      table(['', 'without a sandbox', 'in a sandbox', 'ratio', 'middle half'], rows(half, placement)),
    )
  return render(results, {
    title: 'A child in a sandbox, measured',
    intro: [
      'Written by `npm run bench -- sandbox`; the figures are those of one run. The same child of Node,',
      'by `spawn` and `fromParent`. Method: [bench/README.md](../../../bench/README.md#a-child-in-a-sandbox).',
    ],
    single: true,
    section,
  })
}
