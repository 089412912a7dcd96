"""Attacks with call frames. Includes frames that a well-formed peer may send late or never."""

import os
import tempfile

from endpoints import Endpoint, Failure
from attacks import CAPACITY, LONGEST, hello
from peer import calls, handshake
from peer.calls import CANCEL, CANCELLED, ERROR, REPLY, REQUEST, frame, texts
from peer.ring import Channel
from peer.wire import Disconnected

CORRUPT = "RING_CORRUPT"
UNANSWERED = "closed, asked PEER_LOST"


def call_attacks():
    """Tuples of name, frames, and expected outcome. The implementation has made call 0, and has cancelled call 1."""
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
    # A well-formed peer may be as slow, and its frames may cross.
    yield "no answer", [], UNANSWERED
    yield "a late reply", [frame(REPLY, 1, b"late")], UNANSWERED
    yield "a late error", [frame(ERROR, 1, sound)], UNANSWERED
    yield "a cancellation twice", [frame(REQUEST, 0, b"hang"), frame(CANCEL, 0), frame(CANCEL, 0)], UNANSWERED
    yield "an empty error", [frame(ERROR, 0, texts(b"", b"", b""))], None
    yield "an answer", [frame(REPLY, 0, b"answer")], "closed, asked answer"


def attack_as_caller(language, attacks):
    outcomes = {}
    with tempfile.TemporaryDirectory(prefix="ringfence-") as folder:
        address = os.path.join(folder, "s")
        with Endpoint(language, "serve-calls", address, CAPACITY, LONGEST) as endpoint:
            endpoint.expect("bound")
            _run(endpoint, address, "an answer", [frame(REPLY, 0, b"answer")], "closed, asked answer")
            baseline = endpoint.resources()
            for name, frames, expected in attacks:
                line = _run(endpoint, address, name, frames, expected)
                outcomes[line] = outcomes.get(line, 0) + 1
            endpoint.wait_for_resources(baseline)
    return outcomes


def _run(endpoint, address, name, frames, expected):
    channel = Channel(handshake.guest(address, hello()))
    endpoint.expect("accepted")
    if calls.receive_first(channel) != calls.FIRST_FRAMES:
        raise Failure(f"{endpoint.name}, {name}: it has made no calls")
    try:
        for sent in frames:
            calls.send(channel, sent)
        if expected != CORRUPT:
            channel.end()
            while channel.receive() is not None:
                pass
    except Disconnected:
        pass  # It has found the attack.
    line = endpoint.read_line()
    channel.close()
    if expected is not None and line != expected:
        raise Failure(f"{endpoint.name}, {name}: {line!r}, not {expected!r}")
    return line
