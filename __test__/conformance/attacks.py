"""
Attacks on an implementation, each made once. After each, it must report a code or the end of the channel in time. If protocol.md allows one
outcome only, it must be that one (`expected`). At the end it must serve a well-formed peer, and hold no more resources than before.
"""

import fcntl
import os
import random
import socket
import struct
import tempfile
import time

from endpoints import LIMIT, Endpoint, Failure
from peer import broadcast, handshake, memory, wire
from peer.memory import FLOOR, HEAD, HEAD_FENCED, MARKS, PHASE, READER_PARKED, RING, TAIL, TAIL_FENCED, TOKENS
from peer.memory import WRITER_PARKED
from peer.ring import CALL, FIRST, LAST, PADDING, WHOLE, Channel, Exposed
from peer.wire import HELLO, OFFER, READY, Hello, Hooks, Disconnected, Refused, Violation

CAPACITY = 8192
LONGEST = 20_000
#: More than the ring holds: the publisher must check the heads.
PUBLISHED_SIZES = [10, 100, 500, 1000] * 8
CODES = {
    "INVALID_ARGUMENT", "ADDRESS_INVALID", "ADDRESS_OCCUPIED", "PEER_REFUSED", "PEER_LOST", "HANDSHAKE_TIMEOUT", "PROTOCOL",
    "OBJECT_EXPOSED", "OBJECT_UNSOUND", "RING_CORRUPT", "MESSAGE_TOO_LARGE", "EVICTED", "NO_SPACE", "UNSUPPORTED",
}
ENDS = {"closed", "lost", "exited", "corrupt", "exposed", "evicted"}
# Outcomes without a channel.
HANDSHAKE_ERRORS = {"PROTOCOL", "PEER_LOST", "OBJECT_UNSOUND", "PEER_REFUSED", "OBJECT_EXPOSED"}
RECONNECTED = "reconnected, and was served"
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
# Fields of which every other value must be rejected.
CHECKED_FIELDS = {"magic", "version", "kind", "length", "backing", "meeting", "size"}


class LineClosed(Exception):
    """The attack is over, and the line is to be closed."""


class Attack(Hooks):
    """An action at one stage, and the outcomes that it may have."""

    def __init__(self, name, expected=None):
        self.name, self.expected = name, expected
        self.applied = False


class FrameAttack(Attack):
    def __init__(self, name, kind, change, expected=None, closes=False):
        super().__init__(name, expected)
        self.kind, self.change, self.closes = kind, change, closes

    def frame(self, kind, frame, fds):
        if kind != self.kind or self.applied:
            return frame, fds
        self.applied = True
        return self.change(frame, fds)

    def sent(self, kind):
        # The peer must still be waiting after this frame, so close the line.
        if self.applied and self.closes:
            raise LineClosed


class TruncatedFrame(FrameAttack):
    """A truncated frame, and the end of the line."""

    def __init__(self, kind, at):
        super().__init__(f"{wire.NAMES[kind]} ends after {at} bytes", kind, None, HANDSHAKE_ERRORS)
        self.at = at

    def frame(self, kind, frame, fds):
        if kind != self.kind:
            return frame, fds
        self.applied = True
        return frame[:self.at], fds

    def sent(self, kind):
        if self.applied:
            raise LineClosed


def values(size, honest):
    bits = 8 * size
    number = int.from_bytes(honest, "little")
    found = {0, 1, number + 1, number - 1, number ^ 1 << bits - 1, (1 << bits) - 1, (1 << bits - 1) - 1, number * 2, 77}
    found = {value % (1 << bits) for value in found} - {number}
    return sorted(found)


def frame_attacks(kind):
    """Every field of the head and of the body."""
    for name, at, size in [*HEAD_FIELDS, *((name, at + 16, size) for name, at, size in FIELDS[kind])]:
        for turn in range(9):
            def change(frame, fds, at=at, size=size, turn=turn):
                all_values = values(size, frame[at:at + size])
                value = all_values[turn % len(all_values)].to_bytes(size, "little")
                return frame[:at] + value + frame[at + size:], fds

            expected = HANDSHAKE_ERRORS if name in CHECKED_FIELDS or name == "echo" and kind != HELLO else None
            yield FrameAttack(f"{wire.NAMES[kind]}.{name}, value {turn}", kind, change, expected, closes=name == "length")
    length = 16 + wire.LENGTHS[kind][0]
    for at in (0, 1, 15, 16, 17, length - 1):
        yield TruncatedFrame(kind, at)
    yield FrameAttack(f"{wire.NAMES[kind]} twice", kind, lambda frame, fds: (frame + frame, fds))
    yield FrameAttack(f"{wire.NAMES[kind]} and a byte", kind, lambda frame, fds: (frame + b"x", fds))


def descriptor_attacks(kind):
    name = wire.NAMES[kind]
    yield FrameAttack(f"{name} without descriptors", kind, lambda frame, fds: (frame, []),
                   HANDSHAKE_ERRORS if kind == OFFER else None, closes=True)
    for count in (1, 2, 8, 200):
        yield FrameAttack(f"{name} with {count} more descriptors", kind,
                       lambda frame, fds, count=count: (frame, fds + [0] * count), HANDSHAKE_ERRORS, closes=True)
    for label, make in OBJECTS.items():
        def change(frame, fds, make=make):
            objects = make(len(frame) and struct.unpack_from("<Q", frame, 48)[0] if kind == OFFER else 0)
            return frame, [objects] + fds[1:] if fds else [objects]

        yield FrameAttack(f"{name} with {label}", kind, change, HANDSHAKE_ERRORS, closes=kind == HELLO)


def _memfd(size, seals=0, shorter=0, flags=os.MFD_ALLOW_SEALING):
    fd = os.memfd_create("attack", flags | os.MFD_CLOEXEC)
    if size:
        os.posix_fallocate(fd, 0, max(1, size - shorter))
    os.pwrite(fd, struct.pack("<QQ", memory.MAGIC, 0 if size == memory.CONTROL else max(0, size - 8192)), 0)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def _sparse(size):
    fd = os.memfd_create("attack", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
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
    fd = os.memfd_create("attack", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.posix_fallocate(fd, 0, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, memory.SEALS)
    return fd


def refusals(kind):
    """REFUSE in place of this frame, sound and not."""
    sound = wire.pack_refuse(2, "uid", "1", "2")
    for name, body in {
        "REFUSE": sound,
        "REFUSE with an unknown code": wire.pack_refuse(999, "a", "b", "c"),
        "REFUSE with a text too long": sound[:2] + b"\xff\xff" + sound[4:],
        "REFUSE with bytes behind": sound + b"x",
        "REFUSE of control characters": wire.pack_refuse(1, "\x1b[2J\x07", "\0\n\r", "\u202e"),
        "REFUSE that is no UTF-8": sound[:2] + b"\x02\0\xff\xfe" + bytes(4),
        "REFUSE of 4096 bytes": sound[:2] + struct.pack("<H", 4090) + b"a" * 4090 + bytes(2),
    }.items():
        yield FrameAttack(f"{name}, for {wire.NAMES[kind]}", kind,
                       lambda frame, fds, body=body: (wire.pack_frame(wire.REFUSE, body), []), HANDSHAKE_ERRORS | {"ADDRESS_OCCUPIED",
                                                                                                     "NO_SPACE"}, closes=True)


class WordAttack(Attack):
    """Words of the attacker's own region, at one stage: 'ready', or 'open', which comes after READY, with a doorbell."""

    def __init__(self, name, stage, words, expected=None):
        super().__init__(name, expected)
        self.stage, self.words = stage, words

    def reached(self, stage, state):
        if stage == self.stage:
            self.write(state)

    def write(self, state):
        self.applied = True
        for at, value in self.words:
            region = state.own
            if isinstance(at, tuple):
                region, at = getattr(state, at[0]), at[1]
            if at + 8 <= region.size:
                region.store(at, value)


EDGE_VALUES = [0, 1, 4, 7, 8, CAPACITY - 8, CAPACITY, CAPACITY + 8, 1 << 31, 1 << 32, 1 << 62, 1 << 63, (1 << 64) - 8, (1 << 64) - 1]
WORDS = {"magic": 0, "capacity": 8, "tail": TAIL, "head": HEAD, "reader parked": READER_PARKED, "writer parked": WRITER_PARKED,
         "phase": PHASE, "tokens": TOKENS, "tail fenced": TAIL_FENCED, "head fenced": HEAD_FENCED, "floor": FLOOR,
         "mark": MARKS, "mark's number": MARKS + 8}


def pair_words():
    """Each word of a pair's region."""
    for name, at in WORDS.items():
        for value in EDGE_VALUES:
            for stage in ("ready", "open"):
                expected = None
                if stage == "open" and name == "tail" and (value % 8 or value > CAPACITY):
                    expected = CORRUPT
                yield WordAttack(f"{name} is {value:#x} at '{stage}'", stage, [(at, value)], expected)
    for phase in [*range(16), 77]:
        # The end of the line may be found first. Then the phase is no evidence of an end.
        expected = CORRUPT | {"exited", "lost", "PEER_LOST"} if phase in (7, 8, 9, 11, 14, 15, 77) else None
        yield WordAttack(f"phase is {phase}", "open", [(PHASE, phase)], expected)


def records(offset=0):
    """Headers at the ring's beginning, with a tail that publishes more than they may take."""
    for flags in [*range(20), 1 << 31]:
        for length in (0, 1, 8, 9, 64, CAPACITY // 2, CAPACITY // 2 + 1, CAPACITY - 8, CAPACITY, 1 << 31, (1 << 32) - 1):
            words = [(RING + offset, flags << 32 | length), (RING + offset + 8, 20), (TAIL, 256)]
            too_long = 8 + length > 256
            expected = CORRUPT if too_long or flags == PADDING or flags & ~31 or flags & CALL and not flags & FIRST else None
            yield WordAttack(f"a record of {length}, flags {flags:#x}", "open", words, expected)
    for size in (0, 1, 8, 9, LONGEST, LONGEST + 1, 1 << 40, (1 << 64) - 1):
        words = [(RING, FIRST << 32 | 16), (RING + 8, size), (RING + 24, LAST << 32 | 8), (TAIL, 40)]
        yield WordAttack(f"fragments of {size}", "open", words, None if size == 16 else CORRUPT)


def tails():
    """A ring full of valid records, and an impossible tail."""
    ring = [(RING + at, WHOLE << 32 | 56) for at in range(0, CAPACITY, 64)]
    for tail in (1, 68, CAPACITY + 8, CAPACITY + 64, 2 * CAPACITY, 1 << 40, (1 << 64) - 64):
        yield WordAttack(f"sound records, and a tail at {tail:#x}", "open", [*ring, (TAIL, tail)], CORRUPT)


class LineAttack(Attack):
    """An action on the line of an open channel."""

    def __init__(self, name, action):
        super().__init__(name)
        self.action = action

    def reached(self, stage, state):
        if stage == "open":
            self.applied = True
            self.action(state.line.sock)


class SharedOption(Attack):
    """Sets an option of a shared socket that makes the kernel install a descriptor with each message."""

    def __init__(self):
        super().__init__("SO_PASSPIDFD on the end that was passed", HANDSHAKE_ERRORS)
        self.passed = None

    def frame(self, kind, frame, fds):
        if kind == HELLO and fds:
            self.passed = socket.socket(fileno=os.dup(fds[0].fileno()))
        return frame, fds

    def reached(self, stage, state):
        # The host has already set its own options.
        if stage == "offer" and self.passed is not None:
            with self.passed:
                self.applied = _set(self.passed, 76)
            self.passed = None


class ThirdProcess(Attack):
    """Another process sends a frame on the same line."""

    def __init__(self, kind):
        super().__init__(f"another process sends {wire.NAMES[kind]}", HANDSHAKE_ERRORS)
        self.kind, self.line = kind, None

    def reached(self, stage, state):
        self.line = getattr(state, "line", state)

    def frame(self, kind, frame, fds):
        if kind != self.kind:
            return frame, fds
        self.applied = True
        child = os.fork()
        if child == 0:
            try:
                socket.send_fds(self.line.sock, [frame], [fd if isinstance(fd, int) else fd.fileno() for fd in fds])
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        return None


def line_attacks():
    def flood(sock):
        try:
            for _ in range(10_000):
                sock.send(b"x" * 4096, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            pass

    def descriptors(sock):
        for _ in range(20):
            socket.send_fds(sock, [b"x"], [0] * 100)

    yield LineAttack("a flood on the line", flood)
    yield LineAttack("descriptors on the line", descriptors)
    yield LineAttack("a frame on the line", lambda sock: sock.send(wire.pack_frame(READY, bytes(32))))
    yield LineAttack("half of the line is closed", lambda sock: sock.shutdown(socket.SHUT_WR))
    yield LineAttack("the other half of the line is closed", lambda sock: sock.shutdown(socket.SHUT_RD))
    for option in (76, 34, 16):
        yield LineAttack(f"option {option} of the line", lambda sock, option=option: _set(sock, option))


def _set(sock, option):
    """Whether this kernel has that option."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, option, 1)
        return True
    except OSError:
        return False


class RandomWords(WordAttack):
    """A region with random words, most of them plausible."""

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
            words.append((draw.choice(list(WORDS.values())), draw.choice(EDGE_VALUES)))
        super().__init__(f"draw {number} of seed {seed}", draw.choice(["ready", "open"]), words)


def subscriber_words():
    """A subscriber's two words, in every slot."""
    for name, base in {"head": 4096, "reader parked": 8192}.items():
        for value in EDGE_VALUES:
            for stage in ("ready", "open"):
                words = [(base + 64 * slot, value) for slot in range(64)]
                expected = CORRUPT | ENDS if name == "head" and stage == "open" and value % 8 else None
                yield WordAttack(f"a subscriber's {name} is {value:#x} at '{stage}'", stage, words, expected)
    for name, at in WORDS.items():
        for value in EDGE_VALUES[::3]:
            yield WordAttack(f"a subscriber's {name} is {value:#x}", "open", [(at, value)])


def publisher_words():
    """The words of a publisher: of its ring object, and of a control object."""
    for region in ("ring", "control"):
        for name, at in WORDS.items():
            for value in EDGE_VALUES:
                yield WordAttack(f"a publisher's {name} ({region}) is {value:#x}", "open", [((region, at), value)])
    for flags in (0, 1, 2, 4, 8, 11, 16):
        for length in (0, 8, 1024, 1025, CAPACITY, (1 << 32) - 1):
            words = [(("ring", RING), flags << 32 | length), (("ring", TAIL), 2048)]
            yield WordAttack(f"a publisher's record of {length}, flags {flags:#x}", "open", words)
    for count in range(4):
        words = [(("ring", FLOOR), 4096), (("ring", TAIL), 8192)]
        words += [(("ring", MARKS + 16 * n), 4096 + n) for n in range(count)]
        yield WordAttack(f"a floor beyond the head, {count} invalid marks", "open", words)


def handshake_attacks(role):
    for kind in (HELLO, OFFER, READY):
        yield from frame_attacks(kind)
        yield from refusals(kind)
    if role in ("guest", "subscriber"):
        yield from descriptor_attacks(HELLO)
        yield SharedOption()
    for kind in (OFFER, READY):
        yield ThirdProcess(kind)
    yield from descriptor_attacks(OFFER)
    yield FrameAttack("READY with a descriptor", READY, lambda frame, fds: (frame, [0]), HANDSHAKE_ERRORS)


# Exceptions of a hostile peer.

EXPECTED_ERRORS = (LineClosed, Disconnected, Refused, Violation, Exposed, broadcast.Evicted, TimeoutError, OSError)


def hello(meeting=wire.SERVICE):
    return Hello(capacity=CAPACITY, longest=LONGEST, features=wire.BARRIERS, meeting=meeting)


def wake_and_close(state):
    """Wakes the peer and closes the line. What was written stays."""
    try:
        state.line.sock.send(b"\1", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except OSError:
        pass
    _close(state)


def _close(state):
    try:
        state.line.sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    state.line.close()


def attack_service(endpoint, address, attack):
    try:
        parts = handshake.guest(address, hello(), attack)
    except EXPECTED_ERRORS:
        return
    wake_and_close(parts)


def attack_publisher(endpoint, address, attack):
    try:
        subscription = broadcast.Subscription(address, longest=1024, features=wire.BARRIERS, hooks=attack)
    except EXPECTED_ERRORS:
        return
    _close(subscription)
    os.close(subscription.doorbell.pidfd)


def read_outcome(endpoint):
    """Returns the last line about one attack."""
    line = endpoint.read_line()
    return endpoint.read_line() if line == "accepted" else line


def check(endpoint, attack, line):
    if line == RECONNECTED:
        return
    known = line in CODES or line in ENDS or line == "open" or line.split(", ")[-1] in ENDS
    if not known:
        raise Failure(f"{endpoint.name}, {attack.name}: {line!r} is no outcome")
    if attack.applied and attack.expected and line not in attack.expected:
        raise Failure(f"{endpoint.name}, {attack.name}: {line!r}, and not one of {sorted(attack.expected)}")


def attack_as_guest(language, role, attacks):
    """Attacks a service or a publisher."""
    command, sizes, tell = {
        "guest": ("serve", [], attack_service), "subscriber": ("publish-each", PUBLISHED_SIZES, attack_publisher),
    }[role]
    outcomes = {}
    with tempfile.TemporaryDirectory(prefix="ringfence-") as folder:
        address = os.path.join(folder, "s")
        with Endpoint(language, command, address, CAPACITY, LONGEST if role == "guest" else 1024, sizes) as endpoint:
            endpoint.expect("bound")
            well_formed_guest(endpoint, address, role)
            baseline = endpoint.resources()
            for attack in attacks:
                tell(endpoint, address, attack)
                line = read_outcome(endpoint)
                check(endpoint, attack, line)
                outcomes[line] = outcomes.get(line, 0) + 1
            well_formed_guest(endpoint, address, role)
            endpoint.wait_for_resources(baseline)
    return outcomes


def well_formed_guest(endpoint, address, role):
    if role == "guest":
        channel = Channel(handshake.guest(address, hello()))
        channel.send(b"honest")
        if channel.receive() != b"honest":
            raise Failure(f"{endpoint.name} no longer serves a well-formed agent")
        channel.end()
        channel.receive()
        channel.close()
    else:
        subscription = broadcast.Subscription(address, longest=1024, features=wire.BARRIERS)
        found = []
        while (message := subscription.receive()) is not None:
            found.append(len(message))
        if found != PUBLISHED_SIZES:
            raise Failure(f"{endpoint.name} publishes {found} to a well-formed subscriber")
        subscription.close()
    line = read_outcome(endpoint)
    if line != "closed":
        raise Failure(f"{endpoint.name} reports {line!r} for a well-formed peer")


def attack_as_host(language, role, attacks):
    """Attacks an agent or a subscriber."""
    outcomes = {}
    with tempfile.TemporaryDirectory(prefix="ringfence-") as folder:
        address = os.path.join(folder, "s")
        command = "connect-each" if role == "host" else "subscribe-each"
        with Endpoint(language, command, address, CAPACITY, LONGEST if role == "host" else 1024) as endpoint:
            endpoint.expect("bound")
            host = Host(address, role)
            host.serve_well_formed(endpoint)
            baseline = endpoint.resources()
            for attack in attacks:
                line = host.attack(endpoint, attack)
                check(endpoint, attack, line)
                outcomes[line] = outcomes.get(line, 0) + 1
            host.serve_well_formed(endpoint)
            endpoint.wait_for_resources(baseline)
            host.close()
    return outcomes


class Host:
    """An address at which clients are attacked."""

    def __init__(self, address, role):
        self.role, self.address = role, address
        self.bound = handshake.BoundAddress(address)
        self.source = None

    def close(self):
        self.bound.release()

    def attack(self, endpoint, attack):
        endpoint.write_line(random.Random(attack.name).choice(["reliable", "best-effort", "latest"]))
        self.bound.sock.settimeout(LIMIT)
        times = 0
        while endpoint.waits_for_connection(self.bound.sock):
            sock, _ = self.bound.sock.accept()
            times += 1
            with sock:
                sock.setblocking(True)
                if times > 3:
                    self._serve(sock)
                else:
                    attack.applied = False
                    self._meet(sock, attack)
        line = endpoint.read_line()
        # A peer whose connection was closed before HELLO reconnects, up to its deadline.
        return RECONNECTED if times > 3 and line.endswith(", closed") else line

    def _meet(self, sock, attack):
        deadline = time.monotonic() + LIMIT
        try:
            if self.role == "host":
                parts = handshake.host_on(sock, hello(), attack, deadline)
            else:
                with self._publisher(attack) as source:
                    parts = source.admit(sock, deadline)
                    source.readers = {}
        except EXPECTED_ERRORS:
            return
        wake_and_close(parts)

    def _publisher(self, attack):
        source = broadcast.Publisher(None, CAPACITY, 1024, attack)
        for number in range(5):
            source.send(b"x" * 100 * number)
        return source

    def serve_well_formed(self, endpoint):
        endpoint.write_line("reliable")
        self.bound.sock.settimeout(LIMIT)
        sock, _ = self.bound.sock.accept()
        with sock:
            sock.setblocking(True)
            self._serve(sock)
        line = endpoint.read_line()
        if line not in ("answered, closed", "5 read, 0 lost, 0 attached, closed"):
            raise Failure(f"{endpoint.name} reports {line!r} for a well-formed peer")

    def _serve(self, sock):
        deadline = time.monotonic() + LIMIT
        if self.role == "publisher":
            with self._publisher(None) as source:
                reader = source.admit(sock, deadline)
                source.end()
                reader.doorbell.wait_for_end(LIMIT)
            return
        channel = Channel(handshake.host_on(sock, hello(), None, deadline))
        channel.send(channel.receive())
        channel.receive()
        channel.end()
        channel.close()
