/** A module that may not be there: `why` tells why it takes no part, if it does not load. */
export async function optional(module) {
  try {
    return await import(module)
  } catch (error) {
    return { why: `${module} does not load (${error.code ?? error.message})` }
  }
}
