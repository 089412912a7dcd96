// The cells that have goals, as a page.

import { block, render, table } from './markdown.mjs'

const COLUMNS = {
  figure: 'value',
  p99: 'latency',
  goal: 'goal',
  'best rival': 'rival',
  'figure ÷ rival': 'ratio',
  'floor of the machine': 'floor',
}

export function page(results) {
  const verdict = { true: 'reached', false: '**not reached**', undefined: '–' }
  const rows = results.rows.map((row) => [
    row.what,
    ...Object.values(COLUMNS).map((name) => row[name] ?? '–'),
    row.forbidden ? 'its floor forbids it' : verdict[row.reached],
  ])
  const isEmpty = results.rows.every((row) => row.value === undefined)
  return render(results, {
    title: 'Goals',
    intro: [
      ...(isEmpty ? ['**There is no run of a quiet machine yet, so the figures are missing.**', ''] : []),
      'Written by `npm run bench -- table`; all figures are those of one run. The figure of a round trip, a call or a join is its median;',
      'p99 stands beside it. A floor is a loop that does the unavoidable part alone. Method: [bench/README.md](../../../bench/README.md#the-table).',
    ],
    lead: block('', table(['cell', ...Object.keys(COLUMNS), ''], rows)),
    section: () => [],
  })
}
