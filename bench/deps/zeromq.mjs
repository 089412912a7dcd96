// ZeroMQ, from this package of the benchmark's own.

export * from 'zeromq'
