import { native, type Finding } from '../native.js'

/** The result of {@link doctor}. */
export interface Diagnosis {
  /** The kernel's name and version. */
  kernel: string
  /** One entry for each feature that the guarantees depend on. */
  findings: Finding[]
}

/** Tests the features of this kernel, and reports what they mean for the guarantees. Leaves nothing behind. */
export function doctor(): Diagnosis {
  return native.doctor()
}
