// The native binding, or what kept it from loading: a module that imports it unconditionally could not be imported
// where there is none, and an application that is developed on another system depends on it all the same. CommonJS
// in both builds, since a failing import cannot be caught before the importing module runs.

type Native = typeof import('../../binding/index.cjs')
type Loaded = { readonly binding: Native } | { readonly error: unknown }

function load(): Loaded {
  try {
    return { binding: require('../../binding/index.cjs') as Native }
  } catch (error) {
    return { error }
  }
}

const loaded = load()
export = loaded
