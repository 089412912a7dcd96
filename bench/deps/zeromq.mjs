// ZeroMQ, which only this package of the benchmark installs.

export * from 'zeromq'
