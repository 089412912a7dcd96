// npm run bench -- [COMMAND …] [options]: measures, and writes docs/internals/bench. Several commands run one after the other.

import process from 'node:process'
import { parseArgs } from 'node:util'

const COMMANDS = {
  table: 'every cell that has a goal, with its rivals, its floor and the state of the machine',
  peers: 'ringfence and its rivals between two processes (the default)',
  broadcast: 'one publisher and 1 to 16 subscribers, with rivals',
  objects: 'values, calls and single messages in Node, with rivals',
  scale: 'ringfence alone, as channels, messages and rings grow',
  sandbox: 'a child with and without a sandbox, in Node',
  guard: 'compares this tree with a base revision: slowdowns above the noise, in two minutes',
  pages: 'renders the pages again from the results of earlier runs',
}

const row = (name, about) => `  ${name.padEnd(22)}${about}`
const HELP = `npm run bench -- [COMMAND] [options]

${Object.entries(COMMANDS)
  .map(([name, about]) => row(name, about))
  .join('\n')}

${row('COMMAND --help', 'its options; COMMAND COMMAND: one after the other, each with its defaults')}`

/** An option is `[description, default, example]`. The type of the default is the option's type: string or boolean. */
const isFlag = ([, value]) => typeof value === 'boolean'

function helpOf(name, { about, options }) {
  const rows = Object.entries(options).map(([option, spec]) => {
    const [what, value, example] = spec
    if (isFlag(spec)) return row(value ? `--no-${option}` : `--${option}`, what)
    return row(`--${option} ${value ?? example}`, what)
  })
  return `npm run bench -- ${name}: ${about}\n\n${rows.join('\n')}`
}

const parsed = (options) =>
  Object.fromEntries(
    Object.entries(options).map(([name, spec]) => [
      name,
      { type: isFlag(spec) ? 'boolean' : 'string', ...(spec[1] !== undefined && { default: spec[1] }) },
    ]),
  )

const arguments_ = process.argv.slice(2)
const names = []
while (Object.hasOwn(COMMANDS, arguments_[0] ?? '')) names.push(arguments_.shift())

async function main() {
  if (names.length === 0 && (arguments_.includes('--help') || arguments_.includes('-h'))) {
    console.log(HELP)
    return
  }
  for (const name of names.length > 0 ? names : ['peers']) {
    const command = await import(`./commands/${name}.mjs`)
    const { values, positionals } = parseArgs({
      args: arguments_,
      options: { ...parsed(command.options), help: { type: 'boolean', short: 'h' } },
      allowNegative: true,
      allowPositionals: command.takesPositionals ?? false,
    })
    if (values.help) console.log(helpOf(name, command))
    else await command.run(values, positionals)
  }
}

try {
  await main()
} catch (error) {
  console.error(error.code?.startsWith('ERR_PARSE_ARGS') ? `${error.message}\n\n${HELP}` : error)
  process.exitCode = 1
}
