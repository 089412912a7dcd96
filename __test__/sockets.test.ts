// The kernel's table of Unix sockets, as `ringfence ps` reads it. Any user may choose the names in it.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:net'

import test from 'ava'
import { RingfenceError } from 'ringfence'

import { namedAddress } from './support/address.js'
import { urlOf } from './support/internals.js'
import { Partner } from './support/partner.js'

interface Sockets {
  parseListening(table: string): ReadonlyMap<string, string>
  listeningSockets(): ReadonlyMap<string, string>
  addressesOf(pid: number, listening: ReadonlyMap<string, string>): string[]
  throwIfResourceShortage(error: unknown): void
}

/** Not exported by the package. */
const module = urlOf('runtime/sockets.js')
const { parseListening, listeningSockets, addressesOf, throwIfResourceShortage } = (await import(module)) as Sockets

const HEADER = 'Num       RefCount Protocol Flags    Type St Inode Path\n'
const LISTENS = '00010000'

/** A line, as the kernel writes it. */
const line = (inode: number, name = '', flags = LISTENS) =>
  `00000000f81b2a3c: 00000002 00000000 ${flags} 0001 01 ${String(inode).padStart(5)}${name === '' ? '' : ` ${name}`}\n`

const parsed = (...lines: string[]) => Object.fromEntries(parseListening(HEADER + lines.join('')))

test('only listening sockets with a name are read from the table', (t) => {
  t.deepEqual(parsed(), {})
  t.deepEqual(parsed(line(7, '/run/a.sock'), line(12_345_678, '@abstract')), {
    'socket:[7]': '/run/a.sock',
    'socket:[12345678]': '@abstract',
  })
  t.deepEqual(parsed(line(7, '/run/a.sock', '00000000'), line(8), line(9, '/run/b.sock', '00010080')), {
    'socket:[9]': '/run/b.sock',
  })
  t.deepEqual(parsed(line(7, '/connected', 'FFFEFFFF')), {}, 'other flags')
})

test('the name of a socket is read whatever it contains', (t) => {
  for (const name of [
    '/with  two blanks ',
    ' /after a blank',
    '@\r\u2028\u001b',
    '/a\nb',
    '/a\n\nb',
    '/a\n',
    '\n',
    '@ü🦀',
  ])
    t.deepEqual(parsed(line(7, name), line(8, '/next')), { 'socket:[7]': name, 'socket:[8]': '/next' })
})

test('a line that does not start or end like the kernel’s belongs to the name before it', (t) => {
  const whole = line(8, '/b').trimEnd()
  const parts = ['00000000f81b2a3c', '00000002', '00000000', LISTENS, '0001', '01', '8']
  const [address, ...rest] = parts
  const lines = [
    ` ${whole}`,
    `x${whole}`,
    `: ${rest.join(' ')}`,
    `${address} ${rest.join(' ')}`,
    `${address}:${rest.join(' ')}`,
    `${address?.toUpperCase()}: ${rest.join(' ')}`,
    `${address}: ${rest.join(' ')}x /b`,
    `${address}: ${rest.join(' ')}/b`,
    `${address}: ${rest.slice(0, -1).join(' ')} x8 /b`,
    `${address}: ${rest.slice(0, -1).join(' ')} /b`,
    `${address}: ${rest.slice(0, -1).join(' ')}8 /b`,
    // Each word in turn with one digit too many, one too few, and a character that is no digit.
    ...rest.slice(0, -1).flatMap((word, at) =>
      [`0${word}`, word.slice(1), `${word.slice(1)}g`].map((changed) => {
        const words = rest.map((before, index) => (index === at ? changed : before))
        return `${address}: ${words.join(' ')} /b`
      }),
    ),
  ]
  for (const more of lines)
    t.deepEqual(parsed(line(7, '/a'), `${more}\n`), { 'socket:[7]': `/a\n${more}` }, JSON.stringify(more))
  t.deepEqual(parsed(`${lines[0]}\n`, line(7, '/a')), { 'socket:[7]': '/a' }, 'before the first there is no name')
})

test('if two lines about a socket disagree, neither is used', (t) => {
  const [honest, other] = [line(7, '/honest'), line(8, '/other')]
  t.deepEqual(parsed(honest, other, honest), { 'socket:[7]': '/honest', 'socket:[8]': '/other' }, 'twice the same')
  for (const forged of [line(7, '/forged'), line(7), line(7, '/honest', '00000000')]) {
    for (const order of [
      [honest, other, forged],
      [forged, other, honest],
      [honest, forged, other, honest],
      [honest, forged, other, forged],
    ])
      t.deepEqual(parsed(...order), { 'socket:[8]': '/other' })
  }
})

test('the addresses of a process are those at which it listens, each once', async (t) => {
  const address = namedAddress(t)
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(address, resolve))
  t.teardown(() => server.close())
  const listening = listeningSockets()
  t.true(addressesOf(process.pid, listening).includes(address))
  const [own] = [...listening].find(([, name]) => name === address)!
  t.deepEqual(addressesOf(process.pid, new Map([[own, address]])), [address])
  t.deepEqual(addressesOf(process.pid, new Map([['socket:[0]', address]])), [])

  // A process that inherited the socket, once it runs this command.
  const handed = async (...command: string[]) => {
    const { fd } = (server as unknown as { _handle: { fd: number } })._handle
    const process = spawn(command[0]!, [...command.slice(1), 'cat'], { stdio: ['pipe', 'pipe', 'ignore', fd] })
    t.teardown(() => process.kill('SIGKILL'))
    process.stdin!.write('here')
    const isHere = once(process.stdout!, 'data').then(() => process)
    return Promise.race([isHere, once(process, 'exit').then(() => null)])
  }
  const other = (await handed('env'))!
  t.deepEqual(addressesOf(other.pid!, listening), [address])
  t.deepEqual(addressesOf(other.pid!, new Map()), [])
  other.kill()
  await once(other, 'exit')
  t.throws(() => addressesOf(other.pid!, listening), { code: 'ENOENT' })

  // A new network namespace needs a privilege.
  const elsewhere = await handed('unshare', '--net')
  if (elsewhere !== null) t.deepEqual(addressesOf(elsewhere.pid!, listening), [], 'its network has sockets of its own')
})

test('a table that cannot be read for lack of a descriptor is an error, not empty', async (t) => {
  const partner = await Partner.start(t, { through: ['sh', '-c', 'ulimit -n 64; exec "$@"', 'sh'] })
  const code = await partner.run(async (kit, from) => {
    const { openSync, closeSync } = kit.require('node:fs') as typeof import('node:fs')
    const { listeningSockets: look } = (await import(from)) as Sockets
    const open: number[] = []
    try {
      for (;;) open.push(openSync('/dev/null', 'r'))
    } catch {
      // No descriptors are left.
    }
    try {
      return String(look())
    } catch (error) {
      return (error as RingfenceError).code
    } finally {
      for (const fd of open) closeSync(fd)
    }
  }, module)
  t.is(code, 'ERR_RINGFENCE_NO_SPACE')
})

test('a local failure is NO_SPACE; missing permissions are reported to the caller', (t) => {
  for (const code of ['EMFILE', 'ENFILE', 'ENOMEM']) {
    const cause = Object.assign(new Error(`${code}: open`), { code })
    const error = t.throws(() => throwIfResourceShortage(cause), {
      instanceOf: RingfenceError,
      message: /EMFILE|ENFILE|ENOMEM/,
    })
    t.like(error, { code: 'ERR_RINGFENCE_NO_SPACE', cause })
  }
  for (const code of ['EACCES', 'ENOENT', 'ESRCH', undefined])
    t.notThrows(() => throwIfResourceShortage(Object.assign(new Error('open'), { code })))
})
