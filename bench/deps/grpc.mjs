// gRPC, which only this package of the benchmark installs.

export * from '@grpc/grpc-js'
