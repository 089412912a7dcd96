"""One to many: see this section of protocol.md."""

import os
import socket
import time

from . import attachments, memory, handshake, wire
from .memory import FLOOR, MARKS, PHASE, READER_PARKED, RING, TAIL, WRITER_PARKED
from .ring import ALIGNED, ATTACHED, PADDING, PHASES, WHOLE, Doorbell, Exposed, record_size
from .wire import Hello, Disconnected, Offer, Violation

RELIABLE, BEST_EFFORT, LATEST = 1, 2, 3
NOW, OLDEST, FROM_LATEST = 1, 2, 3
_MOST = 1 << 62


class Evicted(Exception):
    """The publisher has disconnected this subscriber."""


def head_word(slot):
    return 4096 + 64 * (slot % 64)


def parked_word(slot):
    return 8192 + 64 * (slot % 64)


class Subscription:
    """A subscriber, with any delivery and start."""

    LIMIT = 60

    def __init__(self, address, delivery=RELIABLE, start=NOW, longest=1 << 20, hooks=None, limit=30, features=0,
                 max_attachments=0, max_attached_bytes=0):
        hello = Hello(capacity=0, longest=longest, features=features, meeting=wire.BROADCAST, delivery=delivery, start=start,
                      max_attachments=max_attachments, max_attached_bytes=max_attached_bytes)
        self.delivery, self.start = delivery, start
        sock = handshake.connect(address)
        if sock is None:
            raise Disconnected("no process listens")
        deadline = time.monotonic() + limit
        with sock:
            line, theirs = handshake.exchange_hello_as_guest(sock, hello, hooks, deadline)
        try:
            self._handshake(line, hello, theirs)
        except BaseException:
            line.close()
            raise
        parcels = attachments.Parcels(hello, numbered=True) if max_attachments else None
        self.doorbell = Doorbell(line.sock, line.peer[0], parcels)
        # Of the last record: how many it announces, and those of the last message that was taken.
        self.announced, self.attached = 0, []
        self.parked = 0
        self._skip_to_start()

    def _handshake(self, line, mine, theirs):
        self.own, raw = memory.make(0)
        try:
            line.hooks.reached("offer", line)
            line.send(wire.OFFER, Offer(theirs.nonce, self.own.size, 0).pack(), [raw])
        finally:
            os.close(raw)
        body, fds = line.receive(wire.OFFER, 2)
        try:
            offer = handshake.check_offer(Offer.unpack(body), mine, theirs)
            owner = line.peer[1]
            self.control = memory.accept(fds[0], 0, memory.CONTROL, owner)
            self.ring = memory.accept(fds[1], theirs.capacity, offer.size, owner)
        finally:
            for fd in fds:
                os.close(fd)
        self.capacity = theirs.capacity
        self.slot, self.head, self.sequence = offer.slot, offer.position, offer.sequence
        self.line = line
        self.lost = 0
        self.tail = self.head
        self.own.store(head_word(self.slot), self.head)
        self.tail_at_start = self.ring.load(TAIL)
        # Used by handshake.ready.
        self.mine, self.theirs = mine, theirs
        handshake.ready(self, False)

    def _skip_to_start(self):
        """Reads from the mark in OFFER to the start of this subscription."""
        if self.start == OLDEST:
            return
        goal = self.tail_at_start
        last = None
        if self.start == FROM_LATEST:
            goal = self.ring.load(TAIL)
        while self.head < goal:
            here = self.head, self.sequence
            try:
                message = self._read_record(goal)
            except _Overtaken:
                if self.delivery == RELIABLE:
                    raise Violation("overtaken at a reserved position") from None
                # Messages before the start do not count as lost.
                self._go_to_mark()
                self.lost = 0
                continue
            if message is not None:
                last = here
        if self.start == FROM_LATEST and last is not None:
            self.head, self.sequence = last
        self._store_head()

    def _store_head(self):
        self.own.store(head_word(self.slot), self.head)
        if self.delivery == RELIABLE:
            memory.fence()
            self.doorbell.wake_if_parked(self.ring.load(WRITER_PARKED), WRITER_PARKED)

    def _is_overtaken(self):
        """Whether the copied bytes may have been overwritten."""
        memory.fence()
        return self.ring.load(FLOOR) > self.head

    def _read_record(self, tail):
        """One record before `tail`: its payload, or None for padding. Overtaken raises `_Overtaken`, and decides nothing."""
        offset = self.head % self.capacity
        rest = self.capacity - offset
        header = self.ring.load(RING + offset)
        length, flags = header & 0xFFFFFFFF, header >> 32
        size, gap = (rest, 0) if flags == PADDING else record_size(self.head, length, flags)
        at = RING + offset + 8 + gap
        payload = bytes(self.ring.bytes[at:at + min(length, self.capacity)])
        if self._is_overtaken():
            raise _Overtaken
        if size > tail - self.head:
            raise Violation(f"a record of {size}, {tail - self.head} published")
        if flags == PADDING:
            if offset == 0 or length != rest - 8:
                raise Violation(f"padding of {length} at {offset}")
            self.head += size
            return None
        if flags & ~(ALIGNED | 255 << ATTACHED) != WHOLE or length > self.capacity // 8 or size > rest + 64:
            raise Violation(f"a record of {length}, flags {flags}")
        self.head += size
        self.sequence += 1
        self.announced = flags >> ATTACHED
        return payload

    def _collect(self):
        """The attachments of the last record. Before its head is shown: the publisher then counts them as read."""
        self.doorbell.drain()
        parcels = self.doorbell.parcels
        self.attached = parcels.pop(self.announced, self.sequence) if parcels and self.announced else []

    def _check_tail(self):
        """Returns the checked tail, and whether reading ends there."""
        phase = self.control.load(PHASE)
        if phase not in PHASES:
            raise Violation(f"phase {phase}")
        if phase == 3:
            raise Exposed
        end = self.control.load(TAIL)
        over = phase != 0 or self.doorbell.closed
        tail = self.ring.load(TAIL)
        memory.fence()
        floor = self.ring.load(FLOOR)
        if tail % 8 or tail < self.tail or tail - floor > self.capacity and tail > floor or tail > _MOST:
            raise Violation(f"tail {tail} after {self.tail}, floor {floor}")
        self.tail = tail
        if over and end & 1:
            return min(tail, end & ~1), True
        return tail, over

    def try_receive(self):
        """Returns the next message or None, and whether no more will follow."""
        self.doorbell.drain()
        tail, over = self._check_tail()
        try:
            if self.delivery == LATEST:
                return self._read_latest(tail), over
            while self.head < tail:
                message = self._read_record(tail)
                if message is not None:
                    self._collect()
                    self._store_head()
                    return message, False
            self._store_head()
            return None, over
        except _Overtaken:
            if self.control.load(PHASE) == 6:
                raise Evicted from None
            if self.delivery == RELIABLE:
                raise Violation("overtaken, and not evicted") from None
            self._go_to_mark()
            return self.try_receive()

    def _read_latest(self, tail):
        found, before = None, self.sequence
        try:
            while self.head < tail:
                message = self._read_record(tail)
                found = found if message is None else message
        except _Overtaken:
            # The skipped messages cannot be returned later.
            self.lost += self.sequence - before
            raise
        if found is not None:
            self.lost += self.sequence - before - 1
            self._collect()
        self._store_head()
        return found

    def _go_to_mark(self):
        while True:
            floor = self.ring.load(FLOOR)
            tail = self.ring.load(TAIL)
            marks = [(self.ring.load(MARKS + 16 * n), self.ring.load(MARKS + 16 * n + 8)) for n in range(16)]
            memory.fence()
            again = self.ring.load(FLOOR)
            there = [mark for mark in marks if again <= mark[0] <= tail]
            if there:
                break
            if again == floor:
                raise Violation("no mark")
        # The earliest: as little as can be is lost.
        position, number = min(there)
        if number < self.sequence or number - self.sequence > (position - self.head) // 8:
            raise Violation(f"mark {position} of message {number}")
        self.lost += number - self.sequence
        self.head, self.sequence = position, number
        self.tail = max(self.tail, position)

    def receive(self):
        """The next message, or None at the end."""
        while True:
            message, over = self.try_receive()
            if message is not None:
                return message
            if over:
                return None
            word = parked_word(self.slot)
            self.parked += 1
            self.own.store(word, self.parked)
            memory.fence()
            woken = True
            if self.ring.load(TAIL) == self.tail and self.control.load(PHASE) == 0:
                woken = self.doorbell.wait(self.LIMIT)
            self.parked += 1
            self.own.store(word, self.parked)
            self.doorbell.drain()
            if not woken:
                raise TimeoutError("no wakeup has arrived")

    def close(self):
        # Its sending has ended before it closes.
        self.own.store(PHASE, 1)
        self.own.store(PHASE, 10)
        try:
            self.doorbell.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.doorbell.close()
        for region in (self.own, self.control, self.ring):
            region.release()


class _Overtaken(Exception):
    """The publisher has moved the floor past what was being read."""


class Subscriber:
    """A publisher's state of one subscriber."""

    def __init__(self, publisher, line, mine, theirs, slot):
        self.line, self.mine, self.theirs, self.slot = line, mine, theirs, slot
        self.delivery = theirs.delivery
        position, sequence = publisher.start(theirs.start)
        self.head = position
        # Of each message with attachments behind its head: its end, and the number and the bytes of them.
        self.unread = []
        # Its line has the parcel of a message that is not published.
        self.unpublished = False
        self.control, raw = memory.make(0)
        try:
            offer = Offer(theirs.nonce, publisher.ring.size, publisher.capacity, position=position, sequence=sequence,
                          slot=slot)
            line.hooks.reached("offer", line)
            line.send(wire.OFFER, offer.pack(), [raw, publisher.raw])
        finally:
            os.close(raw)
        body, (fd,) = line.receive(wire.OFFER, 1)
        try:
            offer = handshake.check_offer(Offer.unpack(body), mine, theirs)
            self.peer = memory.accept(fd, 0, offer.size, line.peer[1])
        finally:
            os.close(fd)
        # The memory in which hostile subclasses write.
        self.own, self.ring = self.control, publisher.ring
        handshake.ready(self, True)
        self.doorbell = Doorbell(line.sock, line.peer[0])
        memory.fence()
        self.doorbell.wake()

    def check_head(self, tail):
        """Returns the checked head."""
        head = self.peer.load(head_word(self.slot))
        if head % 8 or not self.head <= head <= tail:
            raise Violation(f"head {head} after {self.head}, tail {tail}")
        self.head = head
        return head

    def accepts(self, words):
        return all(self.theirs.features & kind for kind in attachments.kinds(words))

    def fits(self, words, tail):
        """Whether it accepts these beside its unread attachments."""
        return attachments.fits(self.unread, attachments.usage(words), self.theirs, self.check_head(tail))

    def post(self, attached, number):
        """Puts a parcel on its line, or withdraws one. Returns whether there was space. There always is for a withdrawal."""
        parcel = attachments.pack([word for word, _ in attached], number)
        try:
            attachments.send_parcel(self.doorbell.sock, parcel, [fd for _, fd in attached])
        except BlockingIOError:
            if self.delivery == RELIABLE or not attached:
                raise
            return False
        return True

    def wake(self):
        self.doorbell.wake_if_parked(self.peer.load(parked_word(self.slot)), READER_PARKED)

    def finish(self, phase, end):
        """Announces where its reading ends, and why."""
        self.control.store(TAIL, end | 1)
        self.control.store(PHASE, phase)
        self.doorbell.wake()

    def release(self):
        self.doorbell.close()
        self.control.release()
        self.peer.release()


class Publisher:
    """A publisher that accepts one subscriber at a time."""

    def __init__(self, address, capacity=65536, longest=4096, hooks=None):
        self.capacity, self.longest, self.hooks = capacity, longest, hooks
        self.bound = handshake.BoundAddress(address) if address else None
        self.ring, self.raw = memory.make(capacity)
        self.tail = self.floor = self.sequence = self.parked = 0
        self.marks = []
        self.readers = {}
        self.slots = 0

    def start(self, begin):
        """The mark at which a new subscriber starts."""
        held = [mark for mark in self.marks if mark[0] >= self.floor]
        if not held:
            return self.tail, self.sequence
        return held[0] if begin == OLDEST else held[-1]

    def accept(self, limit=30):
        """Accepts the next subscriber."""
        self.bound.sock.settimeout(limit)
        sock, _ = self.bound.sock.accept()
        sock.setblocking(True)
        with sock:
            return self.admit(sock, time.monotonic() + limit)

    def admit(self, sock, deadline):
        """Handshakes with a connected subscriber."""
        hello = Hello(capacity=self.capacity, longest=self.longest, meeting=wire.BROADCAST)
        line, theirs = handshake.exchange_hello_as_host(sock, hello, self.hooks, deadline)
        try:
            if theirs.longest < self.longest or theirs.delivery not in (1, 2, 3) or theirs.start not in (1, 2, 3):
                raise Violation("a subscriber with impossible options")
            reader = Subscriber(self, line, hello, theirs, self.slots)
        except BaseException:
            line.close()
            raise
        self.slots += 1
        self.readers[reader.slot] = reader
        return reader

    def send_parcels(self, attached, stall=60.0):
        """
        Puts attachments of the next message on the lines of those that accept them; returns those readers. Another call before that
        message is published replaces them, or withdraws them.
        """
        words = [word for word, _ in attached]
        self._wait(lambda reader: reader.accepts(words) and not reader.fits(words, self.tail), stall)
        passed = []
        for reader in self.readers.values():
            if attached and reader.accepts(words) and reader.fits(words, self.tail) and reader.post(attached, self.sequence + 1):
                reader.unpublished = True
                passed.append(reader)
            elif reader.unpublished and reader.post([], self.sequence + 1):
                reader.unpublished = False
        return passed

    def send(self, message, attached=(), stall=60.0):
        passed = self.send_parcels(attached, stall)
        self.put(WHOLE | len(attached) << ATTACHED, message, stall)
        for reader in passed:
            reader.unpublished = False
            reader.unread.append((self.tail, attachments.usage([word for word, _ in attached])))

    def put(self, flags, message, stall=60.0):
        """Writes one record as soon as there is space."""
        size, gap = record_size(self.tail, len(message), 0)
        rest = self.capacity - self.tail % self.capacity
        padding = rest if size > rest + 64 else 0
        self._free_space(self.tail + padding + size - self.capacity, stall)
        if padding:
            self.ring.store(RING + self.capacity - rest, PADDING << 32 | rest - 8)
        begin = self.tail + padding
        if not self.marks or begin - self.marks[-1][0] >= self.capacity // 16:
            slot = MARKS + 16 * (len(self.marks) % 16)
            self.ring.store(slot + 8, self.sequence)
            self.ring.store(slot, begin)
            self.marks.append((begin, self.sequence))
        at = RING + begin % self.capacity
        self.ring.store(at, flags << 32 | len(message))
        self.ring.bytes[at + 8:at + 8 + len(message)] = message
        self.tail = begin + size
        self.sequence += 1
        memory.fence()
        self.ring.store(TAIL, self.tail)
        memory.fence()
        for reader in self.readers.values():
            reader.wake()

    def _free_space(self, floor, stall):
        """Moves the floor to the first mark at or after this position, once no reliable subscriber is blocking."""
        if floor <= self.floor:
            return
        self._wait(lambda reader: reader.check_head(self.tail) < floor, stall)
        goal = next(mark[0] for mark in self.marks if mark[0] >= floor)
        heads = [reader.check_head(self.tail) for reader in self.readers.values() if reader.delivery == RELIABLE]
        # It is the start of a record, and not behind a head: a mark, or a head itself.
        self.floor = max(floor if floor == goal else 0, min([goal, *heads]))
        self.ring.store(FLOOR, self.floor)
        memory.fence()

    def _wait(self, is_blocking, stall):
        """Waits until no reliable subscriber is blocking. Evicts those that block for `stall` seconds."""
        deadline = time.monotonic() + stall
        while slow := [reader for reader in self.readers.values() if reader.delivery == RELIABLE and is_blocking(reader)]:
            if time.monotonic() >= deadline:
                for reader in slow:
                    self.evict(reader)
                continue
            self.parked += 1
            self.ring.store(WRITER_PARKED, self.parked)
            memory.fence()
            if all(is_blocking(reader) for reader in slow):
                slow[0].doorbell.wait(min(1.0, max(0.0, deadline - time.monotonic())))
            self.parked += 1
            self.ring.store(WRITER_PARKED, self.parked)

    def evict(self, reader):
        reader.finish(6, self.tail)
        del self.readers[reader.slot]
        reader.release()

    def end(self):
        for reader in self.readers.values():
            reader.finish(1, self.tail)

    def close(self):
        for reader in self.readers.values():
            reader.finish(2, self.tail)
            try:
                reader.doorbell.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            reader.release()
        self.readers = {}
        if self.bound is not None:
            self.bound.release()
        os.close(self.raw)
        self.ring.release()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


