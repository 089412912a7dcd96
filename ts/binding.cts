// Loads the native binding, or keeps the error. An application that is developed on a system without a binding must still be able to
// import this package. CommonJS in both builds, because a static import that fails cannot be caught.

type Native = typeof import('../../binding/index.cjs')
type Report = { readonly header?: { readonly glibcVersionRuntime?: string } }
type Loaded = { readonly binding: Native } | { readonly error: unknown }
type Inspector = { url(): string | undefined }

function load(): Loaded {
  try {
    return { binding: require('../../binding/index.cjs') as Native }
  } catch (error) {
    // The loader detects the C library from the system's ldd. A Node with its own C library may use another one, and reports it.
    try {
      return { binding: require(`ringfence-linux-${process.arch}-${libraryOfNode()}`) as Native }
    } catch {
      return { error }
    }
  }
}

function libraryOfNode(): string {
  // The report takes time, and other systems have no package anyway.
  const report = process.platform === 'linux' ? (process.report?.getReport() as Report | undefined) : undefined
  return report?.header?.glibcVersionRuntime === undefined ? 'musl' : 'gnu'
}

/**
 * Node's own modules, loaded by `require`, which ES modules do not have. `process.getBuiltinModule` is missing before 20.16 and from 21
 * to 22.2. They are in this file because loading another CommonJS file takes as long as loading all of this one.
 */
const builtin = {
  get childProcess() {
    return require('node:child_process') as typeof import('node:child_process')
  },
  /** Throws if the runtime was built without an inspector. */
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
