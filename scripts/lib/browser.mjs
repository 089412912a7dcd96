// Checks the documentation in Chromium, over its debugging pipe (--remote-debugging-pipe), without a dependency.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs'
import { createServer } from 'node:http'
import { extname, join } from 'node:path'
import { fail, isInPath, root, run } from './run.mjs'

const NAMES = ['chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable']
/** Pixels of a phone and of a desktop. */
const WIDTHS = [375, 1280]
const TIMEOUT = 60_000
const LISTEN = /^\/functions\/(?:index\.)?listen\.html$/
const TYPES = { '.html': 'text/html', '.js': 'text/javascript', '.css': 'text/css', '.svg': 'image/svg+xml' }

/** Returns the browser's command. Debian's package is installed if there is none and this process may install it. */
function findBrowser() {
  const found = [process.env.CHROMIUM, ...NAMES].find((name) => name !== undefined && isInPath(name))
  if (found !== undefined) return found
  if (process.getuid() !== 0 || !isInPath('apt-get'))
    fail('✗ There is no Chromium: install it, or set CHROMIUM to its path.', 127)
  run('package lists', 'apt-get', ['update', '--quiet=2'])
  run('Chromium', 'apt-get', ['install', '--quiet=2', '--yes', '--no-install-recommends', 'chromium'])
  return NAMES[0]
}

/** Serves a folder on a port of 127.0.0.1. */
async function serve(folder) {
  const server = createServer(({ url }, response) => {
    const file = join(folder, decodeURIComponent(new URL(url, 'http://localhost').pathname))
    if (!file.startsWith(folder) || !existsSync(file) || !statSync(file).isFile()) response.writeHead(404).end()
    else response.writeHead(200, { 'content-type': TYPES[extname(file)] ?? 'text/plain' }).end(readFileSync(file))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return server
}

/** Starts a browser with one empty page. */
async function openPage(command) {
  // Removed at the next start, since the browser's children may still write to it after the browser's exit.
  const profile = join(root, 'build', 'browser')
  rmSync(profile, { recursive: true, force: true })
  const options = ['--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking']
  const browser = spawn(command, [...options, '--remote-debugging-pipe', `--user-data-dir=${profile}`, 'about:blank'], {
    stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'],
  })
  const [, , , input, output] = browser.stdio
  const waiting = new Map()
  const rejectAll = (reason) => {
    for (const { reject } of waiting.values()) reject(new Error(reason))
    waiting.clear()
  }
  browser.on('error', (error) => rejectAll(error.message))
  browser.on('exit', () => rejectAll('the browser has exited'))
  input.on('error', (error) => rejectAll(error.message))
  let text = ''
  output.setEncoding('utf8').on('data', (chunk) => {
    const messages = (text + chunk).split('\0')
    text = messages.pop()
    for (const { id, result, error } of messages.map((message) => JSON.parse(message))) {
      const { resolve, reject } = waiting.get(id) ?? {}
      waiting.delete(id)
      if (error === undefined) resolve?.(result)
      else reject?.(new Error(error.message))
    }
  })
  let calls = 0
  // The session of the page, once it is open.
  const session = {}
  const send = (method, params = {}) => {
    calls += 1
    const id = calls
    const limit = new Promise((_, reject) => {
      setTimeout(reject, TIMEOUT, new Error(`${method}: no answer within ${TIMEOUT} ms`)).unref()
    })
    const answer = new Promise((resolve, reject) => waiting.set(id, { resolve, reject }))
    input.write(`${JSON.stringify({ id, method, params, ...session })}\0`)
    return Promise.race([answer, limit])
  }
  const { targetId } = await send('Target.createTarget', { url: 'about:blank' })
  session.sessionId = (await send('Target.attachToTarget', { targetId, flatten: true })).sessionId

  /** Evaluates a function of the page, which may return a promise. */
  const evaluate = async (action, ...words) => {
    const expression = `(${action})(...${JSON.stringify(words)})`
    const answer = await send('Runtime.evaluate', { expression, awaitPromise: true, returnByValue: true })
    if (answer.exceptionDetails) throw new Error(answer.exceptionDetails.exception?.description ?? expression)
    return answer.result.value
  }
  const resize = (width) =>
    send('Emulation.setDeviceMetricsOverride', { width, height: 800, deviceScaleFactor: 1, mobile: width < 600 })
  const visit = async (url) => {
    const { errorText } = await send('Page.navigate', { url })
    if (errorText) throw new Error(`${url}: ${errorText}`)
    // The previous document may still be shown, and must not be measured.
    for (const end = Date.now() + TIMEOUT; ;) {
      const done = await evaluate(
        (wanted) => document.readyState === 'complete' && location.href === wanted,
        url,
      ).catch(() => false)
      if (done) return
      if (Date.now() > end) throw new Error(`${url}: not loaded within ${TIMEOUT} ms`)
      await new Promise((resolve) => setTimeout(resolve, 10))
    }
  }
  const close = async () => {
    if (browser.exitCode !== null || browser.signalCode !== null) return
    const exited = once(browser, 'exit')
    // A browser that has answered may still fail to exit.
    const limit = setTimeout(() => browser.kill('SIGKILL'), TIMEOUT)
    delete session.sessionId
    await send('Browser.close').catch(() => browser.kill('SIGKILL'))
    await exited
    clearTimeout(limit)
  }
  return { evaluate, resize, visit, close }
}

/** Runs in the page. Returns the element that overflows to the right, or undefined. */
function findOverflow() {
  const width = document.documentElement.clientWidth
  if (document.documentElement.scrollWidth <= width) return
  const wide = [...document.querySelectorAll('.container-main *, header *')].filter(
    (element) => element.getBoundingClientRect().right > width + 1,
  )
  // Prefers an element outside of boxes that scroll on their own.
  const last = wide.find((element) => !element.closest('pre, table')) ?? wide[0] ?? document.body
  return `${document.documentElement.scrollWidth} px: <${last.localName}> ${last.innerText.trim().slice(0, 60)}`
}

/** Runs in the page. Types into the search box, and returns the paths of the results. */
async function search(words) {
  document.querySelector('#tsd-search-trigger').click()
  const input = document.querySelector('#tsd-search-input')
  for (let tries = 0; tries < 60; tries += 1) {
    // The index may still be loading, and the page searches only after a pause in typing.
    input.value = words
    input.dispatchEvent(new Event('input', { bubbles: true }))
    await new Promise((resolve) => setTimeout(resolve, 1000))
    const links = [...document.querySelectorAll('#tsd-search-results a')].map((link) => new URL(link.href).pathname)
    if (links.length > 0) return links
  }
  return []
}

/** Checks that no page in this folder scrolls sideways on a phone or a desktop, and that the search finds `listen`. */
export async function checkPages(folder) {
  if (!existsSync(join(folder, 'index.html'))) fail(`✗ There are no pages in ${folder}: npm run docs makes them.`)
  const command = findBrowser()
  const pages = readdirSync(folder, { recursive: true }).filter(
    (page) => page.endsWith('.html') && !page.startsWith('rust/'),
  )
  pages.push('rust/ringfence/index.html')
  const server = await serve(folder)
  const at = (page) => `http://127.0.0.1:${server.address().port}/${encodeURI(page)}`
  const wrong = []
  const browser = await openPage(command)
  try {
    for (const page of pages) {
      await browser.visit(at(page))
      for (const width of WIDTHS) {
        await browser.resize(width)
        const overflow = await browser.evaluate(findOverflow)
        if (overflow !== undefined) wrong.push(`${page} at ${width} px scrolls sideways, ${overflow}`)
      }
    }
    for (const width of WIDTHS) {
      await browser.resize(width)
      await browser.visit(at('index.html'))
      const found = await browser.evaluate(search, 'listen')
      if (!found.some((path) => LISTEN.test(path)))
        wrong.push(
          `the search for "listen" at ${width} px does not find the function, but ${found.join(', ') || 'nothing'}`,
        )
    }
  } finally {
    await browser.close()
    server.close()
    server.closeAllConnections()
  }
  if (wrong.length > 0) fail(`✗ pages in the browser:\n${wrong.join('\n')}`)
  console.log(`${pages.length} pages fit ${WIDTHS.join(' and ')} px, and the search finds listen`)
}
