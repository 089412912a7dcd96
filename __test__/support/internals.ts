// Access to internal modules of the built package.

/** The URL of a module of the package: "codec.js", "cli/top.js". */
export const urlOf = (file: string): string => new URL(`../../../dist/esm/${file}`, import.meta.url).href

export const internals = async <Inside>(file: string): Promise<Inside> => (await import(urlOf(file))) as Inside
