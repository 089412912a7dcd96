// The fields that all contenders have.

import { optional } from '../optional.mjs'

export const ringfence = await optional('ringfence')

/** A contender that supports all sizes of its measures, unless `more.takes` returns a reason. */
export const contender = (id, version, note, open, more = {}) => ({
  id,
  version,
  note,
  takes: () => null,
  open,
  ...more,
})

/** A contender that is ringfence itself. */
export const own = (id, note, open, more = {}) =>
  contender(id, 'this tree', note, open, { unavailable: ringfence.why, ...more })
