"""Frames of calls: see this section of protocol.md."""

import struct

from .ring import CALL
from .wire import Violation

REQUEST, REPLY, ERROR, CANCEL, CANCELLED = 1, 2, 3, 4, 5


def frame(kind, number, body=b"", remaining=0):
    return struct.pack("<IIQ", kind, remaining, number) + body


def texts(name, message, code):
    return b"".join(struct.pack("<I", len(text)) + text for text in (name, message, code))


def read_texts(body):
    found = []
    while body:
        (length,) = struct.unpack_from("<I", body)
        if len(body) < 4 + length:
            raise Violation("a truncated error")
        found.append(body[4:4 + length])
        body = body[4 + length:]
    return tuple(found)


def send(channel, sent):
    """Sends a frame as a message with CALL."""
    for index, (flags, payload) in enumerate(channel.writer.fragments(sent)):
        channel.put(flags | (0 if index else CALL), payload)


def receive(channel):
    """The next frame: its kind, its number, and its body. A message is `None`, `None`, and its bytes."""
    found = channel.receive()
    if found is None:
        return None
    if not channel.reader.call:
        return None, None, found
    if len(found) < 16:
        raise Violation(f"a frame of {len(found)} bytes")
    kind, remaining, number = struct.unpack_from("<IIQ", found)
    if remaining and kind != REQUEST or kind in (CANCEL, CANCELLED) and len(found) != 16:
        raise Violation(f"kind {kind}, {remaining} remain, {len(found)} bytes")
    return kind, number, found[16:]


def receive_first(channel):
    """The first two calls of the implementation, of which it cancels the second."""
    return [receive(channel) for _ in range(3)]


FIRST_FRAMES = [(REQUEST, 0, b"asked"), (REQUEST, 1, b"cancelled"), (CANCEL, 1, b"")]
