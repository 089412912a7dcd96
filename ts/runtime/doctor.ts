import { native, type Finding } from '../native.js'

/** What {@link doctor} found. */
export interface Diagnosis {
  /** The kernel's name and version. */
  kernel: string
  /** One entry for each thing that the promises rest on. */
  findings: Finding[]
}

/** Tries what this kernel offers, and says what that means for the promises. Leaves nothing behind. */
export function doctor(): Diagnosis {
  return native.doctor()
}
