"""Members: who holds an address, passes it on, and takes it over. The page's "Meeting", and "The end"."""

import fcntl
import os
import socket
import stat
import time

from . import meet, wire
from .memory import PHASE
from .ring import Channel
from .wire import Lost, Violation

LEFT, SUCCEEDS = (4, 12), (5, 13)


class Member:
    """One who stays at an address: its host, or the guest that will be."""

    def __init__(self, address, hello):
        self.address = address
        self.hello = hello
        self.place = None
        self.channel = None

    def wait_as_host(self, limit=60):
        """Binds the address where there is no place yet, and has a channel with the next guest."""
        self.place = self.place or meet.Place(self.address)
        sock, _ = meet.accepted(self.place, limit)
        with sock:
            line, theirs = meet.begin_as_host(sock, self.fresh(), None, time.monotonic() + limit)
        met = meet.finish(line, self.mine, theirs, True, self.place.shares())
        self.channel = Channel(met)

    def come_as_guest(self, limit=60):
        """Connects; one that is hung up on before READY connects again, up to its deadline."""
        deadline = time.monotonic() + limit
        while True:
            try:
                with self._dial() as sock:
                    line, theirs = meet.begin_as_guest(sock, self.fresh(), None, deadline)
                met = meet.finish(line, self.mine, theirs, False, 1 if self.address.startswith("@") else 2)
                break
            except Lost:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        self.inherited = check_inheritance(self.address, met.passed)
        self.channel = Channel(met)

    def _dial(self):
        sock = meet.dial(self.address)
        if sock is None:
            raise Lost("no process listens")
        return sock

    def fresh(self):
        self.mine = wire.Hello(capacity=self.hello.capacity, longest=self.hello.longest, features=self.hello.features,
                               meeting=wire.MEMBER)
        return self.mine

    def leave(self, limit=60):
        """As a host: ends its sending and says that it leaves, waits for the guest, and answers whether that has the place now. Else removes what is there."""
        channel = self.channel
        channel.own.store(PHASE, 12)
        channel.bell.sock.shutdown(socket.SHUT_WR)
        channel.bell.wait_for_end(limit)
        taken = channel.peer.load(PHASE) in SUCCEEDS
        channel.release()
        if taken:
            self.place.let_go()
        else:
            self.place.release()
        return taken

    def succeed(self, limit=60):
        """As the guest of a host that has left or ended: takes the place over first, and then closes."""
        channel = self.channel
        channel.bell.wait_for_end(limit)
        if channel.peer_phase() not in (0, 1, *LEFT):
            raise Violation(f"its host is there still: phase {channel.peer_phase()}")
        self.place = self.inherited
        if not self.place.is_there():
            raise Violation("its files are gone")
        # From now on the kernel names this process.
        self.place.sock.listen(64)
        self._send_away()
        channel.own.store(PHASE, 13 if channel.phase == 1 else 5)
        channel.bell.sock.shutdown(socket.SHUT_RDWR)
        channel.release()

    def _send_away(self):
        """Those that connected before: the kernel has named the former host to them, and they come again."""
        self.place.sock.setblocking(False)
        try:
            for _ in range(64):
                self.place.sock.accept()[0].close()
        except BlockingIOError:
            pass

    def give_up(self):
        """Leaves with no partner there."""
        self.place.release()


def check_inheritance(address, fds):
    """The listening socket and the lock that a host has passed; nothing of them is believed."""
    sock = socket.socket(fileno=fds[0])
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise Violation("no listening socket")
    bound = sock.getsockname()
    if address.startswith("@"):
        if bound != b"\0" + address[1:].encode():
            raise Violation(f"bound at {bound!r}")
        return meet.Place.inherit(address, sock, None)
    if bound != address and os.stat(bound).st_ino != os.stat(address).st_ino:
        raise Violation(f"bound at {bound!r}")
    held, beside = os.fstat(fds[1]), os.stat(address + ".lock", follow_symlinks=False)
    if not stat.S_ISREG(held.st_mode) or (held.st_dev, held.st_ino) != (beside.st_dev, beside.st_ino):
        raise Violation("another lock")
    fcntl.flock(fds[1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    return meet.Place.inherit(address, sock, fds[1])
