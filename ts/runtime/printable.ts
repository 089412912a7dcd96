// Makes names that other processes chose safe to display: executables, cgroups and addresses.

/** Characters that move the cursor, change the text direction or start a line. */
const UNPRINTABLE = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu

/** Escapes unprintable characters for a terminal or a log. Another process may name its executable and cgroup as it likes. */
export function printable(text: string): string {
  return text.replaceAll(UNPRINTABLE, (found) => `\\u{${found.codePointAt(0)!.toString(16)}}`)
}
