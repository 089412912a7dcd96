// The native binding, or what kept it from loading: a module that imports it unconditionally could not be imported
// where there is none, and an application that is developed on another system depends on it all the same. CommonJS
// in both builds, since a failing import cannot be caught before the importing module runs.

type Native = typeof import('../../binding/index.cjs')
type Report = { readonly header?: { readonly glibcVersionRuntime?: string } }
type Loaded = { readonly binding: Native } | { readonly error: unknown }
type Inspector = { url(): string | undefined }

function load(): Loaded {
  try {
    return { binding: require('../../binding/index.cjs') as Native }
  } catch (error) {
    // The loader goes by the system's ldd; a Node that brings its C library along is of another mind, and knows.
    try {
      return { binding: require(`ringfence-linux-${process.arch}-${libraryOfNode()}`) as Native }
    } catch {
      return { error }
    }
  }
}

function libraryOfNode(): string {
  // Elsewhere than on Linux there is no package to be found, and making the report takes its time.
  const report = process.platform === 'linux' ? (process.report?.getReport() as Report | undefined) : undefined
  return report?.header?.glibcVersionRuntime === undefined ? 'musl' : 'gnu'
}

/**
 * Modules of Node's own, by `require`, which ES modules do not have: `process.getBuiltinModule` is missing before 20.16 and from 21 to
 * 22.2. In this file, since one more of its kind takes as long to load as all of its content.
 */
const builtin = {
  get childProcess() {
    return require('node:child_process') as typeof import('node:child_process')
  },
  /** Throws where there is none: a runtime may be built without. */
  get inspector() {
    return require('node:inspector') as Inspector
  },
  get threads() {
    return require('node:worker_threads') as typeof import('node:worker_threads')
  },
  get webStreams() {
    return require('node:stream/web') as typeof import('node:stream/web')
  },
}

const loaded = { ...load(), builtin }
export = loaded
