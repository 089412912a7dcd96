// What a runtime says of itself: its version, and for what npm chooses the binding.

const { bun, deno, node } = process.versions
const { glibcVersionRuntime } = process.report.getReport().header
console.log(bun ?? deno ?? node)
console.log(`${process.arch} ${glibcVersionRuntime === undefined ? 'musl' : 'gnu'}`)
