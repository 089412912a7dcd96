"""Attachments: see this section of protocol.md."""

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
MAX_COUNT = 253
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


def pack(words, number=None):
    """A parcel. `number`: of its message, if the sender is a publisher."""
    return struct.pack("<BB", PARCEL, len(words)) + struct.pack(f"<{len(words)}Q" if number is None else f"<Q{len(words)}Q",
                                                                *([] if number is None else [number]), *words)


def kinds(words):
    """The bits of the features that a receiver of these has set."""
    return {DESCRIPTORS if word == NO_SIZE else SEALED for word in words}


def usage(words):
    return len(words), sum(word for word in words if word != NO_SIZE)


def fits(unread, load, receiver, head):
    """Whether the receiver, which has read up to its head, accepts these beside the unread ones. `receiver`: its HELLO."""
    while unread and unread[0][0] <= head:
        unread.pop(0)
    limits = receiver.max_attachments, receiver.max_attached_bytes
    return all(sum(held[at] for _, held in unread) + load[at] <= limits[at] for at in (0, 1))


def send_parcel(sock, parcel, fds):
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"={len(fds)}i", *fds))] if fds else []
    sock.sendmsg([parcel], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def send(channel, message, attached):
    """Sends a message with attachments, each a size or NO_SIZE and a descriptor, once the peer accepts them."""
    words = [word for word, _ in attached]
    unread, load = channel.writer.unread, usage(words)

    def has_space():
        head = channel.peer.load(memory.HEAD)
        channel.writer.check_head(head)
        return fits(unread, load, channel.parts.theirs, head)

    channel.wait_for_space(has_space)
    send_parcel(channel.doorbell.sock, pack(words), [fd for _, fd in attached])
    for index, (flags, payload) in enumerate(channel.writer.fragments(message)):
        channel.put(flags | (0 if index else len(words) << ATTACHED), payload)
    unread.append((channel.writer.tail, load))


def close(attached):
    for _, fd in attached:
        os.close(fd)


class Parcels:
    """The parcels that were read from the line, and whose records were not read yet."""

    def __init__(self, accepts, numbered=False):
        self.accepts = accepts
        # The peer is a publisher: each parcel has the number of its message.
        self.numbered = numbered
        # Each: the number, or 0, and the attachments.
        self.unread = []

    def read(self, sock):
        """Reads a wakeup or a parcel. Returns False if the line has ended."""
        first, fds = self._receive(sock, 1)
        if first != bytes([PARCEL]):
            if fds:
                raise Violation("descriptors with a wakeup")
            return bool(first)
        # One call has sent the parcel, so all of it is there.
        (count,), _ = self._receive(sock, 1)
        number = struct.unpack("<Q", self._receive(sock, 8)[0])[0] if self.numbered else 0
        body = self._receive(sock, 8 * count)[0] if count else b""
        words = struct.unpack(f"<{count}Q", body)
        if not (0 if self.numbered else 1) <= count <= MAX_COUNT or len(fds) != count:
            raise Violation(f"a parcel of {count} with {len(fds)} descriptors")
        if any(not self.accepts.features & kind for kind in kinds(words)):
            raise Violation("a kind that this end does not accept")
        last = self.unread[-1][0] if self.unread else 0
        if number < last:
            raise Violation(f"a parcel of message {number} after one of message {last}")
        if self.numbered and number == last:
            close(self.unread.pop()[1])
        if count:
            self.unread.append((number, list(zip(words, fds))))
        # The messages of the oldest were missed.
        while self.numbered and len(self.unread) > 1 and self._is_full():
            close(self.unread.pop(0)[1])
        if self._is_full():
            raise Violation(f"unread attachments: {self.unread}")
        return True

    def _is_full(self):
        return not fits([(1, usage([word for word, _ in parcel])) for _, parcel in self.unread], (0, 0), self.accepts, 0)

    def pop(self, count, number=0):
        """The attachments of the record that is read next, which announces this number of them. `number`: of its message."""
        while self.unread and self.unread[0][0] < number:
            close(self.unread.pop(0)[1])
        if not self.unread or self.unread[0][0] != number:
            if self.numbered:
                return []
            raise Violation(f"a record announces {count} attachments")
        _, parcel = self.unread.pop(0)
        if len(parcel) != count:
            raise Violation(f"a record announces {count} attachments")
        return parcel

    def close(self):
        for _, parcel in self.unread:
            close(parcel)

    @staticmethod
    def _receive(sock, length):
        # The line passes credentials, too.
        room = socket.CMSG_SPACE(12) + socket.CMSG_SPACE(4 * MAX_COUNT)
        found, ancillary, _, _ = sock.recvmsg(length, room, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
        fds = []
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.extend(struct.unpack(f"={len(content) // 4}i", content))
        return found, fds
