"""
Attacks with tokens: forged signals, wrong announced counts, and OFFERs that direct tokens to another process, which a token would kill.
"""

import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

from endpoints import LIMIT, Endpoint, Failure
from attacks import CAPACITY, CODES, EDGE_VALUES, ENDS, EXPECTED_ERRORS, LONGEST, FrameAttack, hello
from peer import handshake, wire
from peer.memory import TOKENS
from peer.ring import Channel
from peer.tokens import Mailbox, TokenSender
from peer.wire import OFFER


class TokenAttack:
    """An action on the token sender of a channel. `count`: the number of valid tokens, or None if any is allowed."""

    def __init__(self, name, action, count=0):
        self.name, self.action, self.count = name, action, count


def _in_a_child(command):
    pid = os.fork()
    if pid == 0:
        try:
            command()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def token_sender_attacks():
    for at in range(16):
        def other_secret(sender, at=at):
            secret = bytearray(sender.offer.secret)
            secret[at] ^= 1 << at % 8
            sender.forge(7, secret=bytes(secret))

        yield TokenAttack(f"byte {at} of the secret is another", other_secret)
    yield TokenAttack("a secret of zeros", lambda sender: sender.forge(7))
    for bit in (0, 7, 15, 31):
        yield TokenAttack(f"bit {bit} of the mailbox is another",
                     lambda sender, bit=bit: sender.forge(7, sender.offer.mailbox ^ 1 << bit, sender.offer.secret))
    # A child of the hostile process, for example. It has the secret, so its token is valid.
    yield TokenAttack("another process sends a token", lambda sender: _in_a_child(lambda: sender.send(7, announce=False)), 1)
    yield TokenAttack("a signal without anything", lambda sender: os.kill(sender.process, sender.offer.number))
    # The queue of all processes of a user is limited. Tokens that are dropped here are the hostile peer's own.
    yield TokenAttack("a flood of what is no token", _flood)
    for value in EDGE_VALUES + [1, 2, 3]:
        yield TokenAttack(f"{value:#x} are announced, none sent", lambda sender, value=value: sender.own.store(TOKENS, value))
        yield TokenAttack(f"{value:#x} are announced, three sent",
                     lambda sender, value=value: _send(sender, 3) or sender.own.store(TOKENS, value), 3)
    yield TokenAttack("three sent, none announced", lambda sender: _send(sender, 3), None)


def _send(sender, count):
    for token in range(count):
        sender.send(token, announce=False)


def _flood(sender):
    try:
        for _ in range(3000):
            sender.forge(7)
    except BlockingIOError:
        pass


def attack_as_sender(language, attacks):
    outcomes = {}
    with tempfile.TemporaryDirectory(prefix="ringfence-") as folder:
        address = os.path.join(folder, "s")
        with Endpoint(language, "count-tokens", address, CAPACITY, LONGEST) as endpoint:
            endpoint.expect("bound")
            well_formed_sender(endpoint, address)
            baseline = endpoint.resources()
            for number, attack in enumerate(attacks):
                channel = Channel(handshake.guest(address, hello()))
                endpoint.expect("accepted")
                sender = TokenSender(channel)
                attack.action(sender)
                # Both ways to end: announced and unannounced.
                if number % 2:
                    channel.close()
                else:
                    channel.doorbell.sock.shutdown(socket.SHUT_RDWR)
                    channel.release()
                line = endpoint.read_line()
                heard, _, how = line.partition(" tokens, ")
                if how not in ENDS and line not in CODES:
                    raise Failure(f"{endpoint.name}, {attack.name}: {line!r} is no outcome")
                if attack.count is not None and heard != str(attack.count):
                    raise Failure(f"{endpoint.name}, {attack.name}: {line!r}, not {attack.count}")
                outcomes[line] = outcomes.get(line, 0) + 1
            well_formed_sender(endpoint, address)
            endpoint.wait_for_resources(baseline)
    return outcomes


def well_formed_sender(endpoint, address):
    channel = Channel(handshake.guest(address, hello()))
    endpoint.expect("accepted")
    sender = TokenSender(channel)
    for token in range(5):
        sender.send(token)
    channel.close(clean=True)
    line = endpoint.read_line()
    if line != "5 tokens, closed":
        raise Failure(f"{endpoint.name} reports {line!r} for a well-formed sender")


# A process that each of these signals kills, with a second thread.
BYSTANDER = "import threading, time; threading.Thread(target=time.sleep, args=(1000,)).start(); print('here', flush=True); time.sleep(1000)"


def token_receiver_attacks():
    """OFFERs whose fields direct tokens elsewhere. A text stands for a number that is known later."""
    threads = {"the first thread of another process": "its first", "a thread of another process": "its last",
               "the first process of all": 1, "no thread": 0, "a thread that there is none of": (1 << 22) - 1,
               "a number below zero": (1 << 32) - 1, "the greatest number": (1 << 31) - 1}
    for name, thread in threads.items():
        yield f"tokens go to {name}", {52: thread}
    yield "tokens go to a thread of the peer's own", {52: "the peer"}
    yield "tokens go to a thread of the attacker that has ended", {52: _ended_thread()}
    yield "tokens go to the attacker's thread, in another mailbox", {56: 0}
    for number in (1, 9, 15, 19, 31, 32, 33, 34, 64, 65, 128, 1 << 31, (1 << 32) - 1):
        # Signals such as SIGKILL: if a signal is sent at all, its victim must be the hostile peer.
        yield f"tokens are signal {number}, for a thread of another process", {48: number, 52: "its last"}


def _ended_thread():
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    return thread.native_id


def attack_as_receiver(language, attacks):
    """Attacks with a bystander process that a token would kill."""
    outcomes = {}
    with subprocess.Popen([sys.executable, "-c", BYSTANDER], stdout=subprocess.PIPE, text=True) as bystander:
        try:
            bystander.stdout.readline()
            threads = sorted(map(int, os.listdir(f"/proc/{bystander.pid}/task")))
            known = {"its first": threads[0], "its last": threads[-1]}
            for name, fields in attacks:
                with tempfile.TemporaryDirectory(prefix="ringfence-") as folder:
                    line = _attack_as_receiver(language, name, fields, known, os.path.join(folder, "s"))
                outcomes[line] = outcomes.get(line, 0) + 1
                if bystander.poll() is not None:
                    raise Failure(f"{language}, {name}: a token has ended another process ({bystander.returncode})")
        finally:
            bystander.kill()
    return outcomes


def _attack_as_receiver(language, name, fields, known, address):
    bound = handshake.BoundAddress(address)
    with Endpoint(language, "tokens", address, CAPACITY, LONGEST) as endpoint:
        def change(frame, fds):
            frame = bytearray(frame)
            for at, value in fields.items():
                struct.pack_into("<I", frame, 16 + at, {**known, "the peer": endpoint.pid}.get(value, value))
            return bytes(frame), fds

        mine = hello(wire.PAIR)
        mine.mailbox = Mailbox()
        try:
            channel = Channel(handshake.accept(bound, mine, FrameAttack(name, OFFER, change), LIMIT))
        except EXPECTED_ERRORS:
            return _outcome(endpoint, name, endpoint.read_line())
        finally:
            bound.release()
        endpoint.expect(f"guest {os.getpid()}")
        sender = TokenSender(channel)
        try:
            for token in range(5):
                sender.send(token)
        except ProcessLookupError:
            pass  # It has ended with the first.
        # Returns each token, or prints why it cannot.
        deadline = time.monotonic() + LIMIT
        while channel.peer.load(TOKENS) < 5 and endpoint.lines.empty():
            if time.monotonic() > deadline:
                raise Failure(f"{endpoint.name}, {name}: it has sent no token, and reports nothing")
            time.sleep(0.002)
        channel.close()
        return _outcome(endpoint, name, endpoint.read_line())


def _outcome(endpoint, name, line):
    code = line.removeprefix("over ").split(" ")[0]
    if code not in CODES and code not in ENDS:
        raise Failure(f"{endpoint.name}, {name}: {line!r} is no outcome")
    return code
