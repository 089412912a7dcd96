// The inspector's module, in every Node: `process.getBuiltinModule` is missing before 20.16 and from 21 to 22.2, and where a
// runtime was built without an inspector, an import of it would keep the whole package from loading. CommonJS in both
// builds, since `require` is.

type Inspector = { url(): string | undefined }

// Asked for when it is needed, and throws where there is none.
const inspector = { url: (): string | undefined => (require('node:inspector') as Inspector).url() }
export = inspector
