// What other processes have named is shown to people: executables, cgroups, addresses.

/** What is no letter of a text, but moves the cursor, turns the direction, or begins a line. */
const UNPRINTABLE = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu

/** As a terminal, or a log, can be shown it: another process names its executable and its cgroup as it likes. */
export function printable(text: string): string {
  return text.replaceAll(UNPRINTABLE, (found) => `\\u{${found.codePointAt(0)!.toString(16)}}`)
}
