// gRPC, from this package of the benchmark's own.

export * from '@grpc/grpc-js'
