// A seccomp filter in the form that bwrap's --seccomp takes: the bytes of a classic BPF program (seccomp(2)). It refuses, with
// EPERM, the system calls by which code in a sandbox reaches the network, other processes, or rarely audited parts of the kernel.

const machines = {
  x64: {
    audit: 0xc000003e,
    calls: {
      socket: 41,
      connect: 42,
      bind: 49,
      listen: 50,
      ptrace: 101,
      process_vm_readv: 310,
      process_vm_writev: 311,
      mount: 165,
      umount2: 166,
      pivot_root: 155,
      chroot: 161,
      unshare: 272,
      setns: 308,
      bpf: 321,
      userfaultfd: 323,
      perf_event_open: 298,
      keyctl: 250,
      add_key: 248,
      request_key: 249,
      io_uring_setup: 425,
      kexec_load: 246,
      init_module: 175,
    },
  },
  arm64: {
    audit: 0xc00000b7,
    calls: {
      socket: 198,
      connect: 203,
      bind: 200,
      listen: 201,
      ptrace: 117,
      process_vm_readv: 270,
      process_vm_writev: 271,
      mount: 40,
      umount2: 39,
      pivot_root: 41,
      chroot: 51,
      unshare: 97,
      setns: 268,
      bpf: 280,
      userfaultfd: 282,
      perf_event_open: 241,
      keyctl: 219,
      add_key: 217,
      request_key: 218,
      io_uring_setup: 425,
      kexec_load: 104,
      init_module: 105,
    },
  },
}

const LOAD = 0x20
const IF_EQUAL = 0x15
const IF_AT_LEAST = 0x35
const RETURN = 0x06

const ALLOW = 0x7fff0000
const KILL = 0x80000000
const REFUSE = 0x00050001 // SECCOMP_RET_ERRNO with EPERM

export function filter() {
  const { audit, calls } = machines[process.arch]
  const numbers = Object.values(calls)
  const program = [
    [LOAD, 0, 0, 4], // the architecture
    [IF_EQUAL, 1, 0, audit],
    [RETURN, 0, 0, KILL],
    [LOAD, 0, 0, 0], // the number of the system call
    [IF_AT_LEAST, numbers.length + 1, 0, 0x40000000], // the x32 calls of x86-64
    ...numbers.map((number, at) => [IF_EQUAL, numbers.length - at, 0, number]),
    [RETURN, 0, 0, ALLOW],
    [RETURN, 0, 0, REFUSE],
  ]
  const bytes = Buffer.alloc(program.length * 8)
  program.forEach(([code, whenTrue, whenFalse, operand], at) => {
    bytes.writeUInt16LE(code, at * 8)
    bytes.writeUInt8(whenTrue, at * 8 + 2)
    bytes.writeUInt8(whenFalse, at * 8 + 3)
    bytes.writeUInt32LE(operand, at * 8 + 4)
  })
  return bytes
}
