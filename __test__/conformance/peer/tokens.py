"""Tokens: see this section of protocol.md. A mailbox of this thread, and what goes to the peer's."""

import ctypes
import errno
import os
import signal
import struct
import threading

from .memory import TOKENS
from .wire import Violation

_libc = ctypes.CDLL(None, use_errno=True)
_SYS = {"x86_64": {"sigtimedwait": 128, "tgkill": 234, "tgsigqueueinfo": 297},
        "aarch64": {"sigtimedwait": 137, "tgkill": 131, "tgsigqueueinfo": 240}}[os.uname().machine]
_SI_QUEUE = -1
_SIGINFO = 128


def _call(name, *words):
    result = _libc.syscall(_SYS[name], *words)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


class Mailbox:
    """
    The tokens of one channel. The signal stays blocked in this thread, which alone may receive them.
    """

    def __init__(self, number=None):
        self.number = number or signal.SIGRTMAX - 3
        self.thread = threading.get_native_id()
        self.mailbox = int.from_bytes(os.urandom(4), "little")
        self.secret = os.urandom(16)
        self.strays = 0
        signal.pthread_sigmask(signal.SIG_BLOCK, [self.number])

    def receive(self, limit):
        """Returns the next token, or None if none arrives within the limit."""
        wanted = ctypes.create_string_buffer(struct.pack("<Q", 1 << self.number - 1))
        found = ctypes.create_string_buffer(_SIGINFO)
        seconds = ctypes.create_string_buffer(struct.pack("=qq", int(limit), int(limit % 1 * 1e9)))
        while True:
            try:
                _call("sigtimedwait", wanted, found, seconds, 8)
            except OSError as error:
                if error.errno == errno.EINTR:
                    continue
                if error.errno == errno.EAGAIN:
                    return None
                raise
            _, mailbox, _ = struct.unpack_from("<iIi", found)
            if (mailbox, found.raw[32:48]) == (self.mailbox, self.secret):
                return struct.unpack_from("<Q", found, 24)[0]
            self.strays += 1


class TokenSender:
    """Sends tokens to the peer of a channel."""

    def __init__(self, channel):
        offer = channel.parts.offer
        if not 32 <= offer.number <= 64:
            raise Violation(f"tokens by signal {offer.number}")
        self.offer, self.own = offer, channel.own
        self.process = channel.parts.line.peer[0]
        self.sent = 0

    def send(self, token, announce=True):
        self._queue(token, self.offer.mailbox, self.offer.secret)
        self.sent += 1
        if announce:
            self.own.store(TOKENS, self.sent)

    def forge(self, token, mailbox=None, secret=None):
        """Sends a signal that is not a valid token."""
        self._queue(token, self.offer.mailbox if mailbox is None else mailbox, secret or bytes(16))

    def _queue(self, token, mailbox, secret):
        # The thread must be one of that process.
        _call("tgkill", self.process, self.offer.thread, 0)
        info = struct.pack("<iIiiIIQ", self.offer.number, mailbox, _SI_QUEUE, 0, os.getpid(), os.geteuid(), token) + secret
        info = ctypes.create_string_buffer(info.ljust(_SIGINFO, b"\0"))
        _call("tgsigqueueinfo", self.process, self.offer.thread, self.offer.number, info)
