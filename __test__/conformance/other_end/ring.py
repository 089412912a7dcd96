"""Records, publishing and reading, sleeping and waking, the end: the page's sections of these names, for one of a pair."""

import os
import select
import socket
import struct
import time

from . import memory
from .memory import HEAD, HEAD_FENCED, PHASE, READER_PARKED, RING, TAIL, TAIL_FENCED, WRITER_PARKED
from .wire import Lost, Violation

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


class Producer:
    """Writes records at a private tail."""

    def __init__(self, region, capacity, longest):
        self.region, self.capacity, self.longest = region, capacity, longest
        self.tail = 0
        self.head = 0
        # Of each message with attachments behind the head that was seen: its end, and the number and the bytes of them.
        self.unread = []

    def look(self, head):
        if head % 8 or (head - self.head) & _ALL > (self.tail - self.head) & _ALL:
            raise Violation(f"head {head} after {self.head}, tail {self.tail}")
        self.head = head

    def put(self, flags, payload):
        """Writes one record where there is room; says whether there was."""
        place = self.tail % self.capacity
        rest = self.capacity - place
        size, gap = record_size(self.tail, len(payload), flags)
        padding = 0
        if size > rest + 64:
            padding, place = rest, 0
            size, gap = record_size(self.tail + padding, len(payload), flags)
        if self.tail + padding + size - self.head > self.capacity:
            return False
        words = self.region
        if padding:
            words.store(RING + self.capacity - rest, PADDING << 32 | rest - 8)
        at = RING + place
        words.store(at, flags << 32 | len(payload))
        self.region.bytes[at + 8 + gap:at + 8 + gap + len(payload)] = payload
        self.tail += padding + size
        return True

    def cuts(self, message):
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


class Consumer:
    """Reads records, and believes nothing."""

    def __init__(self, region, capacity, longest):
        self.region, self.capacity, self.longest = region, capacity, longest
        self.head = 0
        self.tail = 0
        self.missing = None
        self.parts = []
        # Whether the message that was begun last is a call frame, and its attachments.
        self.call = False
        self.attached = []
        # Gets the attachments of a record that announces this number.
        self.collect = None

    def look(self, tail):
        if tail % 8 or (tail - self.head) & _ALL > self.capacity or (tail - self.head) & _ALL < self.tail - self.head:
            raise Violation(f"tail {tail} after {self.tail}, head {self.head}")
        self.tail = self.head + ((tail - self.head) & _ALL)

    def take(self):
        """The next message that is whole, or None where there is none in what was looked at."""
        while self.head != self.tail:
            found = self._record()
            if found is not None:
                return found
        return None

    def _record(self):
        place = self.head % self.capacity
        rest = self.capacity - place
        header = self.region.load(RING + place)
        length, flags = header & 0xFFFFFFFF, header >> 32
        if flags == PADDING:
            if place == 0 or length != rest - 8 or rest > self.tail - self.head:
                raise Violation(f"padding of {length} at {place}")
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
        at = RING + place + 8 + gap
        payload = bytes(self.region.bytes[at:at + length])
        message = self._follow(kind, payload)
        if kind & FIRST:
            self.attached = self.collect(count) if count else []
        self.head += size
        return message

    def _follow(self, kind, payload):
        """What may follow what came before."""
        if kind == WHOLE:
            if self.missing is not None or len(payload) > min(self.capacity // 2, self.longest):
                raise Violation(f"a whole message of {len(payload)}")
            return payload
        if kind == FIRST:
            if self.missing is not None or len(payload) <= 8:
                raise Violation("a beginning where there is none")
            (whole,) = struct.unpack_from("<Q", payload)
            if not len(payload) - 8 < whole <= self.longest:
                raise Violation(f"a beginning of a message of {whole}")
            self.parts, self.missing = [payload[8:]], whole - len(payload) + 8
            return None
        if self.missing is None:
            raise Violation("a part without a beginning")
        if kind == LAST:
            if len(payload) != self.missing:
                raise Violation(f"an end of {len(payload)}, and {self.missing} are missing")
            message, self.parts, self.missing = b"".join([*self.parts, payload]), [], None
            return message
        if not 1 <= len(payload) < self.missing:
            raise Violation(f"a part of {len(payload)}, and {self.missing} are missing")
        self.parts.append(payload)
        self.missing -= len(payload)
        return None


class Bell:
    """The line after READY: a bell, and the end of the peer."""

    def __init__(self, sock, pid, parcels=None):
        self.sock = sock
        # Set if this end accepts attachments.
        self.parcels = parcels
        self.pidfd = os.pidfd_open(pid)
        self.rung_for = {}
        self.over = False

    def ring_if_parked(self, number, which):
        if number % 2 and self.rung_for.get(which) != number:
            self.rung_for[which] = number
            self.ring()

    def ring(self):
        try:
            self.sock.send(b"\1", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            pass  # it holds enough bells, or its end will be read

    def wait(self, limit):
        """Until there is something on the line or the peer's process has ended; reads what is on the line."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        poll.register(self.pidfd, select.POLLIN)
        ready = poll.poll(limit * 1000)
        if any(fd == self.pidfd for fd, _ in ready):
            self.over = True
        self.hear()
        return bool(ready)

    def hear(self):
        try:
            while not self.over:
                self.over = not (self.parcels.read(self.sock) if self.parcels else self.sock.recv(4096, socket.MSG_DONTWAIT))
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self.over = True

    def wait_for_end(self, limit):
        """Until the peer has hung up."""
        deadline = time.monotonic() + limit
        while not self.over:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the peer has not hung up")
            self.wait(left)

    def close(self):
        self.sock.close()
        os.close(self.pidfd)
        if self.parcels:
            self.parcels.close()


class Channel:
    """Both directions of one of a pair."""

    LIMIT = 60

    def __init__(self, met, parcels=None):
        self.met = met
        self.own, self.peer = met.own, met.peer
        self.bell = Bell(met.line.sock, met.line.sender[0], parcels)
        self.sends = Producer(met.own, met.own.capacity, met.theirs.longest)
        self.reads = Consumer(met.peer, met.peer.capacity, met.mine.longest)
        if parcels:
            self.reads.collect = self._collect
        self.parks = {READER_PARKED: 0, WRITER_PARKED: 0}
        # If both sides use barriers, the sleeper executes the one for the side that publishes. Every fence here is such a
        # barrier.
        self.light = bool(met.mine.features & met.theirs.features & 1)
        self.phase = 0

    # The state of the other side.

    def peer_phase(self):
        phase = self.peer.load(PHASE)
        if phase not in PHASES:
            raise Violation(f"phase {phase}")
        return phase

    def has_gone(self):
        self.bell.hear()
        return self.bell.over or self.peer_phase() in CLOSED

    def _is_closed(self):
        """As `has_gone`, without a look at the line: a bell that is read between the steps 1 and 4 would be missed."""
        return self.bell.over or self.peer_phase() in CLOSED

    def _ring(self, which):
        if not self.light:
            memory.fence()
        self.bell.ring_if_parked(self.peer.load(which), which)

    def _sleep(self, which, is_news, limit=LIMIT):
        """The five steps; says whether the line said anything."""
        self.parks[which] += 1
        self.own.store(which, self.parks[which])
        # It also covers the peer, whatever *tail fenced* or *head fenced* say.
        memory.fence()
        heard = True
        if not is_news():
            heard = self.bell.wait(limit)
        self.parks[which] += 1
        self.own.store(which, self.parks[which])
        self.bell.hear()
        if not heard:
            raise TimeoutError("no bell has come")

    # Sending.

    def send(self, message):
        for flags, payload in self.sends.cuts(message):
            self.put(flags, payload)

    def put(self, flags, payload):
        """One record, as soon as there is room."""
        self.wait_for_room(lambda: self.sends.put(flags, payload))
        memory.fence()
        self.own.store(TAIL, self.sends.tail)
        self._ring(READER_PARKED)

    def wait_for_room(self, has_room):
        """Until there is room, which only a new head of the peer can make."""
        while not has_room():
            head = self.peer.load(HEAD)
            self.sends.look(head)
            if has_room():
                break
            if self.has_gone():
                raise Lost("the peer has gone")
            self._sleep(WRITER_PARKED, lambda: self.peer.load(HEAD) != head or self._is_closed())

    def end(self):
        """Half-close."""
        if self.phase == 0:
            self.phase = 1
            self.own.store(PHASE, 1)
            self._ring(READER_PARKED)

    # Reading.

    def receive(self):
        """The next message; None once the peer has ended and all was read."""
        while True:
            message = self.take()
            if message is not None:
                return message
            if self.is_over():
                return None
            self._sleep(READER_PARKED, self._has_news)

    def take(self):
        self.reads.look(self.peer.load(TAIL))
        message = self.reads.take()
        memory.fence()
        if self.peer_phase() == 3:
            raise Exposed
        self.own.store(HEAD, self.reads.head)
        self._ring(WRITER_PARKED)
        return message

    def _collect(self, count):
        # Its sender has put the parcel on the line before it published the record.
        self.bell.hear()
        return self.bell.parcels.take(count)

    def _has_news(self):
        return self.peer.load(TAIL) != self.reads.tail or self.peer_phase() != 0 or self.bell.over

    def is_over(self):
        self.bell.hear()
        if self.peer_phase() == 0 and not self.bell.over:
            return False
        # Messages that were published before the phase are visible after it.
        return self.peer.load(TAIL) == self.reads.head

    def said_end(self):
        """Whether the peer had sent all that it wanted to."""
        return self.peer_phase() in (1, 10, 12, 13)

    # The end.

    def close(self, clean=False):
        """Closes. If it is clean, or this end has half-closed, the peer learns that everything was sent."""
        self.phase = 10 if clean or self.phase == 1 else 2
        self.own.store(PHASE, self.phase)
        try:
            self.bell.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.release()

    def expose(self):
        """Another process has opened this side's object: says so, and then wipes it."""
        self.own.store(PHASE, 3)
        memory.fence()
        self.own.wipe()
        try:
            self.bell.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.release()

    def release(self):
        self.bell.close()
        self.own.release()
        self.peer.release()
        self.met.release()
