// Generates the help and the completion scripts from the table of commands. No line is longer than 80 columns.

import { COMMANDS, COMMAND_NAMES, FLAGS, type Command, type CommandName, type Flag, type FlagName } from './commands.js'

const WIDTH = 80

/** Wraps text. The first line starts with `lead`, and the others are indented to the same column. */
function wrap(text: string, lead = ''): string {
  const lines: string[] = []
  let line = lead
  for (const word of text.split(' ')) {
    if (line.length + word.length + 1 > WIDTH && line.trim() !== '') {
      lines.push(line.trimEnd())
      line = ' '.repeat(lead.length)
    }
    line += `${word} `
  }
  return [...lines, line.trimEnd()].join('\n')
}

/** Formats rows of a name and its explanation. */
function rows(list: readonly (readonly [string, string])[]): string {
  const width = Math.max(...list.map(([name]) => name.length)) + 4
  return list.map(([name, text]) => wrap(text, `  ${name}`.padEnd(width))).join('\n')
}

const flag = (name: FlagName): [string, string] => {
  const { value, text }: Flag = FLAGS[name]
  return [`--${name}${value === undefined ? '' : ` ${value}`}`, text]
}

const EXIT_CODES = [
  ['0', 'success'],
  ['1', 'another failure'],
  ['2', 'usage'],
  ['3', 'the address cannot be used, or is taken'],
  ['4', 'this side refused the peer, or the peer refused this side'],
  ['5', 'the peer was lost before everything was transferred'],
  ['6', 'no process connected in time'],
  ['7', 'the peer violated the protocol'],
  ['8', 'no space'],
  ['9', 'this system does not offer what is needed'],
] as const

/** The help of the whole command line. */
export function overview(): string {
  return [
    'ringfence: shared memory between processes of one host, and no others',
    '',
    rows(
      COMMAND_NAMES.map((name) => [`ringfence ${`${name} ${COMMANDS[name].usage}`.trimEnd()}`, COMMANDS[name].summary]),
    ),
    '',
    wrap(
      'ADDRESS is a path, or @name for an abstract address. The other side must run as the same user, from the same executable. ' +
        'SIZE is a number of bytes, or 64KiB, 4MiB, 1GiB. TIME is 250ms, 3s, 2m, or a number of seconds.',
    ),
    '',
    'ringfence help COMMAND explains a command and its options.',
    'ringfence --version prints the version.',
    '',
    'Exit codes',
    rows(EXIT_CODES),
    wrap(
      "If a signal ends the command, a shell reports 128 plus the signal's number. If the reader of the output exits (| head), the command " +
        'ends by SIGPIPE and prints nothing.',
    ),
    '',
  ].join('\n')
}

/** The help of one command. */
export function helpOf(name: CommandName): string {
  const { usage, summary, text, flags, examples }: Command = COMMANDS[name]
  const parts = [
    `ringfence ${`${name} ${usage}`.trimEnd()}${flags.length > 0 ? ' [OPTIONS]' : ''}`,
    `${summary[0]!.toUpperCase()}${summary.slice(1)}.`,
    ...text.map((paragraph) => wrap(paragraph)),
    ...(flags.length > 0 ? [`Options\n${rows(flags.map(flag))}`] : []),
    `Examples\n${examples.map((example) => `  ${example}`).join('\n')}`,
  ]
  return `${parts.join('\n\n')}\n`
}

const flagsOf = (name: CommandName): readonly FlagName[] => COMMANDS[name].flags

const words = (name: CommandName) => flagsOf(name).map((flagName) => `--${flagName}`)

const withFlags = COMMAND_NAMES.filter((name) => flagsOf(name).length > 0)

const listed = (Object.entries(FLAGS) as [FlagName, Flag][]).filter(([, { values }]) => values !== undefined)

export const SHELLS = {
  bash: () => `_ringfence() {
  local word=\${COMP_WORDS[COMP_CWORD]}
  if ((COMP_CWORD == 1)); then
    COMPREPLY=($(compgen -W '${COMMAND_NAMES.join(' ')} --help --version' -- "$word"))
    return
  fi
  case \${COMP_WORDS[COMP_CWORD - 1]} in
${listed.map(([name, { values }]) => `    --${name}) COMPREPLY=($(compgen -W '${values!.join(' ')}' -- "$word")); return ;;`).join('\n')}
  esac
  case \${COMP_WORDS[1]} in
    help) COMPREPLY=($(compgen -W '${COMMAND_NAMES.join(' ')}' -- "$word")) ;;
    completion) COMPREPLY=($(compgen -W 'bash zsh fish' -- "$word")) ;;
${withFlags
  .map(
    (name) =>
      `    ${name}) [[ $word == -* ]] && COMPREPLY=($(compgen -W '${words(name).join(' ')} --help' -- "$word")) ;;`,
  )
  .join('\n')}
  esac
}
complete -o default -F _ringfence ringfence
`,
  zsh: () => `#compdef ringfence
_ringfence() {
  local -a commands=(
${COMMAND_NAMES.map((name) => `    '${name}:${COMMANDS[name].summary}'`).join('\n')}
  )
  if ((CURRENT == 2)); then
    _describe command commands
    return
  fi
  case $words[2] in
    help) _describe command commands ;;
    completion) _values shell bash zsh fish ;;
${withFlags.map((name) => `    ${name}) _arguments ${zshFlags(name)} '*:file:_files' ;;`).join('\n')}
  esac
}
compdef _ringfence ringfence
`,
  fish: () =>
    [
      'complete -c ringfence -n __fish_use_subcommand -f',
      ...COMMAND_NAMES.map(
        (name) => `complete -c ringfence -n __fish_use_subcommand -a ${name} -d '${COMMANDS[name].summary}'`,
      ),
      `complete -c ringfence -n '__fish_seen_subcommand_from help' -f -a '${COMMAND_NAMES.join(' ')}'`,
      "complete -c ringfence -n '__fish_seen_subcommand_from completion' -f -a 'bash zsh fish'",
      ...COMMAND_NAMES.flatMap((name) =>
        flagsOf(name).map((flagName) => {
          const { value, values }: Flag = FLAGS[flagName]
          const argument = value === undefined ? '' : values === undefined ? ' -x' : ` -x -a '${values.join(' ')}'`
          return `complete -c ringfence -n '__fish_seen_subcommand_from ${name}' -l ${flagName}${argument} -d '${quoted(flagName)}'`
        }),
      ),
      '',
    ].join('\n'),
} as const

const quoted = (name: FlagName) => FLAGS[name].text.replaceAll("'", "'\\''")

function zshFlags(name: CommandName): string {
  return flagsOf(name)
    .map((flagName) => {
      const { value, values, text }: Flag = FLAGS[flagName]
      const argument = value === undefined ? '' : `:${value}:${values === undefined ? '' : `(${values.join(' ')})`}`
      return `'--${flagName}[${text.replaceAll("'", "'\\''").replaceAll(':', '\\:')}]${argument}'`
    })
    .join(' ')
}
