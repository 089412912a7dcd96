// npm run bench -- [COMMAND …] [options]: measures, and writes docs/bench. Several commands run one after the other.

import process from 'node:process'
import { parseArgs } from 'node:util'

import { fetchDeps } from './commands/shared.mjs'

const COMMANDS = new Set(['peers', 'broadcast', 'objects', 'scale', 'guard', 'quick', 'agents', 'reading'])

/** They draw plots, or have rivals from npm. */
const WITH_DEPS = new Set(['peers', 'broadcast', 'objects', 'scale'])

const HELP = `npm run bench -- [COMMAND] [options]

  peers       ringfence and its rivals between two processes (what runs without a command)
  broadcast   one publisher and 1 to 16 subscribers, beside rivals
  objects     values, calls and single messages in Node, beside rivals
  scale       ringfence alone, as channels, messages and rings grow
  guard       this tree beside a base revision: what got slower than the noise; two minutes
  quick       half a minute, ringfence and a Unix socket in Node
  agents      what a service holds for each of 1,000 agents
  reading     CPU of a reader in Node, beside other trees

  COMMAND --help      its options; COMMAND COMMAND: one after the other, each with its defaults`

const arguments_ = process.argv.slice(2)
const names = []
while (COMMANDS.has(arguments_[0])) names.push(arguments_.shift())

async function main() {
  if (names.length === 0 && (arguments_.includes('--help') || arguments_.includes('-h'))) {
    console.log(HELP)
    return
  }
  const chosen = names.length > 0 ? names : ['peers']
  for (const name of chosen) {
    if (WITH_DEPS.has(name)) fetchDeps()
    const { help, options, run, takes = 0 } = await import(`./commands/${name}.mjs`)
    const { values, positionals } = parseArgs({
      args: arguments_,
      options: { ...options, help: { type: 'boolean', short: 'h' } },
      allowNegative: true,
      allowPositionals: takes > 0,
    })
    if (values.help) console.log(`npm run bench -- ${help}`)
    else await run(values, positionals)
  }
}

try {
  await main()
} catch (error) {
  console.error(error.code?.startsWith('ERR_PARSE_ARGS') ? `${error.message}\n\n${HELP}` : error)
  process.exitCode = 1
}
