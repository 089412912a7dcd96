"""Attacks with attachments: impossible combinations of parcels, descriptors and records, and unsealed buffers."""

import contextlib
import fcntl
import os
import tempfile
import time

from endpoints import LIMIT, Endpoint, Failure
from conforming import BOTH, with_attachments
from attacks import CAPACITY, LONGEST, OBJECTS
from peer import broadcast, handshake, memory
from peer.attachments import DESCRIPTORS, NO_SIZE, SEALED, SEALS, close, pack, seal, send_parcel
from peer.ring import ATTACHED, FIRST, LAST, WHOLE
from peer.wire import Disconnected

CORRUPT, UNSOUND = "RING_CORRUPT", "OBJECT_UNSOUND"
COUNT, BYTES = 4, 1 << 20
PAGE = 4096
_KEEP_SIZE = 1
_FUTURE_WRITE = 0x10


def _sealed(size=PAGE):
    return size, seal(b"x" * size)


def _pipe():
    reads, writes = os.pipe()
    os.close(reads)
    return NO_SIZE, writes


def _memory(size, allocated, seals=SEALS):
    """A memfd with memory at these pages alone."""
    fd = os.memfd_create("attack", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    for page in allocated:
        if memory.allocate(fd, _KEEP_SIZE, page * PAGE, PAGE) != 0:
            raise OSError("fallocate")
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def _read_only():
    _, fd = _sealed()
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    finally:
        os.close(fd)


def _send_all(sock, put, parcels, records):
    """Parcels, each its bytes and its attachments; then records, each its flags, a number of attachments and its payload."""
    for parcel, attached in parcels:
        try:
            send_parcel(sock, parcel, [fd for _, fd in attached])
        except PermissionError:
            pass  # The implementation accepts none, and its kernel refuses them.
        finally:
            close(attached)
    for flags, count, payload in records:
        put(flags | count << ATTACHED, payload)


def _parcel(attached, number=None):
    return pack([word for word, _ in attached], number), attached


def _message(count):
    return WHOLE, count, b"message"


def attachment_attacks():
    """Tuples of name, accepted kinds, parcels (as a function), records, and expected outcome."""
    yield from _common(None)
    yield "announced and not sent", BOTH, list, [_message(1)], CORRUPT
    yield "255 announced and not sent", BOTH, list, [_message(255)], CORRUPT
    yield "announced again", BOTH, lambda: [_parcel([_sealed()])], [_message(1), _message(1)], CORRUPT
    yield ("a parcel with a number of a message", BOTH, lambda: [_parcel([_sealed()], 1)], [_message(1)], CORRUPT)
    yield ("parcels in another order than their records", BOTH, lambda: [_parcel([_sealed()]), _parcel([_sealed(), _pipe()])],
           [_message(2), _message(1)], CORRUPT)
    yield ("more parcels than the limit, each within it", BOTH, lambda: [_parcel([_pipe()]) for _ in range(COUNT + 1)],
           [], CORRUPT)
    # A well-formed sender may be about to publish the record.
    yield "sent and not announced", BOTH, lambda: [_parcel([_sealed(), _pipe()])], [_message(0)], "closed"
    yield "announced as sent", BOTH, lambda: [_parcel([_sealed(), _pipe()])], [_message(2)], "closed"


def publisher_attachment_attacks():
    """As `attachment_attacks`. The outcome includes the number of received attachments."""
    yield from _common(1)
    yield "a parcel without a number of a message", BOTH, lambda: [_parcel([_sealed()])], [_message(1)], CORRUPT
    yield "a withdrawal that ends early", BOTH, lambda: [(pack([], 1)[:5], [])], [_message(0)], CORRUPT
    for number in (0, 1):
        yield (f"message {number} after message 2", BOTH, lambda number=number: [_parcel([_sealed()], 2), _parcel([_pipe()], number)],
               [], CORRUPT)
    yield ("a withdrawal of message 1 after message 2", BOTH, lambda: [_parcel([_sealed()], 2), (pack([], 1), [])], [], CORRUPT)
    # A well-formed publisher withholds attachments, changes its mind, and passes those of messages that are missed.
    sent = [_message(2), _message(1)]
    yield "announced and not sent", BOTH, list, sent, "0 attached, closed"
    yield "announced again", BOTH, lambda: [_parcel([_sealed()], 1)], [_message(1), _message(1)], "1 attached, closed"
    yield "sent and not announced", BOTH, lambda: [_parcel([_sealed()], 1)], [_message(0)], "0 attached, closed"
    yield "sent and withdrawn", BOTH, lambda: [_parcel([_sealed()], 1), (pack([], 1), [])], sent, "0 attached, closed"
    yield "withdrawn, with a descriptor", BOTH, lambda: [(pack([], 1), [_pipe()])], sent, "0 attached, closed"
    yield "withdrawn often", BOTH, lambda: [(pack([], 1), [])] * 100, sent, "0 attached, closed"
    yield ("sent and replaced, 50 times", BOTH, lambda: [_parcel([_pipe()], 1)] + [_parcel([_sealed(), _pipe()], 1) for _ in range(50)],
           sent, "2 attached, closed")
    yield ("of a message that is never published", BOTH, lambda: [_parcel([_sealed()], 1 << 60)], sent, "0 attached, closed")
    yield ("more parcels than the limit", BOTH, lambda: [_parcel([_pipe(), _pipe()], 1 + n) for n in range(4)], [_message(2)] * 4,
           "4 attached, closed")
    yield "announced as sent", BOTH, lambda: [_parcel([_sealed(), _pipe()], 1), _parcel([_pipe()], 2)], sent, "3 attached, closed"
    # Without the option, the kernel refuses parcels, or they are wakeups.
    for name, attached in {"a sealed buffer": [_sealed], "a descriptor": [_pipe], "200 descriptors": [_pipe] * 200}.items():
        yield (f"{name}, if none is accepted", 0, lambda attached=attached: [_parcel([make() for make in attached], 1)],
               [_message(len(attached))], "0 attached, closed")
    yield "255 announced, if none is accepted", 0, list, [_message(255)], "0 attached, closed"


def _common(number):
    """Attacks of every sender. `number`: of the first message, if the sender is a publisher."""
    for name, record, attached in counts():
        yield name, BOTH, lambda attached=attached: [_parcel([make() for make in attached], number)], record, CORRUPT
    for name, parcel, attached in parcels(number):
        yield name, BOTH, lambda parcel=parcel, attached=attached: [(parcel, [make() for make in attached])], [_message(1)], CORRUPT
    for name, accepts, attached in kinds_and_limits():
        records = [_message(len(attached))]
        yield name, accepts, lambda attached=attached: [_parcel([make() for make in attached], number)], records, CORRUPT
    for name, size, make in buffers():
        yield name, SEALED, lambda size=size, make=make: [_parcel([(size, make())], number)], [_message(1)], UNSOUND
        behind = f"{name}, behind a sound one"
        yield behind, BOTH, lambda size=size, make=make: [_parcel([_sealed(), (size, make())], number)], [_message(2)], UNSOUND


def counts():
    yield "more announced than sent", [_message(3)], [_sealed, _pipe]
    yield "fewer announced than sent", [_message(1)], [_sealed, _pipe]
    yield "more announced than the limit", [_message(COUNT + 1)], [_sealed] * COUNT
    yield "announced by a later fragment", [(FIRST, 0, (20).to_bytes(8, "little") + b"x"), (LAST, 1, b"x" * 19)], [_sealed]


def parcels(number):
    whole = pack([PAGE], number)
    for length in (1, 2, 9, len(whole) - 1):
        yield f"a parcel that ends after {length} bytes", whole[:length], [_sealed]
    yield "a parcel and a byte", whole + b"x", [_sealed]
    yield "a parcel of nothing", b"\2\0", []
    yield "a parcel of 254", pack([0] * 254, number), [_sealed]
    yield "a parcel without descriptors", whole, []
    yield "a parcel with a descriptor too few", pack([PAGE] * 2, number), [_sealed]
    yield "a parcel with a descriptor too many", whole, [_sealed, _pipe]
    yield "a parcel with 200 descriptors too many", whole, [_sealed] + [_pipe] * 200
    yield "descriptors with a wakeup", b"\1", [_pipe, _sealed]


def kinds_and_limits():
    yield "a descriptor, where sealed buffers are accepted", SEALED, [_pipe]
    yield "a descriptor behind a sealed buffer, where only those are accepted", SEALED, [_sealed, _pipe]
    yield "a sealed buffer, where descriptors are accepted", DESCRIPTORS, [_sealed]
    yield "more than the limit", BOTH, [_sealed, _pipe] * (COUNT // 2) + [_pipe]
    yield "more bytes than the limit", BOTH, [lambda: _sealed(BYTES), lambda: _sealed(1)]
    yield "more bytes than there are", BOTH, [lambda: (NO_SIZE - 1, _sealed()[1])]
    yield "sizes that overflow", BOTH, [lambda: (1 << 63, _sealed()[1])] * 2


def buffers():
    for bit in (1, 2, 4, 8):
        yield f"without seal {bit:#x}", PAGE, lambda bit=bit: seal(b"x" * PAGE, SEALS & ~bit)
    yield "sealed against future writes alone", PAGE, lambda: seal(b"x" * PAGE, SEALS & ~8 | _FUTURE_WRITE)
    yield "without a seal", PAGE, lambda: seal(b"x" * PAGE, 0)
    for size in (0, 1, PAGE - 1, PAGE + 1, 2 * PAGE):
        yield f"{PAGE} bytes, stated as {size}", size, lambda: seal(b"x" * PAGE)
    yield "an empty one, stated as a page", PAGE, lambda: seal(b"")
    yield "without memory", PAGE, lambda: _memory(PAGE, [])
    yield "with a hole", 3 * PAGE, lambda: _memory(3 * PAGE, [0, 2])
    yield "with a hole, and memory behind the end", 3 * PAGE, lambda: _memory(3 * PAGE, [0, 2, 3, 4])
    yield "opened to read", PAGE, _read_only
    for name, make in OBJECTS.items():
        if "memfd" not in name:
            yield name, PAGE, lambda make=make: make(PAGE)


def attack_as_sender(language, attacks):
    outcomes = {}
    with contextlib.ExitStack() as stack:
        ends = {accepts: _end(stack, language, accepts) for accepts in (BOTH, SEALED, DESCRIPTORS)}
        for name, accepts, make, records, expected in attacks:
            endpoint, address, _ = ends[accepts]
            line = _run(endpoint, address, name, make, records, expected)
            outcomes[line] = outcomes.get(line, 0) + 1
        for endpoint, _, baseline in ends.values():
            endpoint.wait_for_resources(baseline)
    return outcomes


def _end(stack, language, accepts):
    """An implementation that accepts this, its address, and its resources after a well-formed peer."""
    address = os.path.join(stack.enter_context(tempfile.TemporaryDirectory(prefix="ringfence-")), "s")
    accepted = [int(bool(accepts & kind)) for kind in (SEALED, DESCRIPTORS)] + [COUNT, BYTES]
    endpoint = stack.enter_context(Endpoint(language, "echo-attachments", address, CAPACITY, LONGEST, accepted))
    endpoint.expect("bound")
    _run(endpoint, address, "a message", lambda: [], [_message(0)], "closed")
    return endpoint, address, endpoint.resources()


def _run(endpoint, address, name, make, records, expected):
    channel = with_attachments(address)
    endpoint.expect("accepted")
    try:
        _send_all(channel.doorbell.sock, channel.put, make(), records)
        if expected == "closed":
            channel.end()
            while channel.receive() is not None:
                close(channel.reader.attached)
    except (Disconnected, BrokenPipeError, ConnectionResetError):
        pass  # It has found the attack.
    line = endpoint.read_line()
    channel.close()
    if line != expected:
        raise Failure(f"{endpoint.name}, {name}: {line!r}, not {expected!r}")
    return line


def attack_as_publisher(language, attacks):
    outcomes = {}
    with contextlib.ExitStack() as stack:
        ends = {accepts: _follower(stack, language, accepts) for accepts in (BOTH, SEALED, DESCRIPTORS, 0)}
        for name, accepts, make, records, expected in attacks:
            endpoint, bound, _ = ends[accepts]
            line = _publish(endpoint, bound, name, make, records, expected)
            outcomes[line] = outcomes.get(line, 0) + 1
        for endpoint, _, baseline in ends.values():
            endpoint.wait_for_resources(baseline)
    return outcomes


def _follower(stack, language, accepts):
    """A subscriber that accepts this, its publisher's address, and its resources after a well-formed publisher."""
    address = os.path.join(stack.enter_context(tempfile.TemporaryDirectory(prefix="ringfence-")), "s")
    bound = handshake.BoundAddress(address)
    stack.callback(bound.release)
    accepted = [int(bool(accepts & kind)) for kind in (SEALED, DESCRIPTORS)] + [COUNT, BYTES] if accepts else []
    endpoint = stack.enter_context(Endpoint(language, "subscribe-each", address, CAPACITY, LONGEST, accepted))
    endpoint.expect("bound")
    _publish(endpoint, bound, "a message", list, [_message(0)], "0 attached, closed")
    return endpoint, bound, endpoint.resources()


def _publish(endpoint, bound, name, make, records, expected):
    endpoint.write_line("reliable")
    sock, _ = handshake.accept_connection(bound, LIMIT)
    with broadcast.Publisher(None, CAPACITY, 1024) as source:
        with sock:
            reader = source.admit(sock, time.monotonic() + LIMIT)
        try:
            _send_all(reader.doorbell.sock, source.put, make(), records)
        except (BrokenPipeError, ConnectionResetError):
            pass  # It has found the attack.
        if expected.endswith("closed"):
            source.end()
        line = endpoint.read_line()
    if not line.endswith(expected):
        raise Failure(f"{endpoint.name}, {name}: {line!r}, not {expected!r}")
    return line
