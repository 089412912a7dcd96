"""
A generator of lies. Each is told once to a real end, which goes on: it must say a code, or how the channel ended, in time. What a page
cannot mean in two ways must be found (`wants`). At the end each real end must serve an honest peer, and hold no more than it did.
"""

import fcntl
import os
import random
import socket
import struct
import tempfile
import time

from ends import LIMIT, End, Failure
from other_end import many, meet, memory, wire
from other_end.memory import FLOOR, HEAD, HEAD_FENCED, MARKS, PHASE, READER_PARKED, RING, TAIL, TAIL_FENCED, TOKENS
from other_end.memory import WRITER_PARKED
from other_end.ring import CALL, FIRST, LAST, PADDING, WHOLE, Channel, Exposed
from other_end.wire import HELLO, OFFER, READY, Hello, Honest, Lost, Refused, Violation

CAPACITY = 8192
LONGEST = 20_000
#: More than the ring holds: the publisher must look at the heads.
PUBLISHED = [10, 100, 500, 1000] * 8
CODES = {
    "INVALID_ARGUMENT", "ADDRESS_INVALID", "ADDRESS_OCCUPIED", "PEER_REFUSED", "PEER_LOST", "HANDSHAKE_TIMEOUT", "PROTOCOL",
    "OBJECT_EXPOSED", "OBJECT_UNSOUND", "RING_CORRUPT", "MESSAGE_TOO_LARGE", "EVICTED", "NO_SPACE", "UNSUPPORTED",
}
ENDS = {"closed", "lost", "exited", "corrupt", "exposed", "evicted"}
# Found in the handshake, which must not lead to a channel.
FOUND = {"PROTOCOL", "PEER_LOST", "OBJECT_UNSOUND", "PEER_REFUSED", "OBJECT_EXPOSED"}
HONEST = "came again, and was served"
CORRUPT = {"RING_CORRUPT", "corrupt"}
HEAD_FIELDS = [("magic", 0, 8), ("version", 8, 2), ("kind", 10, 2), ("length", 12, 4)]
FIELDS = {
    HELLO: [("nonce", 0, 32), ("echo", 32, 32), ("capacity", 64, 8), ("longest", 72, 8), ("backing", 80, 4),
            ("features", 84, 4), ("meeting", 88, 4), ("delivery", 92, 2), ("from", 94, 2), ("max attachments", 96, 4), ("reserved", 100, 4),
            ("max attached bytes", 104, 8)],
    OFFER: [("echo", 0, 32), ("size", 32, 8), ("capacity", 40, 8), ("number", 48, 4), ("thread", 52, 4), ("mailbox", 56, 4),
            ("reserved", 60, 4), ("secret", 64, 16), ("position", 80, 8), ("sequence", 88, 8), ("slot", 96, 4),
            ("reserved too", 100, 4)],
    READY: [("echo", 0, 32)],
}
# Fields of which every value but the honest one must be found.
FIXED = {"magic", "version", "kind", "length", "backing", "meeting", "size"}


class HungUp(Exception):
    """The liar has said what it had to say."""


class Lie(Honest):
    """What is done at one moment, and what the real end may answer."""

    def __init__(self, name, wants=None):
        self.name, self.wants = name, wants
        self.told = False

    def session(self, end):
        """Once there is a channel: nothing more, as a rule."""


class FrameLie(Lie):
    def __init__(self, name, kind, change, wants=None, leaves=False):
        super().__init__(name, wants)
        self.kind, self.change, self.leaves = kind, change, leaves

    def frame(self, kind, frame, fds):
        if kind != self.kind or self.told:
            return frame, fds
        self.told = True
        return self.change(frame, fds)

    def said(self, kind):
        # The peer must still be waiting after this frame, so hang up.
        if self.told and self.leaves:
            raise HungUp


class Cut(FrameLie):
    """So many bytes of a frame, and the end of the line."""

    def __init__(self, kind, at):
        super().__init__(f"{wire.NAMES[kind]} ends after {at} bytes", kind, None, FOUND)
        self.at = at

    def frame(self, kind, frame, fds):
        if kind != self.kind:
            return frame, fds
        self.told = True
        return frame[:self.at], fds

    def said(self, kind):
        if self.told:
            raise HungUp


def values(size, honest):
    bits = 8 * size
    number = int.from_bytes(honest, "little")
    found = {0, 1, number + 1, number - 1, number ^ 1 << bits - 1, (1 << bits) - 1, (1 << bits - 1) - 1, number * 2, 77}
    found = {value % (1 << bits) for value in found} - {number}
    return sorted(found)


def frame_lies(kind):
    """Every field of the head and of the body."""
    for name, at, size in [*HEAD_FIELDS, *((name, at + 16, size) for name, at, size in FIELDS[kind])]:
        for turn in range(9):
            def change(frame, fds, at=at, size=size, turn=turn):
                all_values = values(size, frame[at:at + size])
                value = all_values[turn % len(all_values)].to_bytes(size, "little")
                return frame[:at] + value + frame[at + size:], fds

            wants = FOUND if name in FIXED or name == "echo" and kind != HELLO else None
            yield FrameLie(f"{wire.NAMES[kind]}.{name}, value {turn}", kind, change, wants, leaves=name == "length")
    length = 16 + wire.LENGTHS[kind][0]
    for at in (0, 1, 15, 16, 17, length - 1):
        yield Cut(kind, at)
    yield FrameLie(f"{wire.NAMES[kind]} twice", kind, lambda frame, fds: (frame + frame, fds))
    yield FrameLie(f"{wire.NAMES[kind]} and a byte", kind, lambda frame, fds: (frame + b"x", fds))


def descriptor_lies(kind):
    name = wire.NAMES[kind]
    yield FrameLie(f"{name} without descriptors", kind, lambda frame, fds: (frame, []),
                   FOUND if kind == OFFER else None, leaves=True)
    for count in (1, 2, 8, 200):
        yield FrameLie(f"{name} with {count} more descriptors", kind,
                       lambda frame, fds, count=count: (frame, fds + [0] * count), FOUND, leaves=True)
    for label, make in OBJECTS.items():
        def change(frame, fds, make=make):
            objects = make(len(frame) and struct.unpack_from("<Q", frame, 48)[0] if kind == OFFER else 0)
            return frame, [objects] + fds[1:] if fds else [objects]

        yield FrameLie(f"{name} with {label}", kind, change, FOUND, leaves=kind == HELLO)


def _memfd(size, seals=0, shorter=0, flags=os.MFD_ALLOW_SEALING):
    fd = os.memfd_create("lie", flags | os.MFD_CLOEXEC)
    if size:
        os.posix_fallocate(fd, 0, max(1, size - shorter))
    os.pwrite(fd, struct.pack("<QQ", memory.MAGIC, 0 if size == memory.CONTROL else max(0, size - 8192)), 0)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def _sparse(size):
    fd = os.memfd_create("lie", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    # Else it would be refused for the words that are missing.
    os.pwrite(fd, struct.pack("<QQ", memory.MAGIC, 0 if size == memory.CONTROL else max(0, size - 8192)), 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, memory.SEALS)
    return fd


def listening(at=b""):
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(at)
    sock.listen()
    return sock.detach()


def _file(size):
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        return os.dup(file.fileno())


OBJECTS = {
    "a memfd without seals": lambda size: _memfd(size),
    **{f"a memfd without seal {seal:#x}": lambda size, seal=seal: _memfd(size, memory.SEALS & ~seal) for seal in (1, 2, 4, 16)},
    "a memfd that cannot be sealed": lambda size: _memfd(size, flags=0),
    "a memfd that is a page short": lambda size: _memfd(size, memory.SEALS, 4096),
    "a memfd without memory": _sparse,
    "an empty memfd": lambda size: _memfd(0, memory.SEALS),
    "a memfd of zeros": lambda size: _zeros(size),
    "a file": _file,
    "a directory": lambda size: os.open("/", os.O_RDONLY),
    "a path alone": lambda size: os.open("/proc/self/exe", os.O_PATH),
    "/dev/zero": lambda size: os.open("/dev/zero", os.O_RDWR),
    "a pipe": lambda size: os.pipe()[0],
    "a listening socket": lambda size: listening(),
    "a datagram socket": lambda size: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].detach(),
    "a socket of another family": lambda size: socket.socket(socket.AF_INET).detach(),
    "a socket that is not connected": lambda size: socket.socket(socket.AF_UNIX).detach(),
}


def _zeros(size):
    fd = os.memfd_create("lie", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.posix_fallocate(fd, 0, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, memory.SEALS)
    return fd


def refusals(kind):
    """REFUSE in place of this frame, sound and not."""
    sound = wire.pack_refuse(2, "uid", "1", "2")
    for name, body in {
        "REFUSE": sound,
        "REFUSE, a code that there is none of": wire.pack_refuse(999, "a", "b", "c"),
        "REFUSE with a text too long": sound[:2] + b"\xff\xff" + sound[4:],
        "REFUSE with bytes behind": sound + b"x",
        "REFUSE of control characters": wire.pack_refuse(1, "\x1b[2J\x07", "\0\n\r", "\u202e"),
        "REFUSE that is no UTF-8": sound[:2] + b"\x02\0\xff\xfe" + bytes(4),
        "REFUSE of 4096 bytes": sound[:2] + struct.pack("<H", 4090) + b"a" * 4090 + bytes(2),
    }.items():
        yield FrameLie(f"{name}, for {wire.NAMES[kind]}", kind,
                       lambda frame, fds, body=body: (wire.pack_frame(wire.REFUSE, body), []), FOUND | {"ADDRESS_OCCUPIED",
                                                                                                     "NO_SPACE"}, leaves=True)


class WordLie(Lie):
    """Words of the liar's own region, at one moment: 'ready', or 'open', which comes after READY, with a bell."""

    def __init__(self, name, moment, words, wants=None):
        super().__init__(name, wants)
        self.moment, self.words = moment, words

    def before(self, moment, end):
        if moment == self.moment:
            self.tell(end)

    def tell(self, end):
        self.told = True
        for at, value in self.words:
            region = end.own
            if isinstance(at, tuple):
                region, at = getattr(end, at[0]), at[1]
            if at + 8 <= region.size:
                region.store(at, value)


EDGES = [0, 1, 4, 7, 8, CAPACITY - 8, CAPACITY, CAPACITY + 8, 1 << 31, 1 << 32, 1 << 62, 1 << 63, (1 << 64) - 8, (1 << 64) - 1]
WORDS = {"magic": 0, "capacity": 8, "tail": TAIL, "head": HEAD, "reader parked": READER_PARKED, "writer parked": WRITER_PARKED,
         "phase": PHASE, "tokens": TOKENS, "tail fenced": TAIL_FENCED, "head fenced": HEAD_FENCED, "floor": FLOOR,
         "mark": MARKS, "mark's number": MARKS + 8}


def pair_words():
    """Every word of a pair's region."""
    for name, at in WORDS.items():
        for value in EDGES:
            for moment in ("ready", "open"):
                wants = None
                if moment == "open" and name == "tail" and (value % 8 or value > CAPACITY):
                    wants = CORRUPT
                yield WordLie(f"{name} is {value:#x} at '{moment}'", moment, [(at, value)], wants)
    for phase in [*range(16), 77]:
        # The end of the line may be found first. Then the phase is no evidence of an end.
        wants = CORRUPT | {"exited", "lost", "PEER_LOST"} if phase in (7, 8, 9, 11, 14, 15, 77) else None
        yield WordLie(f"phase is {phase}", "open", [(PHASE, phase)], wants)


def records(place=0):
    """Headers at the ring's beginning, with a tail that publishes more than they may take."""
    for flags in [*range(20), 1 << 31]:
        for length in (0, 1, 8, 9, 64, CAPACITY // 2, CAPACITY // 2 + 1, CAPACITY - 8, CAPACITY, 1 << 31, (1 << 32) - 1):
            words = [(RING + place, flags << 32 | length), (RING + place + 8, 20), (TAIL, 256)]
            too_long = 8 + length > 256
            wants = CORRUPT if too_long or flags == PADDING or flags & ~31 or flags & CALL and not flags & FIRST else None
            yield WordLie(f"a record of {length}, flags {flags:#x}", "open", words, wants)
    for size in (0, 1, 8, 9, LONGEST, LONGEST + 1, 1 << 40, (1 << 64) - 1):
        words = [(RING, FIRST << 32 | 16), (RING + 8, size), (RING + 24, LAST << 32 | 8), (TAIL, 40)]
        yield WordLie(f"fragments of {size}", "open", words, None if size == 16 else CORRUPT)


def tails():
    """A ring full of sound records, and a tail that cannot be: nothing but the tail says so."""
    ring = [(RING + at, WHOLE << 32 | 56) for at in range(0, CAPACITY, 64)]
    for tail in (1, 68, CAPACITY + 8, CAPACITY + 64, 2 * CAPACITY, 1 << 40, (1 << 64) - 64):
        yield WordLie(f"sound records, and a tail at {tail:#x}", "open", [*ring, (TAIL, tail)], CORRUPT)


class LineLie(Lie):
    """What is done to the line once there is a channel."""

    def __init__(self, name, deed):
        super().__init__(name)
        self.deed = deed

    def before(self, moment, end):
        if moment == "open":
            self.told = True
            self.deed(end.line.sock)


class Watched(Lie):
    """On a socket that both hold, an option is set that has the kernel install a descriptor with each message."""

    def __init__(self):
        super().__init__("SO_PASSPIDFD on the end that was passed", FOUND)
        self.passed = None

    def frame(self, kind, frame, fds):
        if kind == HELLO and fds:
            self.passed = socket.socket(fileno=os.dup(fds[0].fileno()))
        return frame, fds

    def before(self, moment, end):
        # The host has already set its own options.
        if moment == "offer" and self.passed is not None:
            with self.passed:
                self.told = _set(self.passed, 76)
            self.passed = None


class Accomplice(Lie):
    """Another process says a frame, on the same line."""

    def __init__(self, kind):
        super().__init__(f"another process says {wire.NAMES[kind]}", FOUND)
        self.kind, self.line = kind, None

    def before(self, moment, end):
        self.line = getattr(end, "line", end)

    def frame(self, kind, frame, fds):
        if kind != self.kind:
            return frame, fds
        self.told = True
        child = os.fork()
        if child == 0:
            try:
                socket.send_fds(self.line.sock, [frame], [fd if isinstance(fd, int) else fd.fileno() for fd in fds])
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        return None


def line_lies():
    def flood(sock):
        try:
            for _ in range(10_000):
                sock.send(b"x" * 4096, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            pass

    def descriptors(sock):
        for _ in range(20):
            socket.send_fds(sock, [b"x"], [0] * 100)

    yield LineLie("a flood on the line", flood)
    yield LineLie("descriptors on the line", descriptors)
    yield LineLie("a frame on the line", lambda sock: sock.send(wire.pack_frame(READY, bytes(32))))
    yield LineLie("half of the line is closed", lambda sock: sock.shutdown(socket.SHUT_WR))
    yield LineLie("the other half of the line is closed", lambda sock: sock.shutdown(socket.SHUT_RD))
    for option in (76, 34, 16):
        yield LineLie(f"option {option} of the line", lambda sock, option=option: _set(sock, option))


def _set(sock, option):
    """Whether this kernel has that option."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, option, 1)
        return True
    except OSError:
        return False


class Draw(WordLie):
    """A region that was written by chance, where chance knows the page."""

    def __init__(self, number, seed):
        draw = random.Random(f"{seed}, {number}")
        count = draw.randrange(1, 6)
        words, at = [], 0
        for _ in range(count):
            length = draw.choice([0, 1, 8, 40, 64, 1000, 4096, draw.randrange(1 << 14)])
            flags = draw.choice([0, 1, 2, 3, 3, 3, 4, 8, 9, 10, 11, 12])
            words += [(RING + at, flags << 32 | length), (RING + at + 8, draw.choice([length, 100, 1 << 20]))]
            at = (at + 8 + (length + 7) // 8 * 8) % (CAPACITY - 16)
        words.append((TAIL, draw.choice([at, at, at + 8, draw.randrange(0, CAPACITY, 8)])))
        for _ in range(draw.randrange(3)):
            words.append((draw.choice(list(WORDS.values())), draw.choice(EDGES)))
        super().__init__(f"draw {number} of seed {seed}", draw.choice(["ready", "open"]), words)


def subscriber_words():
    """A subscriber's two words, in every slot's place."""
    for name, base in {"head": 4096, "reader parked": 8192}.items():
        for value in EDGES:
            for moment in ("ready", "open"):
                words = [(base + 64 * slot, value) for slot in range(64)]
                wants = CORRUPT | ENDS if name == "head" and moment == "open" and value % 8 else None
                yield WordLie(f"a subscriber's {name} is {value:#x} at '{moment}'", moment, words, wants)
    for name, at in WORDS.items():
        for value in EDGES[::3]:
            yield WordLie(f"a subscriber's {name} is {value:#x}", "open", [(at, value)])


def publisher_words():
    """The words of a publisher: of its ring object, and of a control object."""
    for region in ("ring", "control"):
        for name, at in WORDS.items():
            for value in EDGES:
                yield WordLie(f"a publisher's {name} ({region}) is {value:#x}", "open", [((region, at), value)])
    for flags in (0, 1, 2, 4, 8, 11, 16):
        for length in (0, 8, 1024, 1025, CAPACITY, (1 << 32) - 1):
            words = [(("ring", RING), flags << 32 | length), (("ring", TAIL), 2048)]
            yield WordLie(f"a publisher's record of {length}, flags {flags:#x}", "open", words)
    for count in range(4):
        words = [(("ring", FLOOR), 4096), (("ring", TAIL), 8192)]
        words += [(("ring", MARKS + 16 * n), 4096 + n) for n in range(count)]
        yield WordLie(f"a floor beyond the head, {count} marks that are none", "open", words)


def handshake_lies(role):
    for kind in (HELLO, OFFER, READY):
        yield from frame_lies(kind)
        yield from refusals(kind)
    if role in ("guest", "subscriber"):
        yield from descriptor_lies(HELLO)
        yield Watched()
    for kind in (OFFER, READY):
        yield Accomplice(kind)
    yield from descriptor_lies(OFFER)
    yield FrameLie("READY with a descriptor", READY, lambda frame, fds: (frame, [0]), FOUND)


# Exceptions of a hostile peer.

IGNORED = (HungUp, Lost, Refused, Violation, Exposed, many.Evicted, TimeoutError, OSError)


def hello(meeting=wire.SERVICE):
    return Hello(capacity=CAPACITY, longest=LONGEST, features=wire.BARRIERS, meeting=meeting)


def hang_up(end):
    """Rings, so that the peer looks, and goes without a word: what was written stays what it is."""
    try:
        end.line.sock.send(b"\1", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except OSError:
        pass
    _leave(end)


def _leave(end):
    try:
        end.line.sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    end.line.close()


def lie_to_service(end, where, lie):
    try:
        met = meet.guest(where, hello(), lie)
    except IGNORED:
        return
    hang_up(met)


def lie_to_publisher(end, where, lie):
    try:
        subscription = many.Subscription(where, longest=1024, features=wire.BARRIERS, tongue=lie)
    except IGNORED:
        return
    _leave(subscription)
    os.close(subscription.bell.pidfd)


def answers(end):
    """What an end says of one lie, to the last line of it."""
    line = end.hear()
    return end.hear() if line == "in" else line


def check(end, lie, line):
    if line == HONEST:
        return
    known = line in CODES or line in ENDS or line == "open" or line.split(", ")[-1] in ENDS
    if not known:
        raise Failure(f"{end.name}, {lie.name}: {line!r} is no outcome")
    if lie.told and lie.wants and line not in lie.wants:
        raise Failure(f"{end.name}, {lie.name}: {line!r}, and not one of {sorted(lie.wants)}")


def lie_as_guest(language, role, lies):
    """A real service, or a publisher, and a liar that comes to it."""
    deed, sizes, tell = {
        "guest": ("serve", [], lie_to_service), "subscriber": ("broadcast", PUBLISHED, lie_to_publisher),
    }[role]
    outcomes = {}
    with tempfile.TemporaryDirectory(prefix="ringfence-") as folder:
        where = os.path.join(folder, "s")
        with End(language, deed, where, CAPACITY, LONGEST if role == "guest" else 1024, sizes) as end:
            end.expect("bound")
            honest_guest(end, where, role)
            most = end.holds()
            for lie in lies:
                tell(end, where, lie)
                line = answers(end)
                check(end, lie, line)
                outcomes[line] = outcomes.get(line, 0) + 1
            honest_guest(end, where, role)
            end.settles(most)
    return outcomes


def honest_guest(end, where, role):
    if role == "guest":
        channel = Channel(meet.guest(where, hello()))
        channel.send(b"honest")
        if channel.receive() != b"honest":
            raise Failure(f"{end.name} serves an honest agent no more")
        channel.end()
        channel.receive()
        channel.close()
    else:
        subscription = many.Subscription(where, longest=1024, features=wire.BARRIERS)
        found = []
        while (message := subscription.receive()) is not None:
            found.append(len(message))
        if found != PUBLISHED:
            raise Failure(f"{end.name} publishes {found} to an honest subscriber")
        subscription.close()
    line = answers(end)
    if line != "closed":
        raise Failure(f"{end.name} says {line!r} of an honest peer")


def lie_as_host(language, role, lies):
    """A real agent, or a subscriber, that comes to a liar."""
    outcomes = {}
    with tempfile.TemporaryDirectory(prefix="ringfence-") as folder:
        where = os.path.join(folder, "s")
        deed = "visit" if role == "host" else "follow"
        with End(language, deed, where, CAPACITY, LONGEST if role == "host" else 1024) as end:
            end.expect("bound")
            host = Host(where, role)
            host.honest(end)
            most = end.holds()
            for lie in lies:
                line = host.lie(end, lie)
                check(end, lie, line)
                outcomes[line] = outcomes.get(line, 0) + 1
            host.honest(end)
            end.settles(most)
            host.close()
    return outcomes


class Host:
    """A place at which one lies to whatever comes."""

    def __init__(self, where, role):
        self.role, self.where = role, where
        self.place = meet.Place(where)
        self.source = None

    def close(self):
        self.place.release()

    def lie(self, end, lie):
        end.say(random.Random(lie.name).choice(["reliable", "best-effort", "latest"]))
        self.place.sock.settimeout(LIMIT)
        times = 0
        while end.comes(self.place.sock):
            sock, _ = self.place.sock.accept()
            times += 1
            with sock:
                sock.setblocking(True)
                if times > 3:
                    self._serve(sock)
                else:
                    lie.told = False
                    self._meet(sock, lie)
        line = end.hear()
        # A peer whose connection was closed before HELLO reconnects, up to its deadline.
        return HONEST if times > 3 and line.endswith(", closed") else line

    def _meet(self, sock, lie):
        deadline = time.monotonic() + LIMIT
        try:
            if self.role == "host":
                met = meet.host_on(sock, hello(), lie, deadline)
            else:
                with self._publisher(lie) as source:
                    met = source.let_in(sock, deadline)
                    source.readers = {}
        except IGNORED:
            return
        hang_up(met)

    def _publisher(self, lie):
        source = many.Publisher(None, CAPACITY, 1024, lie)
        for number in range(5):
            source.send(b"x" * 100 * number)
        return source

    def honest(self, end):
        end.say("reliable")
        self.place.sock.settimeout(LIMIT)
        sock, _ = self.place.sock.accept()
        with sock:
            sock.setblocking(True)
            self._serve(sock)
        line = end.hear()
        if line not in ("answered, closed", "5 read, 0 lost, 0 attached, closed"):
            raise Failure(f"{end.name} says {line!r} of an honest peer")

    def _serve(self, sock):
        deadline = time.monotonic() + LIMIT
        if self.role == "publisher":
            with self._publisher(None) as source:
                reader = source.let_in(sock, deadline)
                source.end()
                reader.bell.wait_for_end(LIMIT)
            return
        channel = Channel(meet.host_on(sock, hello(), None, deadline))
        channel.send(channel.receive())
        channel.receive()
        channel.end()
        channel.close()
