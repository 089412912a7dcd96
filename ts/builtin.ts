// Node's modules that few programs need at once: loaded when they are first used, since all of them together take as long as half of the
// package.

// oxlint-disable-next-line import/default -- what a CommonJS module exports is the default
import loaded from './binding.cjs'

export const { builtin } = loaded
