// The native binding, or what kept it from loading: a module that imports it unconditionally could not be imported
// where there is none, and an application that is developed on another system depends on it all the same. CommonJS
// in both builds, since a failing import cannot be caught before the importing module runs.

type Native = typeof import('../../binding/index.cjs')
type Report = { readonly header?: { readonly glibcVersionRuntime?: string } }
type Loaded = { readonly binding: Native } | { readonly error: unknown }

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

const loaded = load()
export = loaded
