"""Meeting, the order of a handshake: the page's sections of these names."""

import errno
import fcntl
import os
import socket
import stat
import time
from dataclasses import dataclass, field

from . import memory, wire
from .wire import Hello, Honest, Line, Lost, Offer, Violation


@dataclass
class Met:
    """What a handshake has brought."""

    line: Line
    mine: Hello
    theirs: Hello
    own: memory.Region
    peer: memory.Region
    offered: Offer
    offer: Offer
    # The place, which a host releases at the end.
    release: object = field(default=lambda: None)
    # The descriptors that came with READY.
    passed: list = field(default_factory=list)


class Place:
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
        """The place of a host, of which this process was passed all that there is."""
        place = cls.__new__(cls)
        place.address, place.sock, place.lock = address, sock, lock
        place.abstract = address.startswith("@")
        place.inode = None if place.abstract else os.stat(address).st_ino
        return place

    def is_there(self):
        """Whether the files of an inherited place are those that were passed on."""
        if self.abstract:
            return True
        try:
            beside = os.stat(self.address + ".lock", follow_symlinks=False)
            held = os.fstat(self.lock)
            return (held.st_dev, held.st_ino) == (beside.st_dev, beside.st_ino) and os.stat(self.address).st_ino == self.inode
        except FileNotFoundError:
            return False

    def shares(self):
        """What a guest among members is passed."""
        return [self.sock] if self.lock is None else [self.sock, self.lock]

    def let_go(self):
        """Another process has the place now, files and all."""
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

    def shut(self):
        """Closes the door, and keeps the place."""
        self.sock.shutdown(socket.SHUT_RD)

    def release(self):
        if self.lock is not None:
            for path in (self.address, self.address + ".lock"):
                try:
                    os.unlink(path)
                except FileNotFoundError:
                    pass
        self.let_go()


def dial(address):
    """A connected socket, or None where no process listens."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.connect(b"\0" + address[1:].encode() if address.startswith("@") else address)
        return sock
    except (ConnectionRefusedError, FileNotFoundError):
        sock.close()
        return None


def check_sender(sender):
    """The policy of this end: the same user, and the same pid namespace."""
    pid, uid, _ = sender
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


def guest(address, hello=None, tongue=None, limit=30):
    """Connects, and shakes hands as the guest."""
    deadline = time.monotonic() + limit
    while True:
        sock = dial(address)
        if sock is None:
            raise Lost("no process listens")
        try:
            return guest_on(sock, hello or Hello(), tongue, deadline)
        finally:
            sock.close()


def guest_on(agreed, hello, tongue, deadline, sender=None):
    """The guest's side of the order, from a connected socket."""
    line, theirs = begin_as_guest(agreed, hello, tongue, deadline, sender)
    return finish(line, hello, theirs, False)


def host_on(agreed, hello, tongue, deadline, sender=None):
    """The host's side of the order, from an accepted socket."""
    line, theirs = begin_as_host(agreed, hello, tongue, deadline, sender)
    return finish(line, hello, theirs, True)


def begin_as_guest(agreed, hello, tongue, deadline, sender=None):
    """Until both have said HELLO: the private line, and what the host has said."""
    tongue = tongue or Honest()
    sender = sender or wire.peer_credentials(agreed)
    check_sender(sender)
    ours, passed = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    line = Line(ours, sender, deadline, tongue)
    outer = Line(agreed, sender, deadline, tongue)
    try:
        with passed:
            tongue.before("hello", line)
            # The parent of a child sets the options of both ends.
            outer.say(wire.HELLO, hello.pack(), [passed, ours] if hello.meeting == wire.CHILD else [passed])
        try:
            body, _ = line.hear(wire.HELLO)
        except Lost:
            # A REFUSE may wait on the agreed socket, behind the mark of a child's line.
            if hello.meeting == wire.CHILD:
                outer.hear(wire.READY)
            outer.hear(wire.HELLO)
            raise
        theirs = Hello.unpack(body)
        if theirs.echo != hello.nonce:
            raise Violation("another nonce")
        hello.agree(theirs)
        return line, theirs
    except BaseException:
        line.close()
        raise


def begin_as_host(agreed, hello, tongue, deadline, sender=None):
    """Until both have said HELLO: the private line, and what the guest has said."""
    tongue = tongue or Honest()
    sender = sender or wire.peer_credentials(agreed)
    check_sender(sender)
    is_parent = hello.meeting == wire.CHILD
    body, fds = Line(agreed, sender, deadline, tongue).hear(wire.HELLO, 2 if is_parent else 1)
    line, *others = [Line(socket.socket(fileno=fd), sender, deadline, tongue) for fd in fds]
    for other in others:
        other.close()
    try:
        sock = line.sock
        if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM) or wire.peer_credentials(sock) != sender:
            raise Violation("no line, or made by another process")
        sock.getpeername()
        theirs = Hello.unpack(body)
        if theirs.echo != bytes(32):
            raise Violation("an echo of nothing")
        hello.agree(theirs)
        hello.echo = theirs.nonce
        tongue.before("hello", line)
        line.say(wire.HELLO, hello.pack())
        return line, theirs
    except Violation as error:
        try:
            line.say(wire.REFUSE, wire.pack_refuse(wire.DISAGREES, "protocol", "", str(error)))
        except Lost:
            pass
        line.close()
        raise
    except BaseException:
        line.close()
        raise


def finish(line, mine, theirs, is_host, shares=()):
    """From OFFER to READY. `shares`: what goes with READY, or of a guest, how many descriptors come with it."""
    try:
        own, raw = memory.make(mine.capacity, is_shm=mine.backing == wire.SHM)
        try:
            line.tongue.before("offer", line)
            offered = Offer(theirs.nonce, own.size, mine.capacity)
            if mine.mailbox is not None:
                box = mine.mailbox
                offered.number, offered.thread, offered.mailbox = box.number, box.thread, box.mailbox
                offered.secret = box.secret
            line.say(wire.OFFER, offered.pack(), [raw])
            body, (fd,) = line.hear(wire.OFFER, 1)
            try:
                offer = check_offer(Offer.unpack(body), mine, theirs)
                peer = memory.accept(fd, theirs.capacity, offer.size, line.sender[1], mine.backing == wire.SHM)
                line.tongue.before("object", fd)
            finally:
                os.close(fd)
        finally:
            os.close(raw)
        met = Met(line, mine, theirs, own, peer, offered, offer)
        ready(met, is_host, shares)
        return met
    except BaseException:
        line.close()
        raise


def check_offer(offer, mine, theirs):
    if offer.echo != mine.nonce:
        raise Violation("another nonce")
    if offer.capacity != theirs.capacity:
        raise Violation("another capacity than in HELLO")
    return offer


def ready(met, is_host, shares=()):
    """READY of both, each after the last look at the other. A host among members passes its place on with it."""
    line = met.line
    line.tongue.before("ready", met)
    if not is_host:
        check_sender(line.sender)
        line.say(wire.READY, met.theirs.nonce)
    body, met.passed = line.hear(wire.READY, 0 if is_host else shares or 0)
    if body != met.mine.nonce:
        raise Violation("another nonce")
    check_sender(line.sender)
    if is_host:
        line.say(wire.READY, met.theirs.nonce, shares)
    line.tongue.before("open", met)


def accepted(place, limit):
    place.sock.settimeout(limit)
    sock, whence = place.sock.accept()
    sock.setblocking(True)
    return sock, whence


def accept(place, hello, tongue=None, limit=30):
    """The next guest of a place, or an exception of its handshake."""
    sock, _ = accepted(place, limit)
    try:
        return host_on(sock, hello, tongue, time.monotonic() + limit)
    finally:
        sock.close()


def join(address, hello=None, tongue=None, limit=30):
    """One of two: the host where the address is free, else the guest. Says which."""
    hello = hello or Hello()
    hello.meeting = wire.PAIR
    for turn in range(13):
        try:
            place = Place(address)
        except (BlockingIOError, OSError) as error:
            if error.errno not in (errno.EADDRINUSE, errno.EAGAIN):
                raise
            sock = dial(address)
            if sock is None:
                time.sleep(0.002 * turn)
                continue
            with sock:
                return "guest", guest_on(sock, hello, tongue, time.monotonic() + limit)
        try:
            met = accept(place, hello, tongue, limit)
            place.shut()
        except BaseException:
            place.release()
            raise
        met.release = place.release
        return "host", met
    raise Lost("the address is taken")


def from_parent(hello=None, tongue=None, limit=30):
    """The child's side of a line that a parent has left."""
    number = int(os.environ.pop("RINGFENCE_LINE"))
    if not stat.S_ISSOCK(os.fstat(number).st_mode):
        raise Violation("that is not the line")
    os.set_inheritable(number, False)
    hello = hello or Hello()
    hello.meeting = wire.CHILD
    with socket.socket(fileno=number) as agreed:
        if agreed.recv(48, socket.MSG_PEEK | socket.MSG_DONTWAIT) != wire.pack_frame(wire.READY, bytes(32)):
            raise Violation("that is not the line")
        return guest_on(agreed, hello, tongue, time.monotonic() + limit)


def bequeath(start):
    """
    The parent's side: `start(number, text)` starts the child with that descriptor and that RINGFENCE_LINE, and says which
    process it is. Answers with the agreed socket, of which `host_of_child` makes a channel.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        for sock in (ours, theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        # The mark, by which the child recognizes its line.
        Line(ours, None, time.monotonic() + 30, Honest()).say(wire.READY, bytes(32))
        pid = start(theirs.fileno(), str(theirs.fileno()))
    return ours, pid


def host_of_child(agreed, pid, hello=None, tongue=None, limit=30):
    hello = hello or Hello()
    hello.meeting = wire.CHILD
    sender = (pid, os.geteuid(), os.getegid())
    with agreed:
        return host_on(agreed, hello, tongue, time.monotonic() + limit, sender)


