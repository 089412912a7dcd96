"""Meeting, the order of a handshake: see these sections of protocol.md."""

import errno
import fcntl
import os
import socket
import stat
import time
from dataclasses import dataclass, field

from . import memory, wire
from .wire import Hello, Hooks, Line, Disconnected, Offer, Violation


@dataclass
class Parts:
    """The parts of a channel after its handshake."""

    line: Line
    mine: Hello
    theirs: Hello
    own: memory.Region
    peer: memory.Region
    offered: Offer
    offer: Offer
    # Called when the channel is released. A host releases its address.
    release: object = field(default=lambda: None)
    # The descriptors that came with READY.
    passed: list = field(default_factory=list)


class BoundAddress:
    """An address that this process has bound."""

    def __init__(self, address, mode=0o600):
        self.address = address
        self.abstract = address.startswith("@")
        self.lock = None if self.abstract else self._lock()
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._bind(mode)
        except BaseException:
            self.sock.close()
            if self.lock is not None:
                os.close(self.lock)
            raise
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.sock.listen(64)

    @classmethod
    def inherit(cls, address, sock, lock):
        """An address whose socket and lock a host has passed to this process."""
        bound = cls.__new__(cls)
        bound.address, bound.sock, bound.lock = address, sock, lock
        bound.abstract = address.startswith("@")
        bound.inode = None if bound.abstract else os.stat(address).st_ino
        return bound

    def is_current(self):
        """Whether the files at the address are still those that were passed."""
        if self.abstract:
            return True
        try:
            beside = os.stat(self.address + ".lock", follow_symlinks=False)
            held = os.fstat(self.lock)
            return (held.st_dev, held.st_ino) == (beside.st_dev, beside.st_ino) and os.stat(self.address).st_ino == self.inode
        except FileNotFoundError:
            return False

    def descriptors(self):
        """The descriptors that a guest among members is passed."""
        return [self.sock] if self.lock is None else [self.sock, self.lock]

    def close(self):
        """Closes the descriptors. Another process has the address now."""
        self.sock.close()
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def _lock(self):
        path = self.address + ".lock"
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            lock = os.open(path, flags, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held, named = os.fstat(lock), os.stat(path, follow_symlinks=False)
            except FileNotFoundError:
                os.close(lock)
                continue
            except BaseException:
                os.close(lock)
                raise
            if not stat.S_ISREG(held.st_mode):
                os.close(lock)
                raise Violation("the lock is no file")
            if (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino):
                return lock
            os.close(lock)

    def _bind(self, mode):
        if self.abstract:
            self.sock.bind(b"\0" + self.address[1:].encode())
            return
        os.fchmod(self.sock.fileno(), mode & 0o700)
        try:
            self.sock.bind(self.address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not stat.S_ISSOCK(os.lstat(self.address).st_mode):
                raise
            probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            with probe:
                if probe.connect_ex(self.address) != errno.ECONNREFUSED:
                    raise
            os.unlink(self.address)
            self.sock.bind(self.address)
        os.chmod(self.address, mode)

    def stop_accepting(self):
        """Accepts no more clients. The address stays bound."""
        self.sock.shutdown(socket.SHUT_RD)

    def release(self):
        if self.lock is not None:
            for path in (self.address, self.address + ".lock"):
                try:
                    os.unlink(path)
                except FileNotFoundError:
                    pass
        self.close()


def connect(address):
    """Returns a connected socket, or None if no process listens."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.connect(b"\0" + address[1:].encode() if address.startswith("@") else address)
        return sock
    except (ConnectionRefusedError, FileNotFoundError):
        sock.close()
        return None


def check_peer(peer):
    """The policy of this end: the same user, and the same pid namespace."""
    pid, uid, _ = peer
    if uid != os.geteuid():
        raise Violation(f"uid {uid}")
    pidfd = os.pidfd_open(pid)
    try:
        with open(f"/proc/self/fdinfo/{pidfd}") as info:
            numbers = [line.split()[1:] for line in info if line.startswith("NSpid")]
    finally:
        os.close(pidfd)
    # One number: it lives where this process does. No line at all: a kernel that does not show it.
    if numbers and len(numbers[0]) != 1:
        raise Violation(f"a namespace below, {numbers[0]}")


def guest(address, hello=None, hooks=None, limit=30):
    """Connects, and shakes hands as the guest."""
    deadline = time.monotonic() + limit
    while True:
        sock = connect(address)
        if sock is None:
            raise Disconnected("no process listens")
        try:
            return guest_on(sock, hello or Hello(), hooks, deadline)
        finally:
            sock.close()


def guest_on(first_sock, hello, hooks, deadline, peer=None):
    """The guest's side of the order, from a connected socket."""
    line, theirs = exchange_hello_as_guest(first_sock, hello, hooks, deadline, peer)
    return finish(line, hello, theirs, False)


def host_on(first_sock, hello, hooks, deadline, peer=None):
    """The host's side of the order, from an accepted socket."""
    line, theirs = exchange_hello_as_host(first_sock, hello, hooks, deadline, peer)
    return finish(line, hello, theirs, True)


def exchange_hello_as_guest(first_sock, hello, hooks, deadline, peer=None):
    """Exchanges HELLO. Returns the private line and the host's HELLO."""
    hooks = hooks or Hooks()
    peer = peer or wire.peer_credentials(first_sock)
    check_peer(peer)
    ours, passed = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    line = Line(ours, peer, deadline, hooks)
    outer = Line(first_sock, peer, deadline, hooks)
    try:
        with passed:
            hooks.reached("hello", line)
            # The parent of a child sets the options of both ends.
            outer.send(wire.HELLO, hello.pack(), [passed, ours] if hello.meeting == wire.CHILD else [passed])
        try:
            body, _ = line.receive(wire.HELLO)
        except Disconnected:
            # A REFUSE may wait on the first socket, behind the mark of a child's line.
            if hello.meeting == wire.CHILD:
                outer.receive(wire.READY)
            outer.receive(wire.HELLO)
            raise
        theirs = Hello.unpack(body)
        if theirs.echo != hello.nonce:
            raise Violation("another nonce")
        hello.agree(theirs)
        return line, theirs
    except BaseException:
        line.close()
        raise


def exchange_hello_as_host(first_sock, hello, hooks, deadline, peer=None):
    """Exchanges HELLO. Returns the private line and the guest's HELLO."""
    hooks = hooks or Hooks()
    peer = peer or wire.peer_credentials(first_sock)
    check_peer(peer)
    is_parent = hello.meeting == wire.CHILD
    body, fds = Line(first_sock, peer, deadline, hooks).receive(wire.HELLO, 2 if is_parent else 1)
    line, *others = [Line(socket.socket(fileno=fd), peer, deadline, hooks) for fd in fds]
    for other in others:
        other.close()
    try:
        sock = line.sock
        if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM) or wire.peer_credentials(sock) != peer:
            raise Violation("not a line, or made by another process")
        sock.getpeername()
        theirs = Hello.unpack(body)
        if theirs.echo != bytes(32):
            raise Violation("an echo that is not zero")
        hello.agree(theirs)
        hello.echo = theirs.nonce
        hooks.reached("hello", line)
        line.send(wire.HELLO, hello.pack())
        return line, theirs
    except Violation as error:
        try:
            line.send(wire.REFUSE, wire.pack_refuse(wire.DISAGREES, "protocol", "", str(error)))
        except Disconnected:
            pass
        line.close()
        raise
    except BaseException:
        line.close()
        raise


def finish(line, mine, theirs, is_host, descriptors=()):
    """From OFFER to READY. `descriptors`: those that a host passes with READY; for a guest, their number."""
    try:
        own, raw = memory.make(mine.capacity, is_shm=mine.backing == wire.SHM)
        try:
            line.hooks.reached("offer", line)
            offered = Offer(theirs.nonce, own.size, mine.capacity)
            if mine.mailbox is not None:
                box = mine.mailbox
                offered.number, offered.thread, offered.mailbox = box.number, box.thread, box.mailbox
                offered.secret = box.secret
            line.send(wire.OFFER, offered.pack(), [raw])
            body, (fd,) = line.receive(wire.OFFER, 1)
            try:
                offer = check_offer(Offer.unpack(body), mine, theirs)
                peer = memory.accept(fd, theirs.capacity, offer.size, line.peer[1], mine.backing == wire.SHM)
                line.hooks.reached("object", fd)
            finally:
                os.close(fd)
        finally:
            os.close(raw)
        parts = Parts(line, mine, theirs, own, peer, offered, offer)
        ready(parts, is_host, descriptors)
        return parts
    except BaseException:
        line.close()
        raise


def check_offer(offer, mine, theirs):
    if offer.echo != mine.nonce:
        raise Violation("another nonce")
    if offer.capacity != theirs.capacity:
        raise Violation("another capacity than in HELLO")
    return offer


def ready(parts, is_host, descriptors=()):
    """Exchanges READY, each after a last check of the peer. A host among members passes the descriptors of its address."""
    line = parts.line
    line.hooks.reached("ready", parts)
    if not is_host:
        check_peer(line.peer)
        line.send(wire.READY, parts.theirs.nonce)
    body, parts.passed = line.receive(wire.READY, 0 if is_host else descriptors or 0)
    if body != parts.mine.nonce:
        raise Violation("another nonce")
    check_peer(line.peer)
    if is_host:
        line.send(wire.READY, parts.theirs.nonce, descriptors)
    line.hooks.reached("open", parts)


def accept_connection(bound, limit):
    bound.sock.settimeout(limit)
    sock, address = bound.sock.accept()
    sock.setblocking(True)
    return sock, address


def accept(bound, hello, hooks=None, limit=30):
    """Accepts the next guest, or raises the error of its handshake."""
    sock, _ = accept_connection(bound, limit)
    try:
        return host_on(sock, hello, hooks, time.monotonic() + limit)
    finally:
        sock.close()


def join(address, hello=None, hooks=None, limit=30):
    """Returns the role and the parts: the host if the address is free, else the guest."""
    hello = hello or Hello()
    hello.meeting = wire.PAIR
    for turn in range(13):
        try:
            bound = BoundAddress(address)
        except (BlockingIOError, OSError) as error:
            if error.errno not in (errno.EADDRINUSE, errno.EAGAIN):
                raise
            sock = connect(address)
            if sock is None:
                time.sleep(0.002 * turn)
                continue
            with sock:
                return "guest", guest_on(sock, hello, hooks, time.monotonic() + limit)
        try:
            parts = accept(bound, hello, hooks, limit)
            bound.stop_accepting()
        except BaseException:
            bound.release()
            raise
        parts.release = bound.release
        return "host", parts
    raise Disconnected("the address is taken")


def from_parent(hello=None, hooks=None, limit=30):
    """Connects to the parent by the inherited line."""
    number = int(os.environ.pop("RINGFENCE_LINE"))
    if not stat.S_ISSOCK(os.fstat(number).st_mode):
        raise Violation("not the line")
    os.set_inheritable(number, False)
    hello = hello or Hello()
    hello.meeting = wire.CHILD
    with socket.socket(fileno=number) as first_sock:
        if first_sock.recv(48, socket.MSG_PEEK | socket.MSG_DONTWAIT) != wire.pack_frame(wire.READY, bytes(32)):
            raise Violation("not the line")
        return guest_on(first_sock, hello, hooks, time.monotonic() + limit)


def start_child(start):
    """
    The parent's side: `start(number, text)` starts the child with that descriptor and that RINGFENCE_LINE, and returns the pid of that
    process it is. Answers with the first_sock socket, of which `host_on_child_line` makes a channel.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        for sock in (ours, theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        # The mark by which the child recognizes its line.
        Line(ours, None, time.monotonic() + 30, Hooks()).send(wire.READY, bytes(32))
        pid = start(theirs.fileno(), str(theirs.fileno()))
    return ours, pid


def host_on_child_line(first_sock, pid, hello=None, hooks=None, limit=30):
    hello = hello or Hello()
    hello.meeting = wire.CHILD
    peer = (pid, os.geteuid(), os.getegid())
    with first_sock:
        return host_on(first_sock, hello, hooks, time.monotonic() + limit, peer)


