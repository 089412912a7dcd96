// The patches that break the code must apply: otherwise the nightly run is the first to notice.

import { execFileSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'

const root = fileURLToPath(new URL('../..', import.meta.url))
const folder = join(root, '__test__', 'holes')

test('each patch that breaks the code applies', (t) => {
  const patches = readdirSync(folder).filter((file) => file.endsWith('.patch'))
  t.true(patches.length > 20)
  for (const patch of patches)
    t.notThrows(
      () => execFileSync('git', ['apply', '--check', join(folder, patch)], { cwd: root, stdio: 'pipe' }),
      patch,
    )
})
