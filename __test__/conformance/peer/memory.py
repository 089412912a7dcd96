"""The shared object and the region: see these sections of protocol.md."""

import ctypes
import fcntl
import mmap
import os
import signal
import stat
import struct

from .wire import Violation

MAGIC = int.from_bytes(b"ringfnc2", "little")
TAIL, HEAD, READER_PARKED, WRITER_PARKED, PHASE, TOKENS = 128, 256, 384, 512, 640, 768
TAIL_FENCED, HEAD_FENCED, FLOOR, MARKS, RING = 896, 1024, 1152, 2048, 4096
EXTRA = 8192
CONTROL = 12288

SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | 0x10  # F_SEAL_FUTURE_WRITE
_MFD_NOEXEC_SEAL = 8
_F_SETSIG, _F_SETOWN_EX = 10, 15
TMPFS = 0x01021994

_libc = ctypes.CDLL(None, use_errno=True)
_SYS_MEMBARRIER = {"x86_64": 324, "aarch64": 283}[os.uname().machine]
_GLOBAL_EXPEDITED, _REGISTER = 2, 4


def register_barriers():
    """Whether this process can issue the barrier that bit 0 of the features promises."""
    return _libc.syscall(_SYS_MEMBARRIER, _REGISTER, 0, 0) == 0


def fence():
    """A full memory barrier of this thread and of all that have registered. Python has no cheaper one."""
    if _libc.syscall(_SYS_MEMBARRIER, _GLOBAL_EXPEDITED, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "membarrier")


def allocate(fd, mode, at, size):
    """fallocate(2), which Python calls without a mode."""
    return _libc.fallocate(fd, mode, ctypes.c_long(at), ctypes.c_long(size))


class Region:
    """A mapping, word by word. An aligned word of a memoryview is one machine access."""

    def __init__(self, fd, size, capacity, writable):
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self.map = mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=access)
        for advice in (mmap.MADV_DONTDUMP, mmap.MADV_DONTFORK):
            self.map.madvise(advice)
        self.size = size
        self.capacity = capacity
        self.bytes = memoryview(self.map)
        self.words = self.bytes.cast("Q")

    def load(self, at):
        return self.words[at // 8]

    def store(self, at, word):
        self.words[at // 8] = word & (1 << 64) - 1

    def check_constants(self):
        if (self.load(0), self.load(8)) != (MAGIC, self.capacity):
            raise Violation("the constant words are others")

    def wipe(self):
        self.bytes[RING:RING + self.capacity + 64] = bytes(self.capacity + 64)

    def release(self):
        self.words.release()
        self.bytes.release()
        self.map.close()


def size_of(capacity):
    return CONTROL if capacity == 0 else capacity + EXTRA


def make(capacity, seals=SEALS, size=None, is_shm=False):
    """A region of this process's own, and the descriptor that the peer gets."""
    size = size_of(capacity) if size is None else size
    raw = _shm() if is_shm else _memfd()
    # The kernel does not count a raw memfd as open for writing.
    opened = os.dup(raw) if is_shm else os.open(f"/proc/self/fd/{raw}", os.O_RDWR | os.O_CLOEXEC)
    os.posix_fallocate(opened, 0, size)
    region = Region(opened, size, capacity, True)
    region.store(0, MAGIC)
    region.store(8, capacity)
    if not is_shm:
        fcntl.fcntl(raw, fcntl.F_ADD_SEALS, seals)
    # A signal that is ignored: this end has no alarm. SIGIO, which the kernel would send, ends a process.
    fcntl.fcntl(opened, _F_SETSIG, signal.SIGURG)
    fcntl.fcntl(opened, _F_SETOWN_EX, struct.pack("ii", 1, os.getpid()))
    fcntl.fcntl(opened, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    os.close(opened)
    return region, raw


def _memfd():
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("ringfence", flags | _MFD_NOEXEC_SEAL)
    except OSError:
        return os.memfd_create("ringfence", flags)


def _shm():
    path = f"/dev/shm/ringfence-{os.urandom(16).hex()}"
    raw = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0)
    os.unlink(path)
    if os.fstat(raw).st_nlink != 0:
        raise Violation("another process has given the object a name")
    return raw


def filesystem(fd):
    found = ctypes.create_string_buffer(256)
    if _libc.fstatfs(fd, found) != 0:
        raise OSError(ctypes.get_errno(), "fstatfs")
    return struct.unpack_from("l", found)[0]


def accept(fd, capacity, size, owner, is_shm=False):
    """Checks and maps a peer's object."""
    info = os.fstat(fd)
    checks = {
        "kind": stat.S_ISREG(info.st_mode),
        "filesystem": filesystem(fd) == TMPFS,
        "size": info.st_size == size == size_of(capacity),
        "memory": info.st_blocks * 512 >= size,
        "owner": info.st_uid == owner,
        "names": info.st_nlink == 0,
    }
    if is_shm:
        checks["access"] = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        checks["lease"] = fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_WRLCK
    else:
        checks["seals"] = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS == SEALS
    for check, holds in checks.items():
        if not holds:
            raise Violation(f"object: {check}")
    region = Region(fd, size, capacity, False)
    region.check_constants()
    return region
