// The names of methods and properties that the classes of this package share. Programs cannot reach them by name, as in Node's own classes.

// Of every resource.
export const ended = Symbol('ended')
export const settle = Symbol('settle')
export const notify = Symbol('notify')
export const summary = Symbol('summary')
export const keepAlive = Symbol('keepAlive')

// Of every endpoint.
export const counts = Symbol('counts')
export const poll = Symbol('poll')
export const handleEvent = Symbol('handleEvent')
export const reportRefusal = Symbol('reportRefusal')
export const release = Symbol('release')

// Of listeners and memberships.
export const acceptQueue = Symbol('acceptQueue')
export const openChannels = Symbol('openChannels')
export const next = Symbol('next')
export const handedOut = Symbol('handedOut')
export const admitted = Symbol('admitted')
export const failed = Symbol('failed')
export const stop = Symbol('stop')
