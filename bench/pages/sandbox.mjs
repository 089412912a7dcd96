// The results of `sandbox` as a page.

import { placementOf } from '../node/rounds.mjs'
import { duration } from '../node/text.mjs'
import { asTimes, block, figures, flow, hasRun, rate, render, spread, table } from './markdown.mjs'

const time = (value) => spread(value, duration)

/** `[measure, size, figure, formatter]` of each row. */
export const ROWS = {
  'round trip of 64 B, both sides asleep between, p50': ['rtt-parked', 64, 'p50_ns', time],
  'round trip of 64 B, both sides poll, p50': ['rtt-polled', 64, 'p50_ns', time],
  'one way, 64 B': ['one', 64, 'messages_per_second', rate],
  'one way, 1 MiB': ['one', 1 << 20, 'messages_per_second', (value) => flow(value, 1 << 20)],
  'a call of 8 B, both sides asleep between, p50': ['rpc', 1, 'p50_ns', time],
}

/** The ratios of the rounds in which both runs, one after the other, had the same placement. */
function ratios(plain, sandboxed, figure) {
  const of = (run) => run.round_trip?.[figure] ?? run[figure]
  return plain.runs
    .map((run, round) => [run, sandboxed.runs[round]])
    .filter(([run, other]) => other && placementOf(run) === placementOf(other))
    .map(([run, other]) => of(other) / of(run))
    .sort((a, b) => a - b)
}

function rows({ cells }, placement) {
  return Object.entries(ROWS).flatMap(([what, [measure, size, figure, show]]) => {
    const own = cells.filter((cell) => cell.measure === measure && cell.size === size)
    const [plain, sandboxed] = ['/spawned', '/sandboxed'].map((place) =>
      own.find(({ contender }) => contender.endsWith(place)),
    )
    if (!hasRun(plain)) return []
    const texts = [plain, sandboxed].map((cell) => {
      const { summary, mark } = figures(cell, placement) ?? {}
      return summary ? `${show(summary[figure])}${mark}` : '–'
    })
    const all = ratios(plain, sandboxed, figure)
    const at = (part) => asTimes(all[Math.floor(part * (all.length - 1))])
    return [[what, ...texts, ...(all.length > 0 ? [at(0.5), `${at(0.25)} to ${at(0.75)}`] : ['–', '–'])]]
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
