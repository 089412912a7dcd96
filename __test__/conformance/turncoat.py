"""
A guest that keeps to the page until READY, and then executes another program, which says READY in its place on the same line: the last
look must find it. Says how the host took that.

    turncoat.py ADDRESS EXECUTABLE   the first program; EXECUTABLE is what it becomes
"""

import os
import socket
import sys
import time

from other_end import meet, memory, wire


def begin(address, executable):
    mine = wire.Hello(capacity=8192, longest=1024, meeting=wire.SERVICE)
    with meet.dial(address) as agreed:
        line, theirs = meet.begin_as_guest(agreed, mine, None, time.monotonic() + 60)
    own, raw = memory.make(mine.capacity)
    line.say(wire.OFFER, wire.Offer(theirs.nonce, own.size, mine.capacity).pack(), [raw])
    _, (fd,) = line.hear(wire.OFFER, 1)
    os.close(fd)
    os.set_inheritable(line.sock.fileno(), True)
    words = [executable, __file__, "goes-on", str(line.sock.fileno()), theirs.nonce.hex(), *map(str, line.sender)]
    os.execve(executable, words, {**os.environ, "PYTHONHOME": sys.base_prefix})


def go_on(number, nonce, *sender):
    line = wire.Line(socket.socket(fileno=int(number)), tuple(map(int, sender)), time.monotonic() + 60)
    try:
        # The peer may have noticed already.
        line.say(wire.READY, bytes.fromhex(nonce))
        line.hear(wire.READY)
        print("let in", flush=True)
    except (wire.Refused, wire.Lost) as answer:
        print(type(answer).__name__, flush=True)


if sys.argv[1] == "goes-on":
    go_on(*sys.argv[2:])
else:
    begin(*sys.argv[1:])
