"""Records, publishing and reading, sleeping and waking, the end: see these sections of protocol.md, for one of a pair."""

import os
import select
import socket
import struct
import time

from . import memory
from .memory import HEAD, PHASE, READER_PARKED, RING, TAIL, WRITER_PARKED
from .wire import Disconnected, Violation

FIRST, LAST, PADDING, ALIGNED, CALL = 1, 2, 4, 8, 16
# The lowest bit of the number of attachments in the flags.
ATTACHED = 8
WHOLE = FIRST | LAST
CLOSED = (2, 5, 10, 13)
PHASES = (*range(7), 10, 12, 13)
_ALL = (1 << 64) - 1


class Exposed(Exception):
    """The peer's memory was opened by another process, and wiped."""


def up(number, unit=8):
    return -(-number // unit) * unit


def record_size(position, length, flags):
    gap = -(position + 8) % 64 if flags & ALIGNED else 0
    return 8 + gap + up(length), gap


class RingWriter:
    """Writes records at a private tail."""

    def __init__(self, region, capacity, longest):
        self.region, self.capacity, self.longest = region, capacity, longest
        self.tail = 0
        self.head = 0
        # Of each message with attachments behind the head that was seen: its end, and the number and the bytes of them.
        self.unread = []

    def check_head(self, head):
        if head % 8 or (head - self.head) & _ALL > (self.tail - self.head) & _ALL:
            raise Violation(f"head {head} after {self.head}, tail {self.tail}")
        self.head = head

    def put(self, flags, payload):
        """Writes one record if there is space. Returns whether there was."""
        offset = self.tail % self.capacity
        rest = self.capacity - offset
        size, gap = record_size(self.tail, len(payload), flags)
        padding = 0
        if size > rest + 64:
            padding, offset = rest, 0
            size, gap = record_size(self.tail + padding, len(payload), flags)
        if self.tail + padding + size - self.head > self.capacity:
            return False
        words = self.region
        if padding:
            words.store(RING + self.capacity - rest, PADDING << 32 | rest - 8)
        at = RING + offset
        words.store(at, flags << 32 | len(payload))
        self.region.bytes[at + 8 + gap:at + 8 + gap + len(payload)] = payload
        self.tail += padding + size
        return True

    def fragments(self, message):
        """The records of a message."""
        if len(message) > self.longest:
            raise ValueError(f"{len(message)} bytes, and the peer takes {self.longest}")
        if len(message) <= self.capacity // 2:
            return [(WHOLE, message)]
        size, step = len(message), self.capacity // 8
        parts = [message[at:at + step] for at in range(0, size, step)]
        flags = [FIRST] + [0] * (len(parts) - 2) + [LAST]
        parts[0] = struct.pack("<Q", size) + parts[0]
        return list(zip(flags, parts))


class RingReader:
    """Reads and validates records."""

    def __init__(self, region, capacity, longest):
        self.region, self.capacity, self.longest = region, capacity, longest
        self.head = 0
        self.tail = 0
        self.remaining = None
        self.parts = []
        # Whether the message that was begun last is a call frame, and its attachments.
        self.call = False
        self.attached = []
        # Gets the attachments of a record that announces this number.
        self.collect = None

    def check_tail(self, tail):
        if tail % 8 or (tail - self.head) & _ALL > self.capacity or (tail - self.head) & _ALL < self.tail - self.head:
            raise Violation(f"tail {tail} after {self.tail}, head {self.head}")
        self.tail = self.head + ((tail - self.head) & _ALL)

    def next_message(self):
        """Returns the next complete message before the checked tail, or None."""
        while self.head != self.tail:
            found = self._read_record()
            if found is not None:
                return found
        return None

    def _read_record(self):
        offset = self.head % self.capacity
        rest = self.capacity - offset
        header = self.region.load(RING + offset)
        length, flags = header & 0xFFFFFFFF, header >> 32
        if flags == PADDING:
            if offset == 0 or length != rest - 8 or rest > self.tail - self.head:
                raise Violation(f"padding of {length} at {offset}")
            self.head += rest
            return None
        kind, count = flags & ~(ALIGNED | CALL | 255 << ATTACHED), flags >> ATTACHED & 255
        if kind not in (0, FIRST, LAST, WHOLE) or (flags & CALL or count) and not kind & FIRST or count and not self.collect:
            raise Violation(f"flags {flags}")
        if kind & FIRST:
            self.call = bool(flags & CALL)
        size, gap = record_size(self.head, length, flags)
        if size > self.tail - self.head or size > rest + 64:
            raise Violation(f"a record of {size}, {self.tail - self.head} published, {rest} to the end")
        at = RING + offset + 8 + gap
        payload = bytes(self.region.bytes[at:at + length])
        message = self._append_fragment(kind, payload)
        if kind & FIRST:
            self.attached = self.collect(count) if count else []
        self.head += size
        return message

    def _append_fragment(self, kind, payload):
        """Appends a fragment if it may follow the previous ones. Returns the message when it is complete."""
        if kind == WHOLE:
            if self.remaining is not None or len(payload) > min(self.capacity // 2, self.longest):
                raise Violation(f"a whole message of {len(payload)}")
            return payload
        if kind == FIRST:
            if self.remaining is not None or len(payload) <= 8:
                raise Violation("an unexpected first fragment")
            (whole,) = struct.unpack_from("<Q", payload)
            if not len(payload) - 8 < whole <= self.longest:
                raise Violation(f"a first fragment of a message of {whole}")
            self.parts, self.remaining = [payload[8:]], whole - len(payload) + 8
            return None
        if self.remaining is None:
            raise Violation("a fragment without a first one")
        if kind == LAST:
            if len(payload) != self.remaining:
                raise Violation(f"an end of {len(payload)}, and {self.remaining} are missing")
            message, self.parts, self.remaining = b"".join([*self.parts, payload]), [], None
            return message
        if not 1 <= len(payload) < self.remaining:
            raise Violation(f"a part of {len(payload)}, and {self.remaining} are missing")
        self.parts.append(payload)
        self.remaining -= len(payload)
        return None


class Doorbell:
    """The line after READY: wakeups, and the end of the peer."""

    def __init__(self, sock, pid, parcels=None):
        self.sock = sock
        # Set if this end accepts attachments.
        self.parcels = parcels
        self.pidfd = os.pidfd_open(pid)
        self.woken_numbers = {}
        self.closed = False

    def wake_if_parked(self, number, which):
        if number % 2 and self.woken_numbers.get(which) != number:
            self.woken_numbers[which] = number
            self.wake()

    def wake(self):
        try:
            self.sock.send(b"\1", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            pass  # the buffer has unread wakeups, or the end will be read

    def wait(self, limit):
        """Waits until the line is readable or the peer has exited, and drains the line."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        poll.register(self.pidfd, select.POLLIN)
        ready = poll.poll(limit * 1000)
        if any(fd == self.pidfd for fd, _ in ready):
            self.closed = True
        self.drain()
        return bool(ready)

    def drain(self):
        try:
            while not self.closed:
                self.closed = not (self.parcels.read(self.sock) if self.parcels else self.sock.recv(4096, socket.MSG_DONTWAIT))
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self.closed = True

    def wait_for_end(self, limit):
        """Waits until the peer has closed the line."""
        deadline = time.monotonic() + limit
        while not self.closed:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the peer has not closed the line")
            self.wait(left)

    def close(self):
        self.sock.close()
        os.close(self.pidfd)
        if self.parcels:
            self.parcels.close()


class Channel:
    """Both directions of one of a pair."""

    LIMIT = 60

    def __init__(self, parts, parcels=None):
        self.parts = parts
        self.own, self.peer = parts.own, parts.peer
        self.doorbell = Doorbell(parts.line.sock, parts.line.peer[0], parcels)
        self.writer = RingWriter(parts.own, parts.own.capacity, parts.theirs.longest)
        self.reader = RingReader(parts.peer, parts.peer.capacity, parts.mine.longest)
        if parcels:
            self.reader.collect = self._collect
        self.park_numbers = {READER_PARKED: 0, WRITER_PARKED: 0}
        # If both sides use barriers, the sleeper executes the one for the side that publishes. Every fence here is such a
        # barrier.
        self.uses_barriers = bool(parts.mine.features & parts.theirs.features & 1)
        self.phase = 0

    # The state of the other side.

    def peer_phase(self):
        phase = self.peer.load(PHASE)
        if phase not in PHASES:
            raise Violation(f"phase {phase}")
        return phase

    def is_peer_gone(self):
        self.doorbell.drain()
        return self.doorbell.closed or self.peer_phase() in CLOSED

    def _is_closed(self):
        """As `is_peer_gone`, without draining the line: a wakeup that is read between steps 1 and 4 would be lost."""
        return self.doorbell.closed or self.peer_phase() in CLOSED

    def _wake(self, which):
        if not self.uses_barriers:
            memory.fence()
        self.doorbell.wake_if_parked(self.peer.load(which), which)

    def _sleep(self, which, is_news, limit=LIMIT):
        """The five steps of protocol.md. Raises TimeoutError without a wakeup."""
        self.park_numbers[which] += 1
        self.own.store(which, self.park_numbers[which])
        # It also covers the peer, whatever *tail fenced* or *head fenced* contain.
        memory.fence()
        woken = True
        if not is_news():
            woken = self.doorbell.wait(limit)
        self.park_numbers[which] += 1
        self.own.store(which, self.park_numbers[which])
        self.doorbell.drain()
        if not woken:
            raise TimeoutError("no wakeup has arrived")

    # Sending.

    def send(self, message):
        for flags, payload in self.writer.fragments(message):
            self.put(flags, payload)

    def put(self, flags, payload):
        """Writes one record as soon as there is space."""
        self.wait_for_space(lambda: self.writer.put(flags, payload))
        memory.fence()
        self.own.store(TAIL, self.writer.tail)
        self._wake(READER_PARKED)

    def wait_for_space(self, has_space):
        """Waits for space, which only a new head of the peer can free."""
        while not has_space():
            head = self.peer.load(HEAD)
            self.writer.check_head(head)
            if has_space():
                break
            if self.is_peer_gone():
                raise Disconnected("the peer has gone")
            self._sleep(WRITER_PARKED, lambda: self.peer.load(HEAD) != head or self._is_closed())

    def end(self):
        """Half-closes the channel."""
        if self.phase == 0:
            self.phase = 1
            self.own.store(PHASE, 1)
            self._wake(READER_PARKED)

    # Reading.

    def receive(self):
        """The next message; None after the peer has ended and everything was read."""
        while True:
            message = self.try_receive()
            if message is not None:
                return message
            if self.is_over():
                return None
            self._sleep(READER_PARKED, self._has_news)

    def try_receive(self):
        self.reader.check_tail(self.peer.load(TAIL))
        message = self.reader.next_message()
        memory.fence()
        if self.peer_phase() == 3:
            raise Exposed
        self.own.store(HEAD, self.reader.head)
        self._wake(WRITER_PARKED)
        return message

    def _collect(self, count):
        # Its sender has put the parcel on the line before it published the record.
        self.doorbell.drain()
        return self.doorbell.parcels.pop(count)

    def _has_news(self):
        return self.peer.load(TAIL) != self.reader.tail or self.peer_phase() != 0 or self.doorbell.closed

    def is_over(self):
        self.doorbell.drain()
        if self.peer_phase() == 0 and not self.doorbell.closed:
            return False
        # Messages that were published before the phase are visible after it.
        return self.peer.load(TAIL) == self.reader.head

    def peer_ended(self):
        """Whether the peer had sent everything."""
        return self.peer_phase() in (1, 10, 12, 13)

    # The end.

    def close(self, clean=False):
        """Closes. If it is clean, or this end has half-closed, the peer learns that everything was sent."""
        self.phase = 10 if clean or self.phase == 1 else 2
        self.own.store(PHASE, self.phase)
        try:
            self.doorbell.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.release()

    def expose(self):
        """Announces that another process has opened this side's object, and wipes it."""
        self.own.store(PHASE, 3)
        memory.fence()
        self.own.wipe()
        try:
            self.doorbell.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.release()

    def release(self):
        self.doorbell.close()
        self.own.release()
        self.peer.release()
        self.parts.release()
