"""
A guest that executes another program before READY, which sends READY in its place on the same line. The host's last check must detect that.
Prints the host's reaction.

    exec_guest.py ADDRESS EXECUTABLE   the first program; EXECUTABLE is what it becomes
"""

import os
import socket
import sys
import time

from peer import handshake, memory, wire


def start(address, executable):
    mine = wire.Hello(capacity=8192, longest=1024, meeting=wire.SERVICE)
    with handshake.connect(address) as first_sock:
        line, theirs = handshake.exchange_hello_as_guest(first_sock, mine, None, time.monotonic() + 60)
    own, raw = memory.make(mine.capacity)
    line.send(wire.OFFER, wire.Offer(theirs.nonce, own.size, mine.capacity).pack(), [raw])
    _, (fd,) = line.receive(wire.OFFER, 1)
    os.close(fd)
    os.set_inheritable(line.sock.fileno(), True)
    words = [executable, __file__, "resume", str(line.sock.fileno()), theirs.nonce.hex(), *map(str, line.peer)]
    os.execve(executable, words, {**os.environ, "PYTHONHOME": sys.base_prefix})


def resume(number, nonce, *peer):
    line = wire.Line(socket.socket(fileno=int(number)), tuple(map(int, peer)), time.monotonic() + 60)
    try:
        # The peer may have noticed already.
        line.send(wire.READY, bytes.fromhex(nonce))
        line.receive(wire.READY)
        print("accepted", flush=True)
    except (wire.Refused, wire.Disconnected) as answer:
        print(type(answer).__name__, flush=True)


if sys.argv[1] == "resume":
    resume(*sys.argv[2:])
else:
    start(*sys.argv[1:])
