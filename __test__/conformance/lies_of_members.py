"""
Lies of members: of one that comes as the guest of a real host, at every field of every frame and every phase; and of one that is the host,
which passes on what is no place of its own, and leaves in every way that there is. After each an honest member comes, which the real one
must greet.
"""

import os
import random
import select
import socket
import tempfile
import time

from ends import LIMIT, End, Failure
from lies import CAPACITY, CODES, FOUND, IGNORED, LONGEST, FrameLie, Lie, WordLie, handshake_lies, hang_up, hello, listening
from other_end import meet, wire
from other_end.memory import PHASE, TOKENS
from other_end.ring import Channel
from other_end.wire import READY, Lost, Refused


def _patiently(come, lie=None):
    """A client that reconnects if the place beside the host is still taken, or its connection is closed. It sends each lie once."""
    deadline = time.monotonic() + LIMIT
    while True:
        try:
            return come()
        except (Lost, Refused) as error:
            is_occupied = isinstance(error, Refused) and error.code == wire.OCCUPIED
            if time.monotonic() > deadline or not is_occupied and (isinstance(error, Refused) or lie is not None and lie.told):
                raise
            if lie is not None:
                lie.told = False
            time.sleep(0.005)


def _come(where, lie=None, shares=2):
    """Comes as the guest."""
    mine = hello(wire.MEMBER)
    sock = meet.dial(where)
    if sock is None:
        raise Lost("no process listens")
    with sock:
        line, theirs = meet.begin_as_guest(sock, mine, lie, time.monotonic() + LIMIT)
    met = meet.finish(line, mine, theirs, False, shares)
    for fd in met.passed:
        os.close(fd)
    return met


def visit(end, where):
    """
    An honest member comes, is greeted, and closes. It is a process of its own, so that the real end's line about it is the last of those that
    a lie before it has led to; answers with these.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            channel = Channel(_patiently(lambda: _come(where)))
            code = 0 if channel.receive() == b"hello" else 2
            channel.close()
        finally:
            os._exit(code)
    lines = []
    while (line := end.hear()) != f"channel {pid}":
        lines.append(line)
    _, status = os.waitpid(pid, 0)
    if status != 0:
        raise Failure(f"{end.name} has not greeted an honest member: {os.waitstatus_to_exitcode(status)}")
    return lines


def check(end, lie, lines):
    """Each line is an outcome, and what must be found has led to no channel."""
    for line in lines:
        word, _, rest = line.partition(" ")
        sound = {"refused": rest in CODES, "over": rest in CODES, "channel": rest == str(os.getpid())}
        if not sound.get(word, line in ("host", "guest")):
            raise Failure(f"{end.name}, {lie.name}: {line!r} is no outcome")
        # The previous peer still had the place beside the host, so this one connected again.
        if line == "refused ADDRESS_OCCUPIED":
            continue
        if lie.told and lie.wants is FOUND and (word == "channel" or word == "refused" and rest not in FOUND):
            raise Failure(f"{end.name}, {lie.name}: {line!r}, and not one of {sorted(FOUND)}")


PHASES = [*range(16), 77, (1 << 64) - 1]


def phases(who):
    for phase in PHASES:
        yield WordLie(f"{who} is at phase {phase:#x}, and hangs up", "open", [(PHASE, phase)])
        yield WordLie(f"{who} is at phase {phase:#x} before READY", "ready", [(PHASE, phase)])
    for count in (1, 77, (1 << 64) - 1):
        yield WordLie(f"{who} leaves, and has announced {count:#x} tokens", "open", [(TOKENS, count), (PHASE, 4)])


def lies_of_newcomers():
    # Other lies about descriptors are covered by services, which receive them in the same way.
    return [*handshake_lies("guest"), *phases("a guest")]


def lie_as_newcomer(language, lies):
    outcomes = {}
    with tempfile.TemporaryDirectory(prefix="ringfence-") as folder:
        where = os.path.join(folder, "s")
        with End(language, "member", where, CAPACITY, LONGEST) as end:
            end.expect("host")
            visit(end, where)
            most = end.holds()
            for lie in lies:
                try:
                    met = _patiently(lambda: _come(where, lie), lie)
                except IGNORED:
                    pass
                else:
                    hang_up(met)
                lines = visit(end, where)
                check(end, lie, lines)
                for line in lines:
                    found = line.split(" ")[0 if line.startswith("channel") else -1]
                    outcomes[found] = outcomes.get(found, 0) + 1
            end.settles(most)
    return outcomes


# Descriptors that a host passes with its READY.


def _open(path, flags=os.O_RDWR):
    return lambda place: os.open(path(place) if callable(path) else path, flags)


#: In place of the socket, and of the lock.
NO_SOCKET = {
    "no socket": _open("/dev/null"),
    "a socket that does not listen": lambda place: socket.socket(socket.AF_UNIX).detach(),
    "a datagram socket": lambda place: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach(),
    "a socket of the network": lambda place: socket.create_server(("127.0.0.1", 0)).detach(),
    "a socket that listens at no address of this": lambda place: listening(),
    "a socket that listens elsewhere": lambda place: listening(place.address + ".other"),
    "its lock": lambda place: os.dup(place.lock),
}
NO_LOCK = {
    "a file": _open(lambda place: place.address + ".file", os.O_RDWR | os.O_CREAT),
    "its lock, opened anew": _open(lambda place: place.address + ".lock"),
    "its lock, by its path alone": _open(lambda place: place.address + ".lock", os.O_PATH),
    "its folder": _open(lambda place: os.path.dirname(place.address), os.O_RDONLY),
    "a device": _open("/dev/zero"),
    "a memfd": lambda place: os.memfd_create("lock"),
    "its socket": lambda place: os.dup(place.sock.fileno()),
}


class Passed(Lie):
    """Other descriptors than those of the place come with the host's READY."""

    def __init__(self, name, change):
        super().__init__(name, FOUND)
        self.change, self.place, self.made = change, None, []

    def frame(self, kind, frame, fds):
        if kind != READY:
            return frame, fds
        self.told = True
        passed = self.change(self.place, fds)
        self.made = [fd for fd in passed if isinstance(fd, int) and fd not in fds]
        return frame, passed

    def said(self, kind):
        # A second descriptor of the socket would still listen after the place is left.
        for fd in self.made:
            os.close(fd)
        self.made = []


def lies_of_hosts():
    for name, make in NO_SOCKET.items():
        yield Passed(f"{name} for the socket", lambda place, fds, make=make: [make(place), fds[1]])
    for name, make in NO_LOCK.items():
        yield Passed(f"{name} for the lock", lambda place, fds, make=make: [fds[0], make(place)])
    for name, change in {
        "nothing is passed on": lambda place, fds: [],
        "the socket alone": lambda place, fds: fds[:1],
        "the lock alone": lambda place, fds: fds[1:],
        "the lock first": lambda place, fds: fds[::-1],
        "a descriptor more": lambda place, fds: [*fds, fds[0]],
        "two hundred more": lambda place, fds: [*fds, *fds[:1] * 200],
    }.items():
        yield Passed(name, change)
    yield FrameLie("READY is cut", READY, lambda frame, fds: (frame[:20], fds), FOUND, leaves=True)
    yield from phases("a host")


def lie_as_host(language, lies):
    """A real member comes to a liar, which then is gone, its place with it or not. The real one must have a place in the end."""
    outcomes = {}
    for lie in lies:
        with tempfile.TemporaryDirectory(prefix="ringfence-") as folder:
            line = _lie_as_host(language, lie, os.path.join(folder, "s"))
        outcomes[line] = outcomes.get(line, 0) + 1
    return outcomes


def _lie_as_host(language, lie, where):
    place = meet.Place(where)
    lie.place = place
    # Leftover files may obstruct the next process, as with any host that is killed; or they are removed, as when a host exits.
    removes = random.Random(lie.name).choice([True, False])
    with End(language, "member", where, CAPACITY, LONGEST) as end:
        met = None
        times = 0
        # A process reconnects if its connection is closed before READY, or if it was passed a lock that does not belong to the
        # place.
        while times < 3 and (met is None or isinstance(lie, Passed)):
            if not end.comes(place.sock):
                place.release()
                return _refusal(end, lie)
            times += 1
            lie.told = False
            try:
                sock, _ = meet.accepted(place, LIMIT)
                with sock:
                    line, theirs = meet.begin_as_host(sock, mine := hello(wire.MEMBER), lie, time.monotonic() + LIMIT)
                met = meet.finish(line, mine, theirs, True, place.shares())
            except IGNORED:
                continue
            if isinstance(lie, Passed):
                # The place must not change until the other side has checked the passed descriptors.
                _until_left(end, met)
        if removes:
            place.release()
        else:
            place.let_go()
        if met is not None and not isinstance(lie, Passed):
            hang_up(met)
        lines = visit(end, where)
        check(end, lie, lines)
        if "host" not in lines:
            raise Failure(f"{end.name}, {lie.name}: {lines}, and no host")
        return "has the place"


def _until_left(end, met):
    """Waits until the real end has hung up, or says a line."""
    poll = select.poll()
    poll.register(end.spoken, select.POLLIN)
    poll.register(met.line.sock, select.POLLRDHUP)
    if not poll.poll(LIMIT * 1000):
        raise Failure(f"{end.name} neither hangs up nor says anything for {LIMIT} s")
    hang_up(met)


def _refusal(end, lie):
    """The code with which it has given up."""
    line = end.hear()
    code = line.split(" ")[0]
    if code not in FOUND:
        raise Failure(f"{end.name}, {lie.name}: {line!r}, and not one of {sorted(FOUND)}")
    return code
