import { RingfenceError } from './errors.js'

/** Where there are binaries: what `process.arch` says, and the C libraries. */
const ARCHITECTURES = ['x64', 'arm64']

/** Stands for a binding that could not be loaded: whatever is asked of it says why. */
export function unsupported<Binding extends object>(cause: unknown): Binding {
  return new Proxy({} as Binding, {
    get: () => () => {
      throw new RingfenceError('UNSUPPORTED', reason(), { cause })
    },
  })
}

function reason(): string {
  const { platform, arch } = process
  if (platform !== 'linux') return `ringfence works on Linux, and this is ${platform} on ${arch}`
  const libc = isMusl() ? 'musl' : 'gnu'
  const name = `linux-${arch}-${libc}`
  const build = 'or build it from the sources, which takes Rust: npm ci && npm run build, in a clone of the repository'
  return ARCHITECTURES.includes(arch)
    ? `the binary of ringfence for ${name} is not there or does not load: install the package ringfence-${name} ` +
        `(npm leaves it out with --omit=optional), ${build}`
    : `there is no binary of ringfence for ${name}; there are ones for ${ARCHITECTURES.join(' and ')}, each with ` +
        `glibc and musl: use one of these, ${build}`
}

function isMusl(): boolean {
  const report = process.report?.getReport() as { header?: { glibcVersionRuntime?: string } } | undefined
  return report?.header?.glibcVersionRuntime === undefined
}
