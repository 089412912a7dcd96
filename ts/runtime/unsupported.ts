import { RingfenceError, isError } from '../errors.js'

/** Values of `process.arch` for which there are binaries, each with glibc and musl. */
const ARCHITECTURES = ['x64', 'arm64']

/** A substitute for a binding that could not be loaded. Each of its functions throws the reason. */
export function unsupported<Binding extends object>(cause: unknown): Binding {
  return new Proxy({} as Binding, {
    get: () => () => {
      throw new RingfenceError('UNSUPPORTED', reason(cause), { cause })
    },
  })
}

function reason(cause: unknown): string {
  const { platform, arch } = process
  if (platform !== 'linux') return `ringfence works on Linux, and this is ${platform} on ${arch}`
  if (isReadDenied(cause))
    return (
      'this process may not read the binary of ringfence: it was started with --permission. Start it with --allow-addons, and with ' +
      '--allow-fs-read for the folder of the package ringfence and of the package ringfence-linux-* beside it'
    )
  if (!canLoadAddons())
    return hasPermissions()
      ? 'this process may not load native addons, which ringfence is: it was started with --permission. Start it with --allow-addons as well'
      : 'this process may not load native addons, which ringfence is: it was started with --no-addons. Start it without that option'
  if (causesOf(cause).some(({ message }) => NO_REQUIRE.test(message)))
    return (
      'the bundle of this program has no `require` that finds packages, and the binary of ringfence is in one: begin the bundle with ' +
      'one made by `createRequire` of node:module (see Bundle in the guide)'
    )
  const libc = isMusl() ? 'musl' : 'gnu'
  const name = `linux-${arch}-${libc}`
  const build = 'or build it from the sources, which takes Rust: npm ci && npm run build, in a clone of the repository'
  return ARCHITECTURES.includes(arch)
    ? `the binary of ringfence for ${name} is not there or does not load: install the package ringfence-${name} ` +
        `(npm leaves it out with --omit=optional), ${build}`
    : `there is no binary of ringfence for ${name}; there are ones for ${ARCHITECTURES.join(' and ')}, each with ` +
        `glibc and musl: use one of these, ${build}`
}

/** The errors of an ES module without `require`, as Node and esbuild report it, and of a single executable application. */
const NO_REQUIRE = /^(?:require is not defined|require\.resolve is not a function|Dynamic require of )/

function causesOf(cause: unknown): NodeJS.ErrnoException[] {
  const causes: NodeJS.ErrnoException[] = []
  for (let error = cause; isError(error); error = error.cause) causes.push(error)
  return causes
}

/**
 * Whether Node.js allows this process to load native addons at all. Tested anew, because the loader of the binding keeps the messages of
 * errors but not their codes.
 */
function canLoadAddons(): boolean {
  try {
    process.dlopen({ exports: {} }, '/')
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ERR_DLOPEN_DISABLED'
  }
}

function hasPermissions(): boolean {
  return (process as { permission?: object }).permission !== undefined
}

/** Whether the binding did not load because of this process's permissions. */
function isReadDenied(cause: unknown): boolean {
  if (!hasPermissions()) return false
  return causesOf(cause).some(
    ({ code, message }) => code === 'ERR_ACCESS_DENIED' || message.includes('Access to this API has been restricted'),
  )
}

function isMusl(): boolean {
  const report = process.report?.getReport() as { header?: { glibcVersionRuntime?: string } } | undefined
  return report?.header?.glibcVersionRuntime === undefined
}
