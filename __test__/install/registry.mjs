// A registry on 127.0.0.1, for the duration of a test.

import { spawn } from 'node:child_process'
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { FETCH_LIMIT, root, run } from '../../scripts/lib/run.mjs'

async function freePort() {
  const server = createServer()
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address()
  await new Promise((resolve) => server.close(resolve))
  return port
}

/** Starts an empty registry without an upstream. Returns its address, and a function that stops it. */
export async function startRegistry(place) {
  const home = join(root, 'build', 'verdaccio')
  const program = join(home, 'node_modules', 'verdaccio', 'bin', 'verdaccio')
  if (!existsSync(program)) {
    mkdirSync(home, { recursive: true })
    // It depends on node-fetch by a tag, which some mirrors lack.
    const wanted = { private: true, dependencies: { verdaccio: '6' }, overrides: { 'node-fetch': '2.7.0' } }
    writeFileSync(join(home, 'package.json'), JSON.stringify(wanted))
    run('registry', 'npm', ['install', '--no-audit', '--no-fund', '--loglevel=error'], {
      cwd: home,
      limit: FETCH_LIMIT,
    })
  }
  mkdirSync(place, { recursive: true })
  const config = join(place, 'config.yaml')
  writeFileSync(
    config,
    [
      `storage: ${join(place, 'storage')}`,
      'auth: { htpasswd: { file: ./htpasswd, max_users: -1 } }',
      'packages: { "**": { access: $all, publish: $all, unpublish: $all } }',
      'log: { type: stdout, format: pretty, level: warn }',
      'max_body_size: 50mb',
    ].join('\n'),
  )
  const port = await freePort()
  const child = spawn(process.execPath, [program, '--config', config, '--listen', `127.0.0.1:${port}`], {
    stdio: ['ignore', 'ignore', 'inherit'],
  })
  const address = `http://127.0.0.1:${port}/`
  const ended = new Promise((_, reject) => child.once('exit', (code) => reject(new Error(`verdaccio ended: ${code}`))))
  ended.catch(() => {})
  await Promise.race([answers(address), ended])
  return { address, stop: () => child.kill() }
}

async function answers(address) {
  for (;;) {
    try {
      if ((await fetch(`${address}-/ping`)).ok) return
    } catch {
      // It is not listening yet.
    }
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
}
