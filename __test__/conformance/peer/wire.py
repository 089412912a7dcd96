"""Frames of the line: see "Credentials" and "Frames" in protocol.md."""

import os
import select
import socket
import struct
import time
from dataclasses import dataclass, field

MAGIC = b"ringfnce"
VERSION = 3
HELLO, OFFER, READY, REFUSE = 1, 2, 3, 4
NAMES = {HELLO: "HELLO", OFFER: "OFFER", READY: "READY", REFUSE: "REFUSE"}
LENGTHS = {HELLO: (112, 112), OFFER: (104, 104), READY: (32, 32), REFUSE: (8, 4096)}
PAIR, SERVICE, CHILD, MEMBER, BROADCAST = range(5)
MEMFD, SHM = 1, 2
BARRIERS = 1
OCCUPIED, POLICY, DISAGREES, UNSOUND, UNABLE = range(1, 6)
MAX_PEER_CAPACITY = 1 << 30

_CREDENTIALS = struct.Struct("=iII")
_HEAD = struct.Struct("<8sHHI")
_HELLO = struct.Struct("<32s32sQQIIIHHIIQ")
_OFFER = struct.Struct("<32sQQIIII16sQQII")


class Violation(Exception):
    """The peer has violated the protocol."""


class Disconnected(Exception):
    """The line was closed."""


class Refused(Exception):
    """The peer has sent REFUSE."""

    def __init__(self, code, check="", wanted="", found=""):
        super().__init__(f"refused ({code}): {check}: wanted {wanted}, found {found}")
        self.code = code
        self.check = check


@dataclass
class Hello:
    nonce: bytes = field(default_factory=lambda: os.urandom(32))
    echo: bytes = bytes(32)
    capacity: int = 65536
    longest: int = 1 << 20
    backing: int = MEMFD
    features: int = 0
    meeting: int = PAIR
    delivery: int = 0
    start: int = 0
    # None, unless bit 2 or 3 of the features is set.
    max_attachments: int = 0
    reserved: int = 0
    max_attached_bytes: int = 0
    # The mailbox for tokens of this side, if it accepts any. OFFER contains it.
    mailbox: object = None

    def pack(self):
        return _HELLO.pack(self.nonce, self.echo, self.capacity, self.longest, self.backing, self.features,
                           self.meeting, self.delivery, self.start, self.max_attachments, self.reserved,
                           self.max_attached_bytes)

    @classmethod
    def unpack(cls, body):
        hello = cls(*_HELLO.unpack(body))
        if not 1 <= hello.longest <= 1 << 31:
            raise Violation(f"longest {hello.longest}")
        is_control = hello.meeting == BROADCAST and hello.capacity == 0
        is_power = hello.capacity & (hello.capacity - 1) == 0 and 4096 <= hello.capacity <= 1 << 46
        if not (is_control or is_power):
            raise Violation(f"capacity {hello.capacity}")
        return hello

    def agree(self, other):
        """Checks what must be equal on both sides."""
        if (self.backing, self.meeting) != (other.backing, other.meeting):
            raise Violation(f"backing, meeting: {self.backing, self.meeting} and {other.backing, other.meeting}")
        if other.capacity > MAX_PEER_CAPACITY:
            raise Violation(f"capacity {other.capacity} above {MAX_PEER_CAPACITY}")


@dataclass
class Offer:
    echo: bytes
    size: int
    capacity: int
    number: int = 0
    thread: int = 0
    mailbox: int = 0
    reserved: int = 0
    secret: bytes = bytes(16)
    position: int = 0
    sequence: int = 0
    slot: int = 0
    reserved_too: int = 0

    def pack(self):
        return _OFFER.pack(self.echo, self.size, self.capacity, self.number, self.thread, self.mailbox, self.reserved,
                           self.secret, self.position, self.sequence, self.slot, self.reserved_too)

    @classmethod
    def unpack(cls, body):
        return cls(*_OFFER.unpack(body))


def pack_refuse(code, *texts):
    body = struct.pack("<H", code)
    for text in texts:
        text = text.encode()[:1000]
        body += struct.pack("<H", len(text)) + text
    return body


def unpack_refuse(body):
    (code,) = struct.unpack_from("<H", body)
    texts, at = [], 2
    for _ in range(3):
        if at + 2 > len(body):
            raise Violation("a REFUSE that ends too soon")
        (length,) = struct.unpack_from("<H", body, at)
        if at + 2 + length > len(body):
            raise Violation("a text that is longer than its REFUSE")
        texts.append(body[at + 2:at + 2 + length].decode("utf-8", "replace"))
        at += 2 + length
    if at != len(body):
        raise Violation("bytes after the third text")
    return Refused(code, *texts)


def pack_frame(kind, body):
    return _HEAD.pack(MAGIC, VERSION, kind, len(body)) + body


def own_credentials():
    return os.getpid(), os.geteuid(), os.getegid()


def peer_credentials(sock):
    return _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))


class Hooks:
    """Prepares frames for sending. A hostile peer substitutes its own."""

    def frame(self, kind, frame, fds):
        """Returns the bytes and descriptors to send, or None to send nothing."""
        return frame, fds

    def sent(self, kind):
        """Called after a frame was sent."""

    def reached(self, stage, state):
        """Called at each stage: 'hello', 'offer', 'object', 'ready', 'open'."""


class Line:
    """A connected socket, and the credentials of the only process that may send on it."""

    def __init__(self, sock, peer, deadline, hooks=None):
        self.sock = sock
        self.peer = peer
        self.deadline = deadline
        self.hooks = hooks or Hooks()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        # Options that belong to the socket, which the peer may have set: SO_PASSPIDFD, SO_PASSSEC.
        for option in (76, 34):
            try:
                sock.setsockopt(socket.SOL_SOCKET, option, 0)
            except OSError:
                pass

    def close(self):
        self.sock.close()

    def send(self, kind, body, fds=()):
        prepared = self.hooks.frame(kind, pack_frame(kind, body), list(fds))
        if prepared is None:
            return
        frame, fds = prepared
        ancillary = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, _CREDENTIALS.pack(*own_credentials()))]
        if fds:
            numbers = struct.pack(f"={len(fds)}i", *[fd if isinstance(fd, int) else fd.fileno() for fd in fds])
            ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers))
        while frame:
            try:
                sent = self.sock.sendmsg([frame], ancillary, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._wait(select.POLLOUT)
                continue
            except (BrokenPipeError, ConnectionResetError) as error:
                raise Disconnected("disconnected") from error
            frame = frame[sent:]
            # Descriptors go with the first byte, the credentials with each.
            ancillary = ancillary[:1]
        self.hooks.sent(kind)

    def _wait(self, event):
        left = self.deadline - time.monotonic()
        poll = select.poll()
        poll.register(self.sock, event)
        if left <= 0 or not poll.poll(left * 1000):
            raise TimeoutError("the peer has sent nothing until the deadline")

    def _read(self, wanted, fds):
        got = b""
        while len(got) < wanted:
            room = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(4 * 8)
            try:
                data, ancillary, flags, _ = self.sock.recvmsg(
                    wanted - len(got), room, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                self._wait(select.POLLIN)
                continue
            except ConnectionResetError as error:
                raise Disconnected("disconnected") from error
            credentials = None
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                    credentials = _CREDENTIALS.unpack(content[:_CREDENTIALS.size])
                elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds.extend(struct.unpack(f"={len(content) // 4}i", content[:len(content) // 4 * 4]))
                else:
                    raise Violation(f"control message {level}, {kind}")
            if not data:
                raise Disconnected("the line has ended")
            if flags & socket.MSG_CTRUNC:
                raise Violation("descriptors were cut off")
            if credentials != self.peer:
                raise Violation(f"line: sent by {credentials}, expected {self.peer}")
            got += data
        return got

    def receive(self, kind, count=0):
        """The body of the next frame, which must be of this kind, and the descriptors that came with it."""
        fds = []
        try:
            magic, version, found, length = _HEAD.unpack(self._read(_HEAD.size, fds))
            if magic != MAGIC or version != VERSION or found not in LENGTHS:
                raise Violation(f"a head of {magic}, {version}, {found}")
            least, most = LENGTHS[found]
            if not least <= length <= most:
                raise Violation(f"{NAMES[found]} of {length} bytes")
            body = self._read(length, fds)
            if found == REFUSE:
                raise unpack_refuse(body)
            if found != kind:
                raise Violation(f"{NAMES[found]}, expected {NAMES[kind]}")
            if len(fds) != count:
                raise Violation(f"{len(fds)} descriptors with {NAMES[kind]}")
            return body, fds
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
