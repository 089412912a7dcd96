"""
Lies of tokens: signals that are none, and words that announce others than have come; and OFFERs that name a thread or a mailbox to send tokens
to which are not the liar's own, with a process beside it that a token would kill.
"""

import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

from ends import LIMIT, End, Failure
from lies import CAPACITY, CODES, EDGES, ENDS, IGNORED, LONGEST, FrameLie, hello
from other_end import meet, wire
from other_end.memory import TOKENS
from other_end.ring import Channel
from other_end.tokens import Mailbox, Post
from other_end.wire import OFFER


class Forged:
    """What a liar does with the post of a channel; `count`: how many of it are tokens, or None where the page leaves that open."""

    def __init__(self, name, deed, count=0):
        self.name, self.deed, self.count = name, deed, count


def _in_a_child(deed):
    pid = os.fork()
    if pid == 0:
        try:
            deed()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def lies_of_senders():
    for at in range(16):
        def other_secret(post, at=at):
            secret = bytearray(post.offer.secret)
            secret[at] ^= 1 << at % 8
            post.forge(7, secret=bytes(secret))

        yield Forged(f"byte {at} of the secret is another", other_secret)
    yield Forged("a secret of zeros", lambda post: post.forge(7))
    for bit in (0, 7, 15, 31):
        yield Forged(f"bit {bit} of the mailbox is another",
                     lambda post, bit=bit: post.forge(7, post.offer.mailbox ^ 1 << bit, post.offer.secret))
    # A child of the hostile process, for example. It has the secret, so its token is valid.
    yield Forged("another process sends a token", lambda post: _in_a_child(lambda: post.send(7, announce=False)), 1)
    yield Forged("a signal without anything", lambda post: os.kill(post.process, post.offer.number))
    # The queue of all processes of a user is limited. Tokens that are dropped here are the hostile peer's own.
    yield Forged("a flood of what is no token", _flood)
    for value in EDGES + [1, 2, 3]:
        yield Forged(f"{value:#x} are announced, none sent", lambda post, value=value: post.own.store(TOKENS, value))
        yield Forged(f"{value:#x} are announced, three sent",
                     lambda post, value=value: _send(post, 3) or post.own.store(TOKENS, value), 3)
    yield Forged("three sent, none announced", lambda post: _send(post, 3), None)


def _send(post, count):
    for token in range(count):
        post.send(token, announce=False)


def _flood(post):
    try:
        for _ in range(3000):
            post.forge(7)
    except BlockingIOError:
        pass


def lie_as_sender(language, lies):
    outcomes = {}
    with tempfile.TemporaryDirectory(prefix="ringfence-") as folder:
        where = os.path.join(folder, "s")
        with End(language, "hear", where, CAPACITY, LONGEST) as end:
            end.expect("bound")
            honest_sender(end, where)
            most = end.holds()
            for number, lie in enumerate(lies):
                channel = Channel(meet.guest(where, hello()))
                end.expect("in")
                post = Post(channel)
                lie.deed(post)
                # Both ways to end: announced and unannounced.
                if number % 2:
                    channel.close()
                else:
                    channel.bell.sock.shutdown(socket.SHUT_RDWR)
                    channel.release()
                line = end.hear()
                heard, _, how = line.partition(" tokens, ")
                if how not in ENDS and line not in CODES:
                    raise Failure(f"{end.name}, {lie.name}: {line!r} is no outcome")
                if lie.count is not None and heard != str(lie.count):
                    raise Failure(f"{end.name}, {lie.name}: {line!r}, not {lie.count}")
                outcomes[line] = outcomes.get(line, 0) + 1
            honest_sender(end, where)
            end.settles(most)
    return outcomes


def honest_sender(end, where):
    channel = Channel(meet.guest(where, hello()))
    end.expect("in")
    post = Post(channel)
    for token in range(5):
        post.send(token)
    channel.close(clean=True)
    line = end.hear()
    if line != "5 tokens, closed":
        raise Failure(f"{end.name} says {line!r} of an honest sender")


# A process that each of these signals kills, with a second thread.
BYSTANDER = "import threading, time; threading.Thread(target=time.sleep, args=(1000,)).start(); print('here', flush=True); time.sleep(1000)"


def offers():
    """Fields of an OFFER, as the liar changes them. All of them name where the peer's tokens go; a word for a number that is not known yet."""
    threads = {"the first thread of another process": "its first", "a thread of another process": "its last",
               "the first process of all": 1, "no thread": 0, "a thread that there is none of": (1 << 22) - 1,
               "a number below zero": (1 << 32) - 1, "the greatest number": (1 << 31) - 1}
    for name, thread in threads.items():
        yield f"tokens go to {name}", {52: thread}
    yield "tokens go to a thread of the peer's own", {52: "the peer"}
    yield "tokens go to a thread of the liar that has ended", {52: _ended_thread()}
    yield "tokens go to the liar's thread, in another mailbox", {56: 0}
    for number in (1, 9, 15, 19, 31, 32, 33, 34, 64, 65, 128, 1 << 31, (1 << 32) - 1):
        # Signals such as SIGKILL: if a signal is sent at all, its victim must be the hostile peer.
        yield f"tokens are signal {number}, for a thread of another process", {48: number, 52: "its last"}


def _ended_thread():
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    return thread.native_id


def lie_as_receiver(language, lies):
    """Beside each stands a process that a token would end."""
    outcomes = {}
    with subprocess.Popen([sys.executable, "-c", BYSTANDER], stdout=subprocess.PIPE, text=True) as bystander:
        try:
            bystander.stdout.readline()
            threads = sorted(map(int, os.listdir(f"/proc/{bystander.pid}/task")))
            known = {"its first": threads[0], "its last": threads[-1]}
            for name, fields in lies:
                with tempfile.TemporaryDirectory(prefix="ringfence-") as folder:
                    line = _lie_as_receiver(language, name, fields, known, os.path.join(folder, "s"))
                outcomes[line] = outcomes.get(line, 0) + 1
                if bystander.poll() is not None:
                    raise Failure(f"{language}, {name}: a token has ended another process ({bystander.returncode})")
        finally:
            bystander.kill()
    return outcomes


def _lie_as_receiver(language, name, fields, known, where):
    place = meet.Place(where)
    with End(language, "tokens", where, CAPACITY, LONGEST) as end:
        def change(frame, fds):
            frame = bytearray(frame)
            for at, value in fields.items():
                struct.pack_into("<I", frame, 16 + at, {**known, "the peer": end.pid}.get(value, value))
            return bytes(frame), fds

        mine = hello(wire.PAIR)
        mine.mailbox = Mailbox()
        try:
            channel = Channel(meet.accept(place, mine, FrameLie(name, OFFER, change), LIMIT))
        except IGNORED:
            return _outcome(end, name, end.hear())
        finally:
            place.release()
        end.expect(f"guest {os.getpid()}")
        post = Post(channel)
        try:
            for token in range(5):
                post.send(token)
        except ProcessLookupError:
            pass  # It has ended with the first.
        # Returns each token, or prints why it cannot.
        deadline = time.monotonic() + LIMIT
        while channel.peer.load(TOKENS) < 5 and end.lines.empty():
            if time.monotonic() > deadline:
                raise Failure(f"{end.name}, {name}: it has sent no token, and says nothing of that")
            time.sleep(0.002)
        channel.close()
        return _outcome(end, name, end.hear())


def _outcome(end, name, line):
    code = line.removeprefix("over ").split(" ")[0]
    if code not in CODES and code not in ENDS:
        raise Failure(f"{end.name}, {name}: {line!r} is no outcome")
    return code
