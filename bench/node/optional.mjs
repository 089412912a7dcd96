/** Imports a module that may be missing. `why`: the reason if it does not load. */
export async function optional(module) {
  try {
    return await import(module)
  } catch (error) {
    return { why: `${module} does not load (${error.code ?? error.message})` }
  }
}
