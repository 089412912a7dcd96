"""One to many: the page's section of this name."""

import os
import socket
import time

from . import attachments, memory, meet, wire
from .memory import FLOOR, MARKS, PHASE, READER_PARKED, RING, TAIL, WRITER_PARKED
from .ring import ALIGNED, ATTACHED, PADDING, PHASES, WHOLE, Bell, Exposed, record_size
from .wire import Hello, Lost, Offer, Violation

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
    """A subscriber, of any delivery and beginning."""

    LIMIT = 60

    def __init__(self, address, delivery=RELIABLE, start=NOW, longest=1 << 20, tongue=None, limit=30, features=0,
                 max_attachments=0, max_attached_bytes=0):
        hello = Hello(capacity=0, longest=longest, features=features, meeting=wire.BROADCAST, delivery=delivery, start=start,
                      max_attachments=max_attachments, max_attached_bytes=max_attached_bytes)
        self.delivery, self.start = delivery, start
        sock = meet.dial(address)
        if sock is None:
            raise Lost("no process listens")
        deadline = time.monotonic() + limit
        with sock:
            line, theirs = meet.begin_as_guest(sock, hello, tongue, deadline)
        try:
            self._shake(line, hello, theirs)
        except BaseException:
            line.close()
            raise
        parcels = attachments.Parcels(hello, numbered=True) if max_attachments else None
        self.bell = Bell(line.sock, line.sender[0], parcels)
        # Of the last record: how many it announces, and those of the last message that was taken.
        self.announced, self.attached = 0, []
        self.parked = 0
        self._begin()

    def _shake(self, line, mine, theirs):
        self.own, raw = memory.make(0)
        try:
            line.tongue.before("offer", line)
            line.say(wire.OFFER, Offer(theirs.nonce, self.own.size, 0).pack(), [raw])
        finally:
            os.close(raw)
        body, fds = line.hear(wire.OFFER, 2)
        try:
            offer = meet.check_offer(Offer.unpack(body), mine, theirs)
            owner = line.sender[1]
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
        self.began_at = self.ring.load(TAIL)
        # Used by meet.ready.
        self.mine, self.theirs = mine, theirs
        meet.ready(self, False)

    def _begin(self):
        """Walks from the mark that OFFER has told to where this subscription begins."""
        if self.start == OLDEST:
            return
        goal = self.began_at
        last = None
        if self.start == FROM_LATEST:
            goal = self.ring.load(TAIL)
        while self.head < goal:
            here = self.head, self.sequence
            try:
                message = self._record(goal)
            except _Overtaken:
                if self.delivery == RELIABLE:
                    raise Violation("overtaken in a place that was held") from None
                # Messages before the start do not count as lost.
                self._go_to_mark()
                self.lost = 0
                continue
            if message is not None:
                last = here
        if self.start == FROM_LATEST and last is not None:
            self.head, self.sequence = last
        self._say_head()

    def _say_head(self):
        self.own.store(head_word(self.slot), self.head)
        if self.delivery == RELIABLE:
            memory.fence()
            self.bell.ring_if_parked(self.ring.load(WRITER_PARKED), WRITER_PARKED)

    def _is_overtaken(self):
        """Whether the copied bytes may have been overwritten."""
        memory.fence()
        return self.ring.load(FLOOR) > self.head

    def _record(self, tail):
        """One record before `tail`: its payload, or None for padding. Overtaken raises `_Overtaken`, and decides nothing."""
        place = self.head % self.capacity
        rest = self.capacity - place
        header = self.ring.load(RING + place)
        length, flags = header & 0xFFFFFFFF, header >> 32
        size, gap = (rest, 0) if flags == PADDING else record_size(self.head, length, flags)
        at = RING + place + 8 + gap
        payload = bytes(self.ring.bytes[at:at + min(length, self.capacity)])
        if self._is_overtaken():
            raise _Overtaken
        if size > tail - self.head:
            raise Violation(f"a record of {size}, {tail - self.head} published")
        if flags == PADDING:
            if place == 0 or length != rest - 8:
                raise Violation(f"padding of {length} at {place}")
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
        self.bell.hear()
        parcels = self.bell.parcels
        self.attached = parcels.take(self.announced, self.sequence) if parcels and self.announced else []

    def _look(self):
        """The tail, once it is believed; and where reading ends, or None."""
        phase = self.control.load(PHASE)
        if phase not in PHASES:
            raise Violation(f"phase {phase}")
        if phase == 3:
            raise Exposed
        end = self.control.load(TAIL)
        over = phase != 0 or self.bell.over
        tail = self.ring.load(TAIL)
        memory.fence()
        floor = self.ring.load(FLOOR)
        if tail % 8 or tail < self.tail or tail - floor > self.capacity and tail > floor or tail > _MOST:
            raise Violation(f"tail {tail} after {self.tail}, floor {floor}")
        self.tail = tail
        if over and end & 1:
            return min(tail, end & ~1), True
        return tail, over

    def take(self):
        """The next message, or None: nothing is there. Second: whether nothing more will come."""
        self.bell.hear()
        tail, over = self._look()
        try:
            if self.delivery == LATEST:
                return self._newest(tail), over
            while self.head < tail:
                message = self._record(tail)
                if message is not None:
                    self._collect()
                    self._say_head()
                    return message, False
            self._say_head()
            return None, over
        except _Overtaken:
            if self.control.load(PHASE) == 6:
                raise Evicted from None
            if self.delivery == RELIABLE:
                raise Violation("overtaken, and not evicted") from None
            self._go_to_mark()
            return self.take()

    def _newest(self, tail):
        found, before = None, self.sequence
        try:
            while self.head < tail:
                message = self._record(tail)
                found = found if message is None else message
        except _Overtaken:
            # The skipped messages cannot be returned later.
            self.lost += self.sequence - before
            raise
        if found is not None:
            self.lost += self.sequence - before - 1
            self._collect()
        self._say_head()
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
            message, over = self.take()
            if message is not None:
                return message
            if over:
                return None
            word = parked_word(self.slot)
            self.parked += 1
            self.own.store(word, self.parked)
            memory.fence()
            heard = True
            if self.ring.load(TAIL) == self.tail and self.control.load(PHASE) == 0:
                heard = self.bell.wait(self.LIMIT)
            self.parked += 1
            self.own.store(word, self.parked)
            self.bell.hear()
            if not heard:
                raise TimeoutError("no bell has come")

    def close(self):
        # Its sending has ended before it closes.
        self.own.store(PHASE, 1)
        self.own.store(PHASE, 10)
        try:
            self.bell.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.bell.close()
        for region in (self.own, self.control, self.ring):
            region.release()


class _Overtaken(Exception):
    """The publisher has moved the floor past what was being read."""


class Reader:
    """What a publisher has of one subscriber."""

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
            line.tongue.before("offer", line)
            line.say(wire.OFFER, offer.pack(), [raw, publisher.raw])
        finally:
            os.close(raw)
        body, (fd,) = line.hear(wire.OFFER, 1)
        try:
            offer = meet.check_offer(Offer.unpack(body), mine, theirs)
            self.peer = memory.accept(fd, 0, offer.size, line.sender[1])
        finally:
            os.close(fd)
        # The memory in which hostile subclasses write.
        self.own, self.ring = self.control, publisher.ring
        meet.ready(self, True)
        self.bell = Bell(line.sock, line.sender[0])
        memory.fence()
        self.bell.ring()

    def look(self, tail):
        """Its head, once it is believed."""
        head = self.peer.load(head_word(self.slot))
        if head % 8 or not self.head <= head <= tail:
            raise Violation(f"head {head} after {self.head}, tail {tail}")
        self.head = head
        return head

    def accepts(self, words):
        return all(self.theirs.features & kind for kind in attachments.kinds(words))

    def fits(self, words, tail):
        """Whether it holds so few unread attachments that it accepts these, too."""
        return attachments.fits(self.unread, attachments.load_of(words), self.theirs, self.look(tail))

    def post(self, attached, number):
        """Puts a parcel on its line, or withdraws one; says whether there was room. There is for a withdrawal."""
        parcel = attachments.pack([word for word, _ in attached], number)
        try:
            attachments.post(self.bell.sock, parcel, [fd for _, fd in attached])
        except BlockingIOError:
            if self.delivery == RELIABLE or not attached:
                raise
            return False
        return True

    def wake(self):
        self.bell.ring_if_parked(self.peer.load(parked_word(self.slot)), READER_PARKED)

    def finish(self, phase, end):
        """Says where its reading ends, and why."""
        self.control.store(TAIL, end | 1)
        self.control.store(PHASE, phase)
        self.bell.ring()

    def release(self):
        self.bell.close()
        self.control.release()
        self.peer.release()


class Publisher:
    """A publisher that is asked to let subscribers in, one after the other."""

    def __init__(self, address, capacity=65536, longest=4096, tongue=None):
        self.capacity, self.longest, self.tongue = capacity, longest, tongue
        self.place = meet.Place(address) if address else None
        self.ring, self.raw = memory.make(capacity)
        self.tail = self.floor = self.sequence = self.parked = 0
        self.marks = []
        self.readers = {}
        self.slots = 0

    def start(self, begin):
        """The mark at which a newcomer begins."""
        held = [mark for mark in self.marks if mark[0] >= self.floor]
        if not held:
            return self.tail, self.sequence
        return held[0] if begin == OLDEST else held[-1]

    def accept(self, limit=30):
        """Lets the next subscriber in."""
        self.place.sock.settimeout(limit)
        sock, _ = self.place.sock.accept()
        sock.setblocking(True)
        with sock:
            return self.let_in(sock, time.monotonic() + limit)

    def let_in(self, sock, deadline):
        """The handshake with one that has connected."""
        hello = Hello(capacity=self.capacity, longest=self.longest, meeting=wire.BROADCAST)
        line, theirs = meet.begin_as_host(sock, hello, self.tongue, deadline)
        try:
            if theirs.longest < self.longest or theirs.delivery not in (1, 2, 3) or theirs.start not in (1, 2, 3):
                raise Violation("a subscriber that asks for what there is not")
            reader = Reader(self, line, hello, theirs, self.slots)
        except BaseException:
            line.close()
            raise
        self.slots += 1
        self.readers[reader.slot] = reader
        return reader

    def pass_on(self, attached, stall=60.0):
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
        passed = self.pass_on(attached, stall)
        self.put(WHOLE | len(attached) << ATTACHED, message, stall)
        for reader in passed:
            reader.unpublished = False
            reader.unread.append((self.tail, attachments.load_of([word for word, _ in attached])))

    def put(self, flags, message, stall=60.0):
        """One record, as soon as there is room."""
        size, gap = record_size(self.tail, len(message), 0)
        rest = self.capacity - self.tail % self.capacity
        padding = rest if size > rest + 64 else 0
        self._make_room(self.tail + padding + size - self.capacity, stall)
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

    def _make_room(self, floor, stall):
        """Moves the floor to the first mark that is not before this position, once no reliable reader is in the way."""
        if floor <= self.floor:
            return
        self._wait(lambda reader: reader.look(self.tail) < floor, stall)
        goal = next(mark[0] for mark in self.marks if mark[0] >= floor)
        heads = [reader.look(self.tail) for reader in self.readers.values() if reader.delivery == RELIABLE]
        # It lies at the beginning of a record, and not after a head: a mark, or a head itself.
        self.floor = max(floor if floor == goal else 0, min([goal, *heads]))
        self.ring.store(FLOOR, self.floor)
        memory.fence()

    def _wait(self, is_in_the_way, stall):
        """Until no reliable reader is in the way. Those that stay there for so long are evicted."""
        deadline = time.monotonic() + stall
        while slow := [reader for reader in self.readers.values() if reader.delivery == RELIABLE and is_in_the_way(reader)]:
            if time.monotonic() >= deadline:
                for reader in slow:
                    self.evict(reader)
                continue
            self.parked += 1
            self.ring.store(WRITER_PARKED, self.parked)
            memory.fence()
            if all(is_in_the_way(reader) for reader in slow):
                slow[0].bell.wait(min(1.0, max(0.0, deadline - time.monotonic())))
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
                reader.bell.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            reader.release()
        self.readers = {}
        if self.place is not None:
            self.place.release()
        os.close(self.raw)
        self.ring.release()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


