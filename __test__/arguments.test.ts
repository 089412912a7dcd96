// What the command line takes, and what it makes of it.

import test from 'ava'

import { insideOf } from './support/inside.js'

const moduleAt = (name: string) => insideOf(`cli/${name}.js`)
const { ask } = (await moduleAt('arguments')) as { ask(words: string[]): Record<string, unknown> }
const { UsageError } = (await moduleAt('exit')) as { UsageError: new () => Error }

const asked = (line: string) => ask(line === '' ? [] : line.split(' '))

test('each command has what was said, and else what the help says', (t) => {
  const ring = { backing: undefined, capacity: undefined }
  const transfer = { address: '@x', file: undefined, evidence: false, options: ring }
  const publish = { ...transfer, raw: undefined, audience: 0, options: { ...ring, stall: undefined } }
  const subscribe = {
    address: '@x',
    count: Infinity,
    raw: false,
    evidence: false,
    options: { delivery: undefined, from: undefined, wait: true },
  }
  const all: [line: string, wanted: object][] = [
    ['--help', { command: 'help' }],
    ['-h', { command: 'help' }],
    ['send --help --json', { command: 'help' }],
    ['--version', { command: 'version' }],
    ['-V nothing', { command: 'version' }],
    ['send @x', { command: 'send', timeout: undefined, how: transfer }],
    [
      'receive --timeout 0.0001 @x file --evidence --backing shm --capacity 64K',
      {
        command: 'receive',
        timeout: 1,
        how: { address: '@x', file: 'file', evidence: true, options: { backing: 'shm', capacity: 65_536 } },
      },
    ],
    [
      'send @x - --backing memfd',
      { command: 'send', timeout: undefined, how: { ...transfer, file: '-', options: { ...ring, backing: 'memfd' } } },
    ],
    ['send @x --timeout 2000000', { command: 'send', timeout: 2_000_000_000, how: transfer }],
    ['collect @x', { command: 'collect', how: { address: '@x', evidence: false, options: ring } }],
    [
      'collect @x --capacity 1M --evidence --backing memfd',
      { command: 'collect', how: { address: '@x', evidence: true, options: { backing: 'memfd', capacity: 1 << 20 } } },
    ],
    ['publish @x', { command: 'publish', how: publish }],
    [
      'publish @x file --raw 7 --audience 12 --stall 1.5 --evidence --capacity 4096 --backing shm',
      {
        command: 'publish',
        how: {
          address: '@x',
          file: 'file',
          raw: 7,
          audience: 12,
          evidence: true,
          options: { backing: 'shm', capacity: 4096, stall: 1500 },
        },
      },
    ],
    ['subscribe @x', { command: 'subscribe', timeout: undefined, how: subscribe }],
    [
      'subscribe @x --count 5 --no-newline --timeout 1 --delivery latest --from oldest --evidence',
      {
        command: 'subscribe',
        timeout: 1000,
        how: {
          address: '@x',
          count: 5,
          raw: true,
          evidence: true,
          options: { delivery: 'latest', from: 'oldest', wait: true },
        },
      },
    ],
    ['ps', { command: 'ps', json: false }],
    ['ps --json', { command: 'ps', json: true }],
    ['top', { command: 'top', address: undefined, json: false, once: false }],
    ['top @x --once --json', { command: 'top', address: '@x', json: true, once: true }],
    ['doctor', { command: 'doctor', json: false, target: undefined }],
    ['doctor --json 12', { command: 'doctor', json: true, target: 12 }],
    ['doctor @12', { command: 'doctor', json: false, target: '@12' }],
    ['doctor 12/x', { command: 'doctor', json: false, target: '12/x' }],
  ]
  for (const [line, wanted] of all) t.deepEqual(asked(line), wanted as Record<string, unknown>, line)
})

const commands = 'send, receive, collect, publish, subscribe, ps, top, doctor'

test('what cannot be understood is told, with what there is', (t) => {
  const all: [line: string, message: string | RegExp][] = [
    ['', `say what to do: ${commands}`],
    ['listen @x', `there is no command listen: ${commands}`],
    ['constructor @x --json', `there is no command constructor: ${commands}`],
    ['send', 'send needs an address'],
    ['subscribe --from latest', 'subscribe needs an address'],
    ['receive @x file another', 'receive takes an address and at most one file'],
    ['collect @x file', 'collect writes to standard output, and takes no file'],
    ['subscribe @x file', 'subscribe writes to standard output, and takes no file'],
    ['ps @x', 'ps takes no address'],
    ['top @x file', 'top takes one address at most'],
    ['doctor @x file', 'doctor takes one process or address at most'],
    ['collect @x --timeout 1', 'collect takes no --timeout: a signal ends it'],
    ['publish @x --timeout 1', 'publish takes no --timeout: it is for send, receive, subscribe'],
    ['collect @x --json', 'collect takes no --json: it is for ps, top, doctor'],
    ['send @x --raw 1', 'send takes no --raw: it is for publish'],
    ['send @x --backing disk', '--backing is memfd or shm, not disk'],
    ['receive @x --capacity much', /^a size is a number/],
    ['publish @x --raw 0', /^a size is a number/],
    ['send @x --quick', /--quick/],
    ['send @x --capacity', /--capacity/],
    ['send @x --evidence=yes', /--evidence/],
  ]
  for (const seconds of ['0', '-1', 'soon', '2000001', 'NaN', 'Infinity'])
    all.push(
      [`send @x --timeout=${seconds}`, `--timeout takes a number of seconds, not ${seconds}`],
      [`publish @x --stall=${seconds}`, `--stall takes a number of seconds, not ${seconds}`],
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

test('an option that a command does not take is told, and not ignored', (t) => {
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
      if (taken.split(' ').includes(option)) t.notThrows(() => ask(words), words.join(' '))
      else t.throws(() => ask(words), { message: new RegExp(`^${command} takes no --${option}: `) }, words.join(' '))
    }
})
