"""Lies of attachments: parcels, descriptors and records that no honest sender combines, and buffers that are not sealed."""

import contextlib
import fcntl
import os
import tempfile

from ends import End, Failure
from honest import with_attachments
from lies import CAPACITY, LONGEST, OBJECTS
from other_end import memory
from other_end.attachments import DESCRIPTORS, NO_SIZE, SEALED, SEALS, pack, post, seal
from other_end.ring import ATTACHED, FIRST, LAST, WHOLE
from other_end.wire import Lost

CORRUPT, UNSOUND = "RING_CORRUPT", "OBJECT_UNSOUND"
BOTH = SEALED | DESCRIPTORS
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
    fd = os.memfd_create("lie", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
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


def _told(channel, parcels, records):
    """Parcels, each its bytes and its attachments; then records, each its flags, a number of attachments and its payload."""
    for parcel, attached in parcels:
        fds = [fd for _, fd in attached]
        post(channel.bell.sock, pack([word for word, _ in attached]) if parcel is None else parcel, fds)
        for fd in fds:
            os.close(fd)
    for flags, count, payload in records:
        channel.put(flags | count << ATTACHED, payload)


def _message(count):
    return WHOLE, count, b"message"


def lies_of_attachments():
    """Each: its name, what the real end accepts, a function that makes its parcels, its records, and what the real end says."""
    for name, record, attached in counts():
        yield name, BOTH, lambda attached=attached: [(None, [make() for make in attached])] if attached else [], record, CORRUPT
    for name, parcel, attached in parcels():
        yield name, BOTH, lambda parcel=parcel, attached=attached: [(parcel, [make() for make in attached])], [_message(1)], CORRUPT
    for name, accepts, attached in kinds_and_limits():
        records = [_message(len(attached))]
        yield name, accepts, lambda attached=attached: [(None, [make() for make in attached])], records, CORRUPT
    for name, size, make in buffers():
        yield name, SEALED, lambda size=size, make=make: [(None, [(size, make())])], [_message(1)], UNSOUND
        behind = f"{name}, behind a sound one"
        yield behind, BOTH, lambda size=size, make=make: [(None, [_sealed(), (size, make())])], [_message(2)], UNSOUND
    yield ("parcels in another order than their records", BOTH, lambda: [(None, [_sealed()]), (None, [_sealed(), _pipe()])],
           [_message(2), _message(1)], CORRUPT)
    yield ("more parcels than the limit, each within it", BOTH, lambda: [(None, [_pipe()]) for _ in range(COUNT + 1)],
           [], CORRUPT)
    # An honest sender may be about to publish the record.
    yield "sent and not announced", BOTH, lambda: [(None, [_sealed(), _pipe()])], [_message(0)], "closed"
    yield "announced as sent", BOTH, lambda: [(None, [_sealed(), _pipe()])], [_message(2)], "closed"


def counts():
    yield "announced and not sent", [_message(1)], []
    yield "255 announced and not sent", [_message(255)], []
    yield "more announced than sent", [_message(3)], [_sealed, _pipe]
    yield "fewer announced than sent", [_message(1)], [_sealed, _pipe]
    yield "more announced than the limit", [_message(COUNT + 1)], [_sealed] * COUNT
    yield "announced again", [_message(1), _message(1)], [_sealed]
    yield "announced by a later fragment", [(FIRST, 0, (20).to_bytes(8, "little") + b"x"), (LAST, 1, b"x" * 19)], [_sealed]


def parcels():
    whole = pack([PAGE])
    for length in (1, 2, 9):
        yield f"a parcel that ends after {length} bytes", whole[:length], [_sealed]
    yield "a parcel and a byte", whole + b"x", [_sealed]
    yield "a parcel of nothing", b"\2\0", []
    yield "a parcel with a number of a message", whole[:2] + (1).to_bytes(8, "little") + whole[2:], [_sealed]
    yield "a parcel of 254", b"\2\xfe" + bytes(8 * 254), [_sealed]
    yield "a parcel without descriptors", whole, []
    yield "a parcel with a descriptor too few", pack([PAGE] * 2), [_sealed]
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


def lie(language, lies):
    outcomes = {}
    with contextlib.ExitStack() as stack:
        ends = {accepts: _end(stack, language, accepts) for accepts in (BOTH, SEALED, DESCRIPTORS)}
        for name, accepts, make, records, wants in lies:
            end, where, _ = ends[accepts]
            line = _tell(end, where, name, make, records, wants)
            outcomes[line] = outcomes.get(line, 0) + 1
        for end, _, most in ends.values():
            end.settles(most)
    return outcomes


def _end(stack, language, accepts):
    """A real end that accepts this, its address, and what it holds after an honest peer."""
    where = os.path.join(stack.enter_context(tempfile.TemporaryDirectory(prefix="ringfence-")), "s")
    accepted = [int(bool(accepts & kind)) for kind in (SEALED, DESCRIPTORS)] + [COUNT, BYTES]
    end = stack.enter_context(End(language, "attach", where, CAPACITY, LONGEST, accepted))
    end.expect("bound")
    _tell(end, where, "a message", lambda: [], [_message(0)], "closed")
    return end, where, end.holds()


def _tell(end, where, name, make, records, wants):
    channel = with_attachments(where)
    end.expect("in")
    try:
        _told(channel, make(), records)
        if wants == "closed":
            channel.end()
            while channel.receive() is not None:
                for _, fd in channel.reads.attached:
                    os.close(fd)
    except (Lost, BrokenPipeError, ConnectionResetError):
        pass  # It has found the lie.
    line = end.hear()
    channel.close()
    if line != wants:
        raise Failure(f"{end.name}, {name}: {line!r}, not {wants!r}")
    return line
