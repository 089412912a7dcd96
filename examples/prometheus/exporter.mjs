// Scrapes in a separate process, for main.mjs: `node exporter.mjs DIRECTORY PLACES`.

import { collectMetrics } from './metrics.mjs'

const [directory, places] = process.argv.slice(2)
const metrics = await collectMetrics({ directory, places: Number(places) })
process.on('message', async (id) => process.send({ id, text: await metrics.scrape() }))
process.send({ ready: metrics.size })
