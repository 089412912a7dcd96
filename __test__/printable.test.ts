// Names that another process has chosen, as a terminal shows them.

import test from 'ava'

import { internals } from './support/internals.js'

interface Insides {
  printable(text: string): string
}

/** Not exported by the package. */
const { printable } = await internals<Insides>('runtime/printable.js')

test('control characters, changes of direction and line breaks are shown by number, letters as they are', (t) => {
  for (const text of ['', '/usr/bin/node', 'grüße  日本語 🦀 e\u0301 \u00a0', '\\u{1b}', '@a-b_c.d~e'])
    t.is(printable(text), text)
  const shown: [string, string][] = [
    ['\u001b[2J', '\\u{1b}[2J'],
    ['a\r\nb', 'a\\u{d}\\u{a}b'],
    ['\0', '\\u{0}'],
    ['\u007f', '\\u{7f}'],
    ['\u009b1m', '\\u{9b}1m'],
    ['\u202egpj.exe', '\\u{202e}gpj.exe'],
    ['\u200b', '\\u{200b}'],
    ['\u2028\u2029', '\\u{2028}\\u{2029}'],
    ['half \ud83e', 'half \\u{d83e}'],
    // Outside the basic plane: tag characters, in which a name may hide a sentence.
    ['\u{e0041}', '\\u{e0041}'],
  ]
  for (const [text, expected] of shown) t.is(printable(text), expected, JSON.stringify(text))
})
