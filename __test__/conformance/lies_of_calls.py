"""Lies of calls: frames that no honest caller or server sends, and those that one may send late or never."""

import os
import tempfile

from ends import End, Failure
from lies import CAPACITY, LONGEST, hello
from other_end import calls, meet
from other_end.calls import CANCEL, CANCELLED, ERROR, REPLY, REQUEST, frame, texts
from other_end.ring import Channel
from other_end.wire import Lost

CORRUPT = "RING_CORRUPT"
UNANSWERED = "closed, asked PEER_LOST"


def lies_of_calls():
    """Each: its name, its frames, and what the real end says. That has asked 0, and has cancelled 1."""
    sound = texts(b"Error", b"text", b"")
    for kind in (0, 6, 255, 1 << 31):
        yield f"kind {kind}", [frame(kind, 0)], CORRUPT
    for length in (0, 1, 15):
        yield f"a head of {length} bytes", [frame(REQUEST, 0)[:length]], CORRUPT
    for number in (1, 2, 1 << 32, (1 << 53) - 1, 1 << 53, (1 << 64) - 1):
        yield f"request {number} comes first", [frame(REQUEST, number)], CORRUPT
    yield "a request twice", [frame(REQUEST, 0), frame(REQUEST, 0)], CORRUPT
    yield "a request is left out", [frame(REQUEST, 0), frame(REQUEST, 2)], CORRUPT
    yield "a cancellation of nothing", [frame(CANCEL, 0)], CORRUPT
    yield "a cancellation with a body", [frame(REQUEST, 0, b"hang"), frame(CANCEL, 0, b"x")], CORRUPT
    for kind in (REPLY, ERROR, CANCEL, CANCELLED):
        number = 1 if kind == CANCELLED else 0
        body = sound if kind == ERROR else b""
        yield f"kind {kind} with a deadline", [frame(REQUEST, 0, b"hang"), frame(kind, number, body, 1)], CORRUPT
    for kind in (REPLY, ERROR, CANCELLED):
        body = sound if kind == ERROR else b""
        for number in (2, 3, 1 << 32, (1 << 53) - 1):
            yield f"an answer of kind {kind} to nothing, {number}", [frame(kind, number, body)], CORRUPT
        for first in (REPLY, ERROR):
            frames = [frame(first, 0, sound), frame(kind, 0, body)]
            yield f"an answer of kind {kind} after one of kind {first}", frames, CORRUPT
        yield f"an answer of kind {kind} after a late one", [frame(REPLY, 1), frame(kind, 1, body)], CORRUPT
    yield "a call that waits is cancelled by its server", [frame(CANCELLED, 0)], CORRUPT
    for end in range(len(sound)):
        yield f"an error ends after {end} bytes", [frame(ERROR, 0, sound[:end])], CORRUPT
    yield "an error with more behind it", [frame(ERROR, 0, sound + b"x")], CORRUPT
    yield "an error that is no UTF-8", [frame(ERROR, 0, texts(b"E", b"\xff", b""))], CORRUPT
    yield "an error longer than all memory", [frame(ERROR, 0, b"\xff" * 12)], CORRUPT
    yield "more requests than a server tolerates", [frame(REQUEST, n, b"hang") for n in range(2 * 16384 + 1)], CORRUPT
    size = LONGEST - 16
    # Some are answered: as many as the ring holds.
    count = 2 * (16 << 20) // LONGEST + 500
    yield "more bytes than a server tolerates", [frame(REQUEST, n, b"x" * size) for n in range(count)], CORRUPT
    # An honest peer may be as slow, and its frames may cross.
    yield "no answer", [], UNANSWERED
    yield "a late reply", [frame(REPLY, 1, b"late")], UNANSWERED
    yield "a late error", [frame(ERROR, 1, sound)], UNANSWERED
    yield "a cancellation twice", [frame(REQUEST, 0, b"hang"), frame(CANCEL, 0), frame(CANCEL, 0)], UNANSWERED
    yield "an empty error", [frame(ERROR, 0, texts(b"", b"", b""))], None
    yield "an answer", [frame(REPLY, 0, b"answer")], "closed, asked answer"


def lie(language, lies):
    outcomes = {}
    with tempfile.TemporaryDirectory(prefix="ringfence-") as folder:
        where = os.path.join(folder, "s")
        with End(language, "attend", where, CAPACITY, LONGEST) as end:
            end.expect("bound")
            _tell(end, where, "an answer", [frame(REPLY, 0, b"answer")], "closed, asked answer")
            most = end.holds()
            for name, frames, wants in lies:
                line = _tell(end, where, name, frames, wants)
                outcomes[line] = outcomes.get(line, 0) + 1
            end.settles(most)
    return outcomes


def _tell(end, where, name, frames, wants):
    channel = Channel(meet.guest(where, hello()))
    end.expect("in")
    if calls.asked(channel) != calls.ASKED:
        raise Failure(f"{end.name}, {name}: it has not asked")
    try:
        for sent in frames:
            calls.send(channel, sent)
        if wants != CORRUPT:
            channel.end()
            while channel.receive() is not None:
                pass
    except Lost:
        pass  # It has found the lie.
    line = end.hear()
    channel.close()
    if wants is not None and line != wants:
        raise Failure(f"{end.name}, {name}: {line!r}, not {wants!r}")
    return line
