"""Members: the ownership of an address, and its transfer. See "Meeting" in protocol.md, and "The end"."""

import fcntl
import os
import socket
import stat
import time

from . import handshake, wire
from .memory import PHASE
from .ring import Channel
from .wire import Disconnected, Violation

LEFT, SUCCEEDS = (4, 12), (5, 13)


class Member:
    """A member of an address: its host or guest."""

    def __init__(self, address, hello):
        self.address = address
        self.hello = hello
        self.bound = None
        self.channel = None

    def wait_as_host(self, limit=60):
        """Binds the address if it is not bound yet, and opens a channel with the next guest."""
        self.bound = self.bound or handshake.BoundAddress(self.address)
        sock, _ = handshake.accept_connection(self.bound, limit)
        with sock:
            line, theirs = handshake.exchange_hello_as_host(sock, self._new_hello(), None, time.monotonic() + limit)
        parts = handshake.finish(line, self.mine, theirs, True, self.bound.descriptors())
        self.channel = Channel(parts)

    def join_as_guest(self, limit=60):
        """Connects. Reconnects until its deadline if it is disconnected before READY."""
        deadline = time.monotonic() + limit
        while True:
            try:
                with self._dial() as sock:
                    line, theirs = handshake.exchange_hello_as_guest(sock, self._new_hello(), None, deadline)
                parts = handshake.finish(line, self.mine, theirs, False, 1 if self.address.startswith("@") else 2)
                break
            except Disconnected:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        self.inherited = check_inheritance(self.address, parts.passed)
        self.channel = Channel(parts)

    def _dial(self):
        sock = handshake.connect(self.address)
        if sock is None:
            raise Disconnected("no process listens")
        return sock

    def _new_hello(self):
        self.mine = wire.Hello(capacity=self.hello.capacity, longest=self.hello.longest, features=self.hello.features,
                               meeting=wire.MEMBER)
        return self.mine

    def leave(self, limit=60):
        """As a host: ends its sending, announces that it leaves, and waits for the guest. Removes the files unless the guest has taken over, which it returns."""
        channel = self.channel
        channel.own.store(PHASE, 12)
        channel.doorbell.sock.shutdown(socket.SHUT_WR)
        channel.doorbell.wait_for_end(limit)
        taken = channel.peer.load(PHASE) in SUCCEEDS
        channel.release()
        if taken:
            self.bound.close()
        else:
            self.bound.release()
        return taken

    def succeed(self, limit=60):
        """As the guest of a host that has left or ended: takes the address over, and then closes."""
        channel = self.channel
        channel.doorbell.wait_for_end(limit)
        if channel.peer_phase() not in (0, 1, *LEFT):
            raise Violation(f"its host has not left: phase {channel.peer_phase()}")
        self.bound = self.inherited
        if not self.bound.is_current():
            raise Violation("its files are gone")
        # From now on the kernel names this process.
        self.bound.sock.listen(64)
        self._close_pending()
        channel.own.store(PHASE, 13 if channel.phase == 1 else 5)
        channel.doorbell.sock.shutdown(socket.SHUT_RDWR)
        channel.release()

    def _close_pending(self):
        """Closes pending connections, to which the kernel has named the former host. The clients reconnect."""
        self.bound.sock.setblocking(False)
        try:
            for _ in range(64):
                self.bound.sock.accept()[0].close()
        except BlockingIOError:
            pass

    def release(self):
        """Leaves without a partner."""
        self.bound.release()


def check_inheritance(address, fds):
    """Checks the listening socket and the lock that a host has passed."""
    sock = socket.socket(fileno=fds[0])
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise Violation("no listening socket")
    bound = sock.getsockname()
    if address.startswith("@"):
        if bound != b"\0" + address[1:].encode():
            raise Violation(f"bound at {bound!r}")
        return handshake.BoundAddress.inherit(address, sock, None)
    if bound != address and os.stat(bound).st_ino != os.stat(address).st_ino:
        raise Violation(f"bound at {bound!r}")
    held, beside = os.fstat(fds[1]), os.stat(address + ".lock", follow_symlinks=False)
    if not stat.S_ISREG(held.st_mode) or (held.st_dev, held.st_ino) != (beside.st_dev, beside.st_ino):
        raise Violation("another lock")
    fcntl.flock(fds[1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    return handshake.BoundAddress.inherit(address, sock, fds[1])
