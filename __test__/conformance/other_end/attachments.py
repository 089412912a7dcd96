"""Attachments: the page's section of this name, for one of a pair."""

import fcntl
import os
import socket
import stat
import struct

from . import memory
from .ring import ATTACHED
from .wire import Violation

SEALED, DESCRIPTORS = 4, 8
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
PARCEL = 2
MOST = 253
NO_SIZE = (1 << 64) - 1
_HUGETLBFS = 0x958458F6


def seal(content, seals=SEALS):
    """A sealed buffer of these bytes."""
    fd = os.memfd_create("attached", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    if content:
        os.posix_fallocate(fd, 0, len(content))
        os.pwrite(fd, content, 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def unseal(fd, size):
    """The bytes of a received sealed buffer, after all checks. Closes it."""
    try:
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS != SEALS:
            raise Violation("a seal is missing")
        info = os.fstat(fd)
        checks = {
            "kind": stat.S_ISREG(info.st_mode),
            "filesystem": memory.filesystem(fd) in (memory.TMPFS, _HUGETLBFS),
            "access": fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR,
            "size": info.st_size == size,
        }
        for check, holds in checks.items():
            if not holds:
                raise Violation(f"sealed buffer: {check}")
        os.ftruncate(fd, size)
        if os.fstat(fd).st_blocks * 512 < size:
            raise Violation("sealed buffer: memory")
        return os.pread(fd, size, 0)
    finally:
        os.close(fd)


def pack(words):
    return struct.pack(f"<BB{len(words)}Q", PARCEL, len(words), *words)


def post(sock, parcel, fds):
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"={len(fds)}i", *fds))] if fds else []
    sock.sendmsg([parcel], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def send(channel, message, attached):
    """Sends a message with attachments, each a size or NO_SIZE and a descriptor, once the peer accepts so many more."""
    words = [word for word, _ in attached]
    unread = channel.sends.unread
    load = len(words), sum(word for word in words if word != NO_SIZE)
    limits = channel.met.theirs.max_attachments, channel.met.theirs.max_attached_bytes

    def fits():
        head = channel.peer.load(memory.HEAD)
        channel.sends.look(head)
        while unread and unread[0][0] <= head:
            unread.pop(0)
        return all(sum(held[at] for _, held in unread) + load[at] <= limits[at] for at in (0, 1))

    channel.wait_for_room(fits)
    post(channel.bell.sock, pack(words), [fd for _, fd in attached])
    for index, (flags, payload) in enumerate(channel.sends.cuts(message)):
        channel.put(flags | (0 if index else len(words) << ATTACHED), payload)
    unread.append((channel.sends.tail, load))


class Parcels:
    """The parcels that were read from the line, and whose records were not read yet."""

    def __init__(self, accepts):
        self.accepts = accepts
        self.unread = []

    def read(self, sock):
        """A wakeup or a parcel. Says whether there was one: else the line has ended."""
        first, fds = self._receive(sock, 1)
        if first != bytes([PARCEL]):
            if fds:
                raise Violation("descriptors with a wakeup")
            return bool(first)
        # One call has sent the parcel, so all of it is there.
        (count,), _ = self._receive(sock, 1)
        body, _ = self._receive(sock, 8 * count)
        words = struct.unpack(f"<{count}Q", body)
        if not 1 <= count <= MOST or len(fds) != count:
            raise Violation(f"a parcel of {count} with {len(fds)} descriptors")
        kinds = {DESCRIPTORS if word == NO_SIZE else SEALED for word in words}
        if any(not self.accepts.features & kind for kind in kinds):
            raise Violation("a kind that this end does not accept")
        self.unread.append(list(zip(words, fds)))
        held = [word for parcel in self.unread for word, _ in parcel]
        if len(held) > self.accepts.max_attachments:
            raise Violation(f"{len(held)} unread attachments")
        if sum(word for word in held if word != NO_SIZE) > self.accepts.max_attached_bytes:
            raise Violation("unread sealed buffers with too many bytes")
        return True

    def take(self, count):
        """The attachments of the record that is read next, which announces this number."""
        if not self.unread or len(self.unread[0]) != count:
            raise Violation(f"a record announces {count} attachments")
        return self.unread.pop(0)

    def close(self):
        for parcel in self.unread:
            for _, fd in parcel:
                os.close(fd)

    @staticmethod
    def _receive(sock, length):
        # The line passes credentials, too.
        room = socket.CMSG_SPACE(12) + socket.CMSG_SPACE(4 * MOST)
        found, ancillary, _, _ = sock.recvmsg(length, room, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
        fds = []
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.extend(struct.unpack(f"={len(content) // 4}i", content))
        return found, fds
