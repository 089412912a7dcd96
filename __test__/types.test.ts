// The published declarations, in a strict program in both module formats, with and without lib DOM.

import { copyFileSync, mkdirSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

import test from 'ava'
import ts from 'typescript'

const home = fileURLToPath(new URL('../../', import.meta.url))

for (const dom of [true, false])
  test.serial(`every name compiles ${dom ? 'with' : 'without'} lib DOM, and no wrong use does`, (t) => {
    // Inside the package, so that imports of its own name work.
    const place = path.join(home, 'build', `types-${dom ? 'dom' : 'node'}`)
    mkdirSync(place, { recursive: true })
    const files = ['face', 'wrong'].flatMap((name) =>
      ['mts', 'cts'].map((format) => {
        const file = path.join(place, `${name}.${format}`)
        copyFileSync(path.join(home, '__test__', 'types', `${name}.ts`), file)
        return file
      }),
    )
    const program = ts.createProgram(files, {
      strict: true,
      exactOptionalPropertyTypes: true,
      noUncheckedIndexedAccess: true,
      noEmit: true,
      target: ts.ScriptTarget.ES2022,
      module: ts.ModuleKind.NodeNext,
      lib: [
        'lib.es2022.d.ts',
        'lib.esnext.disposable.d.ts',
        ...(dom ? ['lib.dom.d.ts', 'lib.dom.asynciterable.d.ts'] : []),
      ],
      types: ['node'],
    })
    const ours = program
      .getSourceFiles()
      .filter(({ fileName }) => files.includes(fileName) || fileName.startsWith(`${home}dist/`))
    t.true(ours.some(({ fileName }) => fileName.endsWith('dist/cjs/index.d.ts')))
    t.true(ours.some(({ fileName }) => fileName.endsWith('dist/esm/index.d.ts')))
    const errors = [
      ...program.getGlobalDiagnostics(),
      ...ours.flatMap((file) => program.getSyntacticDiagnostics(file)),
      ...ours.flatMap((file) => program.getSemanticDiagnostics(file)),
    ]
    const host = {
      getCanonicalFileName: (name: string) => name,
      getCurrentDirectory: () => home,
      getNewLine: () => '\n',
    }
    t.is(ts.formatDiagnostics(errors, host), '')
  })
