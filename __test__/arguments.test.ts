// Parsing the arguments of the command line.

import test from 'ava'

import { internals } from './support/internals.js'

const moduleAt = (name: string) => internals(`cli/${name}.js`)
const { parseCommand } = (await moduleAt('arguments')) as { parseCommand(words: string[]): Record<string, unknown> }
const { UsageError } = (await moduleAt('exit')) as { UsageError: new () => Error }

const asked = (line: string) => parseCommand(line === '' ? [] : line.split(' '))

test('each command parses its arguments and options', (t) => {
  const of = (command: string, words: string[] = [], flags: object = {}) => ({ command, words, flags })
  const all: [line: string, wanted: object][] = [
    ['--help', of('help')],
    ['-h', of('help')],
    ['help', of('help')],
    ['help send', of('help', ['send'])],
    ['help help', of('help', ['help'])],
    ['send --help', of('help', ['send'])],
    ['completion zsh', of('completion', ['zsh'])],
    ['--version', of('version')],
    ['-V nothing', of('version')],
    ['send @x', of('send', ['@x'])],
    [
      'receive --timeout 0.0001 @x file --evidence --backing shm --capacity 64K',
      of('receive', ['@x', 'file'], { timeout: 1, evidence: true, backing: 'shm', capacity: 65_536 }),
    ],
    ['send @x - --backing memfd', of('send', ['@x', '-'], { backing: 'memfd' })],
    ['send @x --timeout 2000000', of('send', ['@x'], { timeout: 2_000_000_000 })],
    ['send @x --timeout 250ms', of('send', ['@x'], { timeout: 250 })],
    ['send @x --timeout 3s', of('send', ['@x'], { timeout: 3000 })],
    ['send @x --timeout .5m', of('send', ['@x'], { timeout: 30_000 })],
    ['send @x --timeout 1h', of('send', ['@x'], { timeout: 3_600_000 })],
    ...['4MiB', '4mib', '4MB', '4M', '4m', '4096KiB', '4194304', '4194304B'].map((size): [string, object] => [
      `send @x --capacity ${size}`,
      of('send', ['@x'], { capacity: 4 << 20 }),
    ]),
    ['collect @x', of('collect', ['@x'])],
    [
      'collect @x --capacity 1M --evidence --backing memfd',
      of('collect', ['@x'], { capacity: 1 << 20, evidence: true, backing: 'memfd' }),
    ],
    ['publish @x', of('publish', ['@x'])],
    [
      'publish @x file --raw 7 --audience 12 --stall 1.5 --evidence --capacity 4096 --backing shm',
      of('publish', ['@x', 'file'], {
        ...{ raw: 7, audience: 12, stall: 1500, evidence: true, capacity: 4096, backing: 'shm' },
      }),
    ],
    ['subscribe @x', of('subscribe', ['@x'])],
    [
      'subscribe @x --count 5 --no-newline --timeout 1 --delivery latest --from oldest --evidence',
      of('subscribe', ['@x'], {
        ...{ count: 5, 'no-newline': true, timeout: 1000, delivery: 'latest', from: 'oldest', evidence: true },
      }),
    ],
    ['ps', of('ps')],
    ['ps --json', of('ps', [], { json: true })],
    ['top', of('top')],
    ['top @x --once --json', of('top', ['@x'], { once: true, json: true })],
    ['doctor', of('doctor')],
    ['doctor --json 12', of('doctor', ['12'], { json: true })],
    ['doctor 12/x', of('doctor', ['12/x'])],
  ]
  for (const [line, wanted] of all) t.deepEqual(asked(line), wanted as Record<string, unknown>, line)
})

const commands = 'send, receive, collect, publish, subscribe, ps, top, doctor, completion, help'

test('an argument that cannot be parsed is reported, with the valid ones', (t) => {
  const all: [line: string, message: string | RegExp][] = [
    ['', `name a command: ${commands}`],
    ['listen @x', `there is no command listen: ${commands}`],
    ['recieve @x', 'there is no command recieve: did you mean receive?'],
    ['help dokter', 'there is no command dokter: did you mean doctor?'],
    ['help listen', `there is no command listen: ${commands}`],
    ['completion', 'completion takes a shell: bash, zsh, fish'],
    ['completion constructor', 'completion takes a shell: bash, zsh, fish'],
    ['constructor @x --json', `there is no command constructor: ${commands}`],
    ['send', 'send needs an address'],
    ['subscribe --from latest', 'subscribe needs an address'],
    ['receive @x file another', 'receive takes an address and at most one file'],
    ['collect @x file', 'collect writes to standard output, and takes no file'],
    ['subscribe @x file', 'subscribe writes to standard output, and takes no file'],
    ['ps @x', 'ps takes no address'],
    ['top @x file', 'top takes one address at most'],
    ['doctor @x file', 'doctor takes one process or address at most'],
    ['collect @x --timeout 1', 'collect takes no --timeout: it is an option of send, receive, subscribe'],
    ['publish @x --timeout 1', 'publish takes no --timeout: it is an option of send, receive, subscribe'],
    ['collect @x --json', 'collect takes no --json: it is an option of ps, top, doctor'],
    ['send @x --raw 1', 'send takes no --raw: it is an option of publish'],
    ['send @x --backing disk', '--backing takes memfd, shm, not disk'],
    ['receive @x --capacity much', /^a size is a number/],
    ['publish @x --raw 0', /^a size is a number/],
    ['subscribe @x --delivery fast', '--delivery takes reliable, best-effort, latest, not fast'],
    ['send @x --quick', 'send takes no --quick: --backing, --capacity, --timeout, --evidence'],
    ['send @x -q', 'send takes no -q: --backing, --capacity, --timeout, --evidence'],
    ['send @x --tiemout 3s', 'send takes no --tiemout: did you mean --timeout?'],
    ['--hepl', 'there is no option --hepl: did you mean --help?'],
    ['help --verbose', 'help takes no --verbose'],
    ['send @x --capacity', /--capacity/],
    ['send @x --evidence=yes', /--evidence/],
    ['send @x --timeout -1', /^.*--timeout.*$/], // one line
  ]
  for (const time of ['0', '-1', 'soon', '2000001', 'NaN', 'Infinity', '3 s', '3d', 's', '1e3', '0x10'])
    all.push(
      [`send @x --timeout=${time.replace(' ', '\u00a0')}`, /^--timeout takes a time such as 250ms, 3s or 2m, not /],
      [`publish @x --stall=${time.replace(' ', '\u00a0')}`, /^--stall takes a time such as 250ms, 3s or 2m, not /],
    )
  for (const count of ['0', '-1', '1.5', '01', '1e3', '1000000000000000', 'many', '12 '])
    for (const option of ['publish @x --audience', 'subscribe @x --count'])
      all.push([
        `${option}=${count.replace(' ', '\u00a0')}`,
        `${option.split(' ').at(-1)} takes a whole number above 0, not ${count.replace(' ', '\u00a0')}`,
      ])
  for (const [line, message] of all) {
    const error = t.throws(() => asked(line), { message }, line)
    t.true(error instanceof UsageError, line)
  }
})

test('each help fits into 80 columns, and names every command and option', async (t) => {
  const { helpOf, overview } = (await moduleAt('help')) as { helpOf(name: string): string; overview(): string }
  const { COMMANDS } = (await moduleAt('commands')) as { COMMANDS: Record<string, { flags: string[] }> }
  const texts = [overview(), ...Object.keys(COMMANDS).map(helpOf)]
  for (const line of texts.join('').split('\n')) t.true(line.length <= 80, line)
  for (const [name, { flags }] of Object.entries(COMMANDS)) {
    t.regex(overview(), new RegExp(`^ {2}ringfence ${name}\\b`, 'm'))
    for (const flag of flags) t.regex(helpOf(name), new RegExp(`^ {2}--${flag}\\b`, 'm'))
  }
})

test('an option that a command does not take is refused', (t) => {
  const takes: Record<string, string> = {
    send: 'backing capacity timeout evidence',
    receive: 'backing capacity timeout evidence',
    collect: 'backing capacity evidence',
    publish: 'backing capacity evidence raw audience stall',
    subscribe: 'timeout evidence delivery from count no-newline',
    ps: 'json',
    top: 'json once',
    doctor: 'json',
  }
  const given: Record<string, string[]> = {
    backing: ['memfd'],
    capacity: ['1M'],
    timeout: ['1'],
    evidence: [],
    json: [],
    once: [],
    raw: ['1'],
    'no-newline': [],
    audience: ['1'],
    stall: ['1'],
    delivery: ['latest'],
    from: ['now'],
    count: ['1'],
  }
  for (const [command, taken] of Object.entries(takes))
    for (const [option, value] of Object.entries(given)) {
      const words = [command, ...(command === 'ps' ? [] : ['@x']), `--${option}`, ...value]
      if (taken.split(' ').includes(option)) t.notThrows(() => parseCommand(words), words.join(' '))
      else
        t.throws(
          () => parseCommand(words),
          { message: new RegExp(`^${command} takes no --${option}: `) },
          words.join(' '),
        )
    }
})
