"""
Attacks of members: as the guest of a host, with every field of every frame and every phase; and as the host, with wrong descriptors for its
address and every way to leave. After each, a well-formed member joins, which the implementation must greet.
"""

import os
import random
import select
import socket
import tempfile
import time

from endpoints import LIMIT, Endpoint, Failure
from attacks import CAPACITY, CODES, HANDSHAKE_ERRORS, EXPECTED_ERRORS, LONGEST, FrameAttack, Attack, WordAttack, handshake_attacks, wake_and_close, hello, listening
from peer import handshake, wire
from peer.memory import PHASE, TOKENS
from peer.ring import Channel
from peer.wire import READY, Disconnected, Refused


def _retry(join, attack=None):
    """A client that reconnects if the host's slot is still taken, or if it is disconnected. It makes each attack once."""
    deadline = time.monotonic() + LIMIT
    while True:
        try:
            return join()
        except (Disconnected, Refused) as error:
            is_occupied = isinstance(error, Refused) and error.code == wire.OCCUPIED
            if time.monotonic() > deadline or not is_occupied and (isinstance(error, Refused) or attack is not None and attack.applied):
                raise
            if attack is not None:
                attack.applied = False
            time.sleep(0.005)


def _join(address, attack=None, descriptors=2):
    """Joins as the guest."""
    mine = hello(wire.MEMBER)
    sock = handshake.connect(address)
    if sock is None:
        raise Disconnected("no process listens")
    with sock:
        line, theirs = handshake.exchange_hello_as_guest(sock, mine, attack, time.monotonic() + LIMIT)
    parts = handshake.finish(line, mine, theirs, False, descriptors)
    for fd in parts.passed:
        os.close(fd)
    return parts


def join_well_formed(endpoint, address):
    """
    A well-formed member joins, is greeted, and closes. It is another process, which separates its lines from those about earlier attacks.
    Returns the latter.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            channel = Channel(_retry(lambda: _join(address)))
            code = 0 if channel.receive() == b"hello" else 2
            channel.close()
        finally:
            os._exit(code)
    lines = []
    while (line := endpoint.read_line()) != f"channel {pid}":
        lines.append(line)
    _, status = os.waitpid(pid, 0)
    if status != 0:
        raise Failure(f"{endpoint.name} has not greeted a well-formed member: {os.waitstatus_to_exitcode(status)}")
    return lines


def check(endpoint, attack, lines):
    """Checks that each line is an outcome, and that no attack that must be detected has led to a channel."""
    for line in lines:
        word, _, rest = line.partition(" ")
        sound = {"refused": rest in CODES, "over": rest in CODES, "channel": rest == str(os.getpid())}
        if not sound.get(word, line in ("host", "guest")):
            raise Failure(f"{endpoint.name}, {attack.name}: {line!r} is no outcome")
        # The previous peer still occupied the host's slot, so this one reconnected.
        if line == "refused ADDRESS_OCCUPIED":
            continue
        if attack.applied and attack.expected is HANDSHAKE_ERRORS and (word == "channel" or word == "refused" and rest not in HANDSHAKE_ERRORS):
            raise Failure(f"{endpoint.name}, {attack.name}: {line!r}, and not one of {sorted(HANDSHAKE_ERRORS)}")


PHASES = [*range(16), 77, (1 << 64) - 1]


def phases(role):
    for phase in PHASES:
        yield WordAttack(f"{role} is at phase {phase:#x}, and closes the line", "open", [(PHASE, phase)])
        yield WordAttack(f"{role} is at phase {phase:#x} before READY", "ready", [(PHASE, phase)])
    for count in (1, 77, (1 << 64) - 1):
        yield WordAttack(f"{role} leaves, and has announced {count:#x} tokens", "open", [(TOKENS, count), (PHASE, 4)])


def joining_member_attacks():
    # Other attacks with descriptors are covered by services, which receive them in the same way.
    return [*handshake_attacks("guest"), *phases("a guest")]


def attack_as_member(language, attacks):
    outcomes = {}
    with tempfile.TemporaryDirectory(prefix="ringfence-") as folder:
        address = os.path.join(folder, "s")
        with Endpoint(language, "member", address, CAPACITY, LONGEST) as endpoint:
            endpoint.expect("host")
            join_well_formed(endpoint, address)
            baseline = endpoint.resources()
            for attack in attacks:
                try:
                    parts = _retry(lambda: _join(address, attack), attack)
                except EXPECTED_ERRORS:
                    pass
                else:
                    wake_and_close(parts)
                lines = join_well_formed(endpoint, address)
                check(endpoint, attack, lines)
                for line in lines:
                    found = line.split(" ")[0 if line.startswith("channel") else -1]
                    outcomes[found] = outcomes.get(found, 0) + 1
            endpoint.wait_for_resources(baseline)
    return outcomes


# Descriptors that a host passes with its READY.


def _open(path, flags=os.O_RDWR):
    return lambda bound: os.open(path(bound) if callable(path) else path, flags)


#: In place of the socket, and of the lock.
WRONG_SOCKETS = {
    "no socket": _open("/dev/null"),
    "a socket that does not listen": lambda bound: socket.socket(socket.AF_UNIX).detach(),
    "a datagram socket": lambda bound: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach(),
    "a socket of the network": lambda bound: socket.create_server(("127.0.0.1", 0)).detach(),
    "a socket that listens at no address of this": lambda bound: listening(),
    "a socket that listens elsewhere": lambda bound: listening(bound.address + ".other"),
    "its lock": lambda bound: os.dup(bound.lock),
}
WRONG_LOCKS = {
    "a file": _open(lambda bound: bound.address + ".file", os.O_RDWR | os.O_CREAT),
    "its lock, opened anew": _open(lambda bound: bound.address + ".lock"),
    "its lock, by its path alone": _open(lambda bound: bound.address + ".lock", os.O_PATH),
    "its folder": _open(lambda bound: os.path.dirname(bound.address), os.O_RDONLY),
    "a device": _open("/dev/zero"),
    "a memfd": lambda bound: os.memfd_create("lock"),
    "its socket": lambda bound: os.dup(bound.sock.fileno()),
}


class WrongDescriptors(Attack):
    """Wrong descriptors with the host's READY."""

    def __init__(self, name, change):
        super().__init__(name, HANDSHAKE_ERRORS)
        self.change, self.bound, self.made = change, None, []

    def frame(self, kind, frame, fds):
        if kind != READY:
            return frame, fds
        self.applied = True
        passed = self.change(self.bound, fds)
        self.made = [fd for fd in passed if isinstance(fd, int) and fd not in fds]
        return frame, passed

    def sent(self, kind):
        # A second descriptor of the socket would still listen after the address was left.
        for fd in self.made:
            os.close(fd)
        self.made = []


def leaving_host_attacks():
    for name, make in WRONG_SOCKETS.items():
        yield WrongDescriptors(f"{name} for the socket", lambda bound, fds, make=make: [make(bound), fds[1]])
    for name, make in WRONG_LOCKS.items():
        yield WrongDescriptors(f"{name} for the lock", lambda bound, fds, make=make: [fds[0], make(bound)])
    for name, change in {
        "nothing is passed on": lambda bound, fds: [],
        "the socket alone": lambda bound, fds: fds[:1],
        "the lock alone": lambda bound, fds: fds[1:],
        "the lock first": lambda bound, fds: fds[::-1],
        "a descriptor more": lambda bound, fds: [*fds, fds[0]],
        "two hundred more": lambda bound, fds: [*fds, *fds[:1] * 200],
    }.items():
        yield WrongDescriptors(name, change)
    yield FrameAttack("READY is cut", READY, lambda frame, fds: (frame[:20], fds), HANDSHAKE_ERRORS, closes=True)
    yield from phases("a host")


def attack_as_host(language, attacks):
    """A member joins a hostile host, which then exits, with or without its files. The member must become the host."""
    outcomes = {}
    for attack in attacks:
        with tempfile.TemporaryDirectory(prefix="ringfence-") as folder:
            line = _attack_as_host(language, attack, os.path.join(folder, "s"))
        outcomes[line] = outcomes.get(line, 0) + 1
    return outcomes


def _attack_as_host(language, attack, address):
    bound = handshake.BoundAddress(address)
    attack.bound = bound
    # Leftover files may obstruct the next process, as with any host that is killed; or they are removed, as when a host exits.
    removes = random.Random(attack.name).choice([True, False])
    with Endpoint(language, "member", address, CAPACITY, LONGEST) as endpoint:
        parts = None
        times = 0
        # A process reconnects if its connection is closed before READY, or if it was passed a lock that does not belong to the
        # address.
        while times < 3 and (parts is None or isinstance(attack, WrongDescriptors)):
            if not endpoint.waits_for_connection(bound.sock):
                bound.release()
                return _refusal(endpoint, attack)
            times += 1
            attack.applied = False
            try:
                sock, _ = handshake.accept_connection(bound, LIMIT)
                with sock:
                    line, theirs = handshake.exchange_hello_as_host(sock, mine := hello(wire.MEMBER), attack, time.monotonic() + LIMIT)
                parts = handshake.finish(line, mine, theirs, True, bound.descriptors())
            except EXPECTED_ERRORS:
                continue
            if isinstance(attack, WrongDescriptors):
                # The address must not change until the other side has checked the passed descriptors.
                _until_left(endpoint, parts)
        if removes:
            bound.release()
        else:
            bound.close()
        if parts is not None and not isinstance(attack, WrongDescriptors):
            wake_and_close(parts)
        lines = join_well_formed(endpoint, address)
        check(endpoint, attack, lines)
        if "host" not in lines:
            raise Failure(f"{endpoint.name}, {attack.name}: {lines}, and no host")
        return "became the host"


def _until_left(endpoint, parts):
    """Waits until the implementation closes the line, or prints a line."""
    poll = select.poll()
    poll.register(endpoint.output_ready, select.POLLIN)
    poll.register(parts.line.sock, select.POLLRDHUP)
    if not poll.poll(LIMIT * 1000):
        raise Failure(f"{endpoint.name} neither closes the line nor prints anything for {LIMIT} s")
    wake_and_close(parts)


def _refusal(endpoint, attack):
    """Returns the code of the failure."""
    line = endpoint.read_line()
    code = line.split(" ")[0]
    if code not in HANDSHAKE_ERRORS:
        raise Failure(f"{endpoint.name}, {attack.name}: {line!r}, and not one of {sorted(HANDSHAKE_ERRORS)}")
    return code
