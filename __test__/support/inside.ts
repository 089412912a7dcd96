// What the package has inside and does not export, as it was built.

/** Where a module of the package is: "codec.js", "cli/top.js". */
export const urlOf = (file: string): string => new URL(`../../../dist/esm/${file}`, import.meta.url).href

export const insideOf = async <Inside>(file: string): Promise<Inside> => (await import(urlOf(file))) as Inside
