// The check that each reader of frames makes.

/** Counts frames, and sums up their pixels if `checked`. `look` is a visitor for `receiveEach`. */
export function checker({ width, height, checked }) {
  const bytesOfFrame = 16 + width * height * 4
  const state = { count: 0, started: 0, bytesOfFrame, look }
  return state

  function look(bytes, offset, length) {
    if (state.count === 0) state.started = performance.now()
    const { buffer, byteOffset } = bytes
    const header = new DataView(buffer, byteOffset + offset, 16)
    const number = Number(header.getBigUint64(0, true))
    if (length !== bytesOfFrame || number !== state.count)
      throw new Error(`frame ${state.count} is ${number}, of ${length} bytes`)
    if (checked) {
      const found = sum(new Int32Array(buffer, byteOffset + offset + 16, width * height))
      const wanted = header.getInt32(8, true)
      if (found !== wanted) throw new Error(`the pixels of frame ${number} add up to ${found}, not ${wanted}`)
    }
    state.count += 1
  }
}

function sum(pixels) {
  let total = 0
  for (let at = 0; at < pixels.length; at += 1) total = (total + pixels[at]) | 0
  return total
}
