// A worker with typical metrics, for main.mjs and test.mjs: carries out the primary's commands.

import { exposeMetrics } from './metrics.mjs'
import prometheus from 'prom-client'

const [directory, routes = '1', every = '200'] = process.argv.slice(2)
// Also as a worker of prom-client's own cluster support.
void new prometheus.AggregatorRegistry()
if (Number(routes) > 1) prometheus.collectDefaultMetrics()
const requests = new prometheus.Counter({ name: 'requests_total', help: 'Requests', labelNames: ['route'] })
const took = new prometheus.Histogram({ name: 'took_seconds', help: 'Seconds', labelNames: ['route'] })
for (let route = 0; route < Number(routes); route += 1) {
  requests.inc({ route })
  took.observe({ route }, route / 100)
}

const exposed = await exposeMetrics({ directory, every: Number(every) })
process.on('message', async (message) => {
  if (typeof message.add !== 'number') return
  requests.inc({ route: 0 }, message.add)
  if (message.now) await exposed.now()
  process.send('added')
})
process.send('ready')
