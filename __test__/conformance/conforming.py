"""A well-formed peer in every role, to which both implementations must conform."""

import fcntl
import os
import shutil
import subprocess
import tempfile
import time

from endpoints import HERE, LIMIT, PYTHON, Endpoint, Failure, pattern
from peer import attachments, calls, broadcast, handshake, memory, wire
from peer.members import Member
from peer.ring import ALIGNED, FIRST, LAST, WHOLE, Channel, Exposed
from peer.tokens import Mailbox, TokenSender
from peer.wire import Hello, Hooks

CAPACITY = 8192
LONGEST = 100_000
#: Around every limit: words, an eighth of the ring (a fragment), half of it (a record), all of it, and the longest.
SIZES = [near for size in (0, 8, 64, 2048, CAPACITY // 8, CAPACITY // 2, CAPACITY, LONGEST)
         for near in range(size - 9, size + 10, 3) if 0 <= near <= LONGEST]


def assert_equal(found, wanted, what):
    if found != wanted:
        raise Failure(f"{what}: {found!r:.80}, not {wanted!r:.80}")


def hello():
    return Hello(capacity=CAPACITY, longest=LONGEST, features=wire.BARRIERS if memory.register_barriers() else 0)


def accept_pair_guest(bound, *terms):
    """Accepts the guest of a pair. The address accepts no other, and is released with the channel."""
    parts = handshake.accept(bound, *terms)
    bound.stop_accepting()
    parts.release = bound.release
    return parts


def check_echoes(channel, sizes=SIZES):
    """Each message is echoed; then the half-close, and the end."""
    for number, size in enumerate(sizes):
        message = pattern(number, size)
        channel.send(message)
        assert_equal(channel.receive(), message, f"the echo of {size} bytes")
    unusual_fragments(channel)
    channel.end()
    assert_equal(channel.receive(), None, "after the end")
    assert_equal(channel.peer_ended(), True, "the peer's last word")
    channel.close()


def unusual_fragments(channel):
    """Every valid fragmentation: with and without ALIGNED, fragments of one byte, a short message in two records."""
    for length in (1, 7, 8, 9, 55, 56, 57, 100, 4000):
        message = pattern(length, length)
        channel.put(WHOLE | ALIGNED, message)
        assert_equal(channel.receive(), message, f"{length} bytes at a cache line")
    message = pattern(9, 9)
    channel.put(FIRST, (9).to_bytes(8, "little") + message[:1])
    for byte in message[1:8]:
        channel.put(ALIGNED, bytes([byte]))
    channel.put(LAST, message[8:])
    assert_equal(channel.receive(), message, "nine bytes, one by one")


def address_in(folder, kind):
    return os.path.join(folder, "s") if kind == "path" else f"@ringfence-conformance-{os.path.basename(folder)}"


def pair_host(language, folder, kind):
    """The Python peer is the host."""
    address = address_in(folder, kind)
    bound = handshake.BoundAddress(address)
    with Endpoint(language, "echo", address) as endpoint:
        parts = accept_pair_guest(bound, hello())
        endpoint.expect(f"guest {os.getpid()}")
        check_echoes(Channel(parts))
        endpoint.expect("over closed")
        endpoint.finish()
    assert_equal(os.listdir(folder), [], "what is left beside the path")


def pair_guest(language, folder, kind):
    """The Python peer is the guest, without barriers: both sides fence."""
    address = address_in(folder, kind)
    with Endpoint(language, "echo", address) as endpoint:
        mine = hello()
        mine.features = 0
        parts = retry_until_bound(lambda: handshake.guest(address, mine))
        endpoint.expect(f"host {os.getpid()}")
        check_echoes(Channel(parts))
        endpoint.expect("over closed")
        endpoint.finish()


def retry_until_bound(attempt):
    """Retries until the implementation has bound the address."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return attempt()
        except wire.Disconnected:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def stream(language, folder, kind):
    """A stream in one direction, without answers: each side sleeps at its end of the ring."""
    address = address_in(folder, kind)
    bound = handshake.BoundAddress(address)
    sizes = SIZES * 3
    with Endpoint(language, "produce", address, sizes=sizes) as endpoint:
        parts = accept_pair_guest(bound, hello())
        channel = Channel(parts)
        for number, size in enumerate(sizes):
            assert_equal(channel.receive(), pattern(number, size), f"message {number}")
        assert_equal(channel.receive(), None, "after the last")
        assert_equal(channel.peer_ended(), True, "the peer's last word")
        channel.end()
        channel.close()
        endpoint.expect(f"guest {os.getpid()}")
        endpoint.expect("sent")
        endpoint.expect("over closed")
        endpoint.finish()


def killed_peer(language, folder, kind):
    """Killed during a channel: its messages are read, then the loss is reported, and not as a clean end."""
    address = address_in(folder, kind)
    with Endpoint(language, "serve", address) as endpoint:
        endpoint.expect("bound")
        asked = hello()
        asked.meeting = wire.SERVICE
        channel = Channel(handshake.guest(address, asked))
        channel.send(b"x")
        assert_equal(channel.receive(), b"x", "the echo")
        endpoint.kill()
        assert_equal(channel.receive(), None, "after the kill")
        assert_equal(channel.peer_ended(), False, "the peer's last word")
        channel.close()


def close_without_end(language, folder, kind):
    """A peer that closes without an end after it has sent everything has ended cleanly."""
    address = address_in(folder, kind)
    bound = handshake.BoundAddress(address)
    with Endpoint(language, "close", address) as endpoint:
        parts = accept_pair_guest(bound, hello())
        endpoint.expect(f"guest {os.getpid()}")
        channel = Channel(parts)
        channel.send(b"x")
        assert_equal(channel.receive(), None, "after the close")
        assert_equal(channel.peer_ended(), True, "the peer's last word")
        channel.close()
        endpoint.finish()


def unread_messages(language, folder, kind):
    """A peer that sends, closes, and exits: its unread messages are still read from its memory."""
    address = address_in(folder, kind)
    bound = handshake.BoundAddress(address)
    sizes = [100, 0, 3000, 8, 2000]
    with Endpoint(language, "part", address, sizes=sizes) as endpoint:
        parts = accept_pair_guest(bound, hello())
        endpoint.expect(f"guest {os.getpid()}")
        channel = Channel(parts)
        channel.send(b"x")
        channel.doorbell.wait_for_end(60)
        endpoint.finish()
        for number, size in enumerate(sizes):
            assert_equal(channel.receive(), pattern(number, size), f"message {number} of one that is gone")
        assert_equal(channel.receive(), None, "after the last")
        assert_equal(channel.peer_ended(), False, "the peer's last word")
        channel.close()


def agents(language, folder, kind):
    """Three agents of one service, at once."""
    address = address_in(folder, kind)
    with Endpoint(language, "serve", address) as endpoint:
        endpoint.expect("bound")
        channels = []
        for _ in range(3):
            asked = hello()
            asked.meeting = wire.SERVICE
            channels.append(Channel(handshake.guest(address, asked)))
            endpoint.expect("accepted")
        for channel in channels:
            check_echoes(channel, SIZES[:20])
            endpoint.expect("closed")


def service(language, folder, kind):
    address = address_in(folder, kind)
    bound = handshake.BoundAddress(address)
    with Endpoint(language, "connect-each", address) as endpoint:
        endpoint.expect("bound")
        for _ in range(3):
            endpoint.write_line("")
            asked = hello()
            asked.meeting = wire.SERVICE
            channel = Channel(handshake.accept(bound, asked))
            channel.send(channel.receive())
            assert_equal(channel.receive(), None, "after the end")
            channel.end()
            channel.close()
            endpoint.expect("answered, closed")
    bound.release()


def wrong_meeting(language, folder, kind):
    """REFUSE, both ways: another meeting, and the text of it."""
    address = address_in(folder, kind)
    with Endpoint(language, "serve", address) as endpoint:
        endpoint.expect("bound")
        try:
            handshake.guest(address, hello())
            raise Failure("one of a pair was let in by a service")
        except wire.Refused as refusal:
            assert_equal(refusal.code, wire.DISAGREES, "the code of REFUSE")
        endpoint.expect("PROTOCOL")


def ring_too_large(language, folder, kind):
    """A ring above the limit is refused before anything of it is mapped."""
    address = address_in(folder, kind)
    with Endpoint(language, "serve", address) as endpoint:
        endpoint.expect("bound")
        asked = hello()
        asked.meeting, asked.capacity = wire.SERVICE, 2 * wire.MAX_PEER_CAPACITY
        with handshake.connect(address) as sock:
            try:
                handshake.exchange_hello_as_guest(sock, asked, None, time.monotonic() + LIMIT)
                raise Failure(f"{endpoint.name} takes a ring of {asked.capacity} bytes")
            except wire.Refused as refusal:
                assert_equal(refusal.code, wire.DISAGREES, "the code of REFUSE")
        endpoint.expect("PROTOCOL")


def exec_during_handshake(language, folder, kind):
    """The last check detects a guest that executes another program before READY."""
    address = address_in(folder, kind)
    other = shutil.copy(PYTHON, os.path.join(folder, "other"))
    with Endpoint(language, "serve", address) as endpoint:
        endpoint.expect("bound")
        words = [PYTHON, os.path.join(HERE, "exec_guest.py"), address, other]
        guest = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT)
        if guest.stdout.strip() not in ("Refused", "Disconnected"):
            raise Failure(f"{endpoint.name} has taken another program for its guest: {guest.stdout}{guest.stderr}")
        endpoint.expect("PEER_REFUSED")


def parent(language, folder, _kind):
    """A child that this process starts."""
    started = []

    def start(number, text):
        environment = {**os.environ, "RINGFENCE_LINE": text}
        started.append(Endpoint(language, "echo", "parent", pass_fds=[number], env=environment))
        return started[0].pid

    first_sock, pid = handshake.start_child(start)
    with started[0] as endpoint:
        check_echoes(Channel(handshake.host_on_child_line(first_sock, pid, hello())), SIZES[:20])
        endpoint.expect(f"guest {os.getpid()}")
        endpoint.expect("over closed")
        endpoint.finish()


def child(language, folder, _kind):
    """A Python child of the implementation."""
    with Endpoint(language, "produce", f"child:{os.path.join(HERE, 'child.py')}", sizes=[5, 50]) as endpoint:
        endpoint.read_line()
        lines = [endpoint.read_line() for _ in range(3)]
        if "child has read 2" not in lines or "over closed" not in lines:
            raise Failure(f"a child: {lines}")


def subscriber(language, folder, kind):
    """Every delivery, from the oldest and from now."""
    address = address_in(folder, kind)
    sizes = [0, 1, 8, 100, 511, 512, 1000, 1016] * 4
    with Endpoint(language, "publish-each", address, longest=1024, sizes=sizes) as endpoint:
        endpoint.expect("bound")
        for turn, (delivery, start) in enumerate([(broadcast.RELIABLE, broadcast.NOW), (broadcast.RELIABLE, broadcast.FROM_LATEST),
                                                  (broadcast.BEST_EFFORT, broadcast.NOW), (broadcast.LATEST, broadcast.NOW),
                                                  (broadcast.RELIABLE, broadcast.NOW)]):
            subscription = broadcast.Subscription(address, delivery, start, features=wire.BARRIERS)
            began = subscription.sequence
            found = []
            while (message := subscription.receive()) is not None:
                found.append(message)
            all_sent = [pattern(number, size) for number, size in enumerate(sizes)]
            if delivery == broadcast.RELIABLE:
                # 'latest' is the last message at READY, which may be any of these.
                wanted = all_sent if start == broadcast.NOW else (all_sent[-1:] + all_sent)[-max(1, len(found)):]
                assert_equal(found, wanted, "what a reliable subscriber gets")
            else:
                assert_equal(found[-1:], all_sent[-1:], "the last message")
            assert_equal(len(found) + subscription.lost, subscription.sequence - began, "handed out and lost")
            assert_equal(subscription.sequence, len(sizes) * (turn + 1), "the sequence")
            subscription.close()
            endpoint.expect("accepted")
            endpoint.expect("closed")


def parse_counts(line):
    """Parses the counts of read messages, lost messages, and attachments."""
    return [int(part.split()[0]) for part in line.split(", ")[:3]]


def publisher(language, folder, kind):
    """A publisher for each delivery; the reliable one has to wait."""
    address = address_in(folder, kind)
    for delivery in ("reliable", "best-effort", "latest"):
        source = broadcast.Publisher(address, capacity=8192, longest=1024)
        with Endpoint(language, "subscribe-each", address, longest=1024) as endpoint:
            endpoint.expect("bound")
            for number in range(40):
                source.send(pattern(number, number * 13 % 1024))
            endpoint.write_line(delivery)
            source.accept()
            for number in range(40, 200):
                source.send(pattern(number, number * 13 % 1024))
            source.end()
            line = endpoint.read_line()
            read, lost, _ = parse_counts(line)
            if not line.endswith("closed") or read < 1 or delivery == "reliable" and (lost != 0 or read < 160):
                raise Failure(f"{endpoint.name}, {delivery}: {line}")
        source.close()


def shm(language, folder, kind):
    """The other backing, from either side."""
    address = address_in(folder, kind)
    bound = handshake.BoundAddress(address)
    with Endpoint(language, "shm", address) as endpoint:
        mine = hello()
        mine.backing = wire.SHM
        parts = accept_pair_guest(bound, mine)
        endpoint.expect(f"guest {os.getpid()}")
        check_echoes(Channel(parts), SIZES[:20])
        endpoint.expect("over closed")
        endpoint.finish()
    with Endpoint(language, "shm", address) as endpoint:
        mine = hello()
        mine.backing = wire.SHM
        channel = Channel(retry_until_bound(lambda: handshake.guest(address, mine)))
        endpoint.expect(f"host {os.getpid()}")
        check_echoes(channel, SIZES[:20])
        endpoint.expect("over closed")
        endpoint.finish()


def tokens(language, folder, kind):
    """Each token is returned, increased by one; a token with another secret or mailbox is not."""
    address = address_in(folder, kind)
    bound = handshake.BoundAddress(address)
    with Endpoint(language, "tokens", address) as endpoint:
        mine = hello()
        mine.mailbox = Mailbox()
        parts = accept_pair_guest(bound, mine)
        endpoint.expect(f"guest {os.getpid()}")
        channel = Channel(parts)
        sender = TokenSender(channel)
        all_sent = [0, 1, (1 << 64) - 2, 1 << 63, *range(100, 200)]
        for number, token in enumerate(all_sent):
            if number % 10 == 0:
                sender.forge(token)
                sender.forge(token, mailbox=sender.offer.mailbox + 1, secret=sender.offer.secret)
            sender.send(token)
        found = [mine.mailbox.receive(60) for _ in all_sent]
        assert_equal(found, [token + 1 for token in all_sent], "the tokens that came back")
        # It is stored after the token was sent.
        deadline = time.monotonic() + 60
        while parts.peer.load(memory.TOKENS) != len(all_sent) and time.monotonic() < deadline:
            time.sleep(0.001)
        assert_equal(parts.peer.load(memory.TOKENS), len(all_sent), "the word of how many there are")
        channel.close(clean=True)
        endpoint.expect("over closed")
        endpoint.finish()


def tokens_before_end(language, folder, kind):
    """Tokens that were announced before an end are reported before the end, however close they are."""
    address = address_in(folder, kind)
    with Endpoint(language, "count-tokens", address) as endpoint:
        endpoint.expect("bound")
        for turn in range(100):
            asked = hello()
            asked.meeting = wire.SERVICE
            channel = Channel(handshake.guest(address, asked))
            endpoint.expect("accepted")
            sender = TokenSender(channel)
            for token in range(turn % 8 + 1):
                sender.send(token)
            if turn % 2:
                channel.send(b"x")
            if turn % 3:
                channel.end()
            channel.close()
            assert_equal(endpoint.read_line().split(",")[0], f"{sender.sent} tokens", "what was heard by the end")


def busy_event_loop(language, folder, kind):
    """Messages that take half a millisecond each and never run out do not block the event loop."""
    address = address_in(folder, kind)
    bound = handshake.BoundAddress(address)
    with Endpoint(language, "busy", address) as endpoint:
        parts = accept_pair_guest(bound, hello())
        endpoint.expect(f"guest {os.getpid()}")
        channel = Channel(parts)
        for _ in range(2000):
            channel.send(b"work")
        channel.end()
        assert_equal(channel.receive(), None, "after the end")
        channel.close()
        ticks = int(endpoint.read_line().split()[0])
        # More than a second of work, in which about two hundred ticks are due.
        if ticks < 10:
            raise Failure(f"{endpoint.name}: a timer of 5 ms has fired {ticks} times in 2,000 messages")
        endpoint.expect("over closed")
        endpoint.finish()


class KeepObject(Hooks):
    """Keeps a descriptor of the peer's object, which it should close."""

    def reached(self, stage, state):
        if stage == "object":
            self.kept = os.dup(state)


def implementation_object_opened(language, folder, kind):
    """A process opens the implementation's object: it reports that, and unread messages are lost."""
    address = address_in(folder, kind)
    bound = handshake.BoundAddress(address)
    keeps = KeepObject()
    with Endpoint(language, "echo", address) as endpoint:
        parts = accept_pair_guest(bound, hello(), keeps)
        endpoint.expect(f"guest {os.getpid()}")
        channel = Channel(parts)
        channel.send(b"x")
        assert_equal(channel.receive(), b"x", "the echo")
        try:
            os.close(os.open(f"/proc/self/fd/{keeps.kept}", os.O_RDONLY | os.O_NONBLOCK))
        except BlockingIOError:
            pass  # the kernel waits for the owner of the lease
        os.close(keeps.kept)
        try:
            while channel.receive() is not None:
                pass
            raise Failure(f"{endpoint.name} has not reported that its object was opened")
        except Exposed:
            pass
        assert_equal(bytes(parts.peer.bytes[memory.RING:]), bytes(parts.peer.size - memory.RING), "what is left of the ring")
        channel.release()
        assert_equal(endpoint.read_line().split()[0], "OBJECT_EXPOSED", "its report")


def python_object_opened(language, folder, kind):
    """This peer's object was opened: the implementation drops unread messages."""
    address = address_in(folder, kind)
    bound = handshake.BoundAddress(address)
    with Endpoint(language, "echo", address) as endpoint:
        parts = accept_pair_guest(bound, hello())
        endpoint.expect(f"guest {os.getpid()}")
        channel = Channel(parts)
        channel.send(b"x")
        assert_equal(channel.receive(), b"x", "the echo")
        channel.expose()
        assert_equal(endpoint.read_line().split()[0], "OBJECT_EXPOSED", "its report")


def members(language, folder, kind):
    """The address moves to the implementation and back, by leaving and by a kill, and is never free."""
    address = address_in(folder, kind)
    member = Member(address, hello())
    # Bound before the implementation connects, which is then its guest.
    member.bound = handshake.BoundAddress(address)
    for word in ("leave", "kill"):
        with Endpoint(language, "member", address) as endpoint:
            member.wait_as_host()
            endpoint.expect("guest")
            expect_greeting(endpoint, member)
            assert_equal(member.leave(), True, "whether the guest has taken over")
            endpoint.expect("host")
            member.join_as_guest()
            expect_greeting(endpoint, member)
            if word == "leave":
                # It leaves at its first message.
                member.channel.send(b"x")
                member.succeed()
                endpoint.expect("left")
                endpoint.finish()
            else:
                endpoint.kill()
                member.succeed()
    assert_equal(sorted(os.listdir(folder)), ["s", "s.lock"] if kind == "path" else [], "the files at the address")
    member.release()
    assert_equal(os.listdir(folder), [], "what is left beside the path")


def expect_greeting(endpoint, member):
    endpoint.expect(f"channel {os.getpid()}")
    assert_equal(member.channel.receive(), b"hello", "its greeting")


def call_frames(language, folder, kind):
    """Both sides call, cancel and serve, beside messages."""
    address = address_in(folder, kind)
    with Endpoint(language, "serve-calls", address) as endpoint:
        endpoint.expect("bound")
        asks = hello()
        asks.meeting = wire.SERVICE
        channel = Channel(handshake.guest(address, asks))
        endpoint.expect("accepted")
        assert_equal(calls.receive_first(channel), calls.FIRST_FRAMES, "what it asks")
        calls.send(channel, calls.frame(calls.CANCELLED, 1))
        number = 0
        for size in (0, 1, 8, 500, CAPACITY // 2 - 16, CAPACITY // 2 - 15, CAPACITY, LONGEST // 2 - 16):
            body = pattern(number, size)
            calls.send(channel, calls.frame(calls.REQUEST, number, body, remaining=60_000))
            assert_equal(calls.receive(channel), (calls.REPLY, number, body + body), f"the reply to {size} bytes")
            number += 1
        channel.send(b"a message")
        assert_equal(calls.receive(channel), (None, None, b"a message"), "the echo")
        calls.send(channel, calls.frame(calls.REQUEST, number, b"fail"))
        kind, failed, body = calls.receive(channel)
        assert_equal((kind, failed, calls.read_texts(body)), (calls.ERROR, number, (b"RangeError", b"not today", b"E_NO")), "its error")
        calls.send(channel, calls.frame(calls.REQUEST, number + 1, b"hang"))
        calls.send(channel, calls.frame(calls.CANCEL, number + 1))
        assert_equal(calls.receive(channel), (calls.CANCELLED, number + 1, b""), "the end of a cancelled call")
        for more in range(number + 2, number + 100):
            calls.send(channel, calls.frame(calls.REQUEST, more, pattern(more, 9)))
        replies = [calls.receive(channel) for _ in range(98)]
        wanted = [(calls.REPLY, more, 2 * pattern(more, 9)) for more in range(number + 2, number + 100)]
        assert_equal(sorted(replies), wanted, "the replies to many at once")
        calls.send(channel, calls.frame(calls.REPLY, 0, b"answer"))
        channel.end()
        assert_equal(channel.receive(), None, "after the end")
        channel.close()
        endpoint.expect("closed, asked answer")


#: The limits of the implementation: both kinds, up to 4, with up to 1 MiB.
ACCEPTED = [1, 1, 4, 1 << 20]
BOTH = attachments.SEALED | attachments.DESCRIPTORS
F_SETPIPE_SZ = 1031


def with_attachments(address, features=BOTH, count=4, size=1 << 20):
    """A channel with a service, as an agent that accepts these attachments."""
    asks = hello()
    asks.meeting = wire.SERVICE
    asks.features |= features
    asks.max_attachments, asks.max_attached_bytes = count, size
    return Channel(handshake.guest(address, asks), attachments.Parcels(asks))


def echoed_attachments(language, folder, kind):
    """Sealed buffers and pipes, alone and together, and more than each end accepts at once."""
    address = address_in(folder, kind)
    with Endpoint(language, "echo-attachments", address, sizes=ACCEPTED) as endpoint:
        endpoint.expect("bound")
        channel = with_attachments(address)
        endpoint.expect("accepted")
        number = 0
        for size in (0, 1, 8, CAPACITY, LONGEST):
            for attached in ([0], [1], [4096], [100_000], [5, 4097, 0, 1 << 19], [None], [None, 3, None]):
                check_attachment_echo(channel, pattern(number, size), attached)
                number += 1
        contents = [os.urandom(1 << 18) for _ in range(20)]
        # Both ends wait: each holds 4.
        for at, content in enumerate(contents):
            sent = attachments.seal(content)
            attachments.send(channel, bytes([at]), [(len(content), sent)])
            os.close(sent)
            if at >= 6:
                check_returned(channel, bytes([at - 6]), [contents[at - 6]])
        for at in range(14, 20):
            check_returned(channel, bytes([at]), [contents[at]])
        channel.end()
        assert_equal(channel.receive(), None, "after the end")
        channel.close()
        endpoint.expect("closed")


def check_attachment_echo(channel, message, attached):
    """Sizes of sealed buffers, and None for a pipe."""
    contents = [None if size is None else os.urandom(size) for size in attached]
    pipes = [os.pipe() for size in attached if size is None]
    unsent = iter(pipes)
    sent = [(attachments.NO_SIZE, next(unsent)[1]) if content is None else (len(content), attachments.seal(content))
            for content in contents]
    attachments.send(channel, message, sent)
    for _, fd in sent:
        os.close(fd)
    for (reads, _), writes in zip(pipes, check_returned(channel, message, contents)):
        os.write(writes, b"through the pipe")
        os.close(writes)
        # To the end: no process holds the other end.
        with open(reads, "rb") as pipe:
            assert_equal(pipe.read(), b"through the pipe", "what a pipe brings")


def check_returned(channel, message, contents):
    """Checks the echo of a message, and returns the descriptors that came with it."""
    assert_equal(channel.receive(), message, "the echo of a message with attachments")
    found = channel.reader.attached
    assert_equal([word for word, _ in found], [attachments.NO_SIZE if content is None else len(content) for content in contents],
         "the sizes of what came back")
    for (size, fd), content in zip(found, contents):
        if content is not None:
            assert_equal(attachments.unseal(fd, size), content, "a sealed buffer that came back")
    return [fd for word, fd in found if word == attachments.NO_SIZE]


def subscriber_attachments(language, folder, kind):
    """Each message of a publisher has its own attachments; a reliable subscriber gets all of them."""
    address = address_in(folder, kind)
    sizes = [0, 1, 8, 100, 511, 512, 1000, 1016] * 8
    with Endpoint(language, "publish-each", address, longest=1024, sizes=sizes) as endpoint:
        endpoint.expect("bound")
        baseline = None
        for delivery in (broadcast.RELIABLE, broadcast.BEST_EFFORT, broadcast.LATEST):
            subscription = broadcast.Subscription(address, delivery, features=wire.BARRIERS | BOTH, max_attachments=4,
                                             max_attached_bytes=1 << 20)
            while subscription.receive() is not None:
                number = (subscription.sequence - 1) % len(sizes)
                found = check_published(subscription.attached, number)
                if delivery == broadcast.RELIABLE:
                    assert_equal(found, number % 3, f"the attachments of message {number}")
            subscription.close()
            endpoint.expect("accepted")
            endpoint.expect("closed")
            baseline = baseline or endpoint.resources()
        endpoint.wait_for_resources(baseline)


def check_published(attached, number):
    """Checks the attachments of a message, and returns their number."""
    words = [word for word, _ in attached]
    if words not in ([], [attachments.NO_SIZE, 5000][:number % 3]):
        raise Failure(f"message {number} has attachments {words}")
    for word, fd in attached:
        if word == attachments.NO_SIZE:
            assert_equal(os.path.samestat(os.fstat(fd), os.stat(PYTHON)), True, "whether it is the same file")
            os.close(fd)
        else:
            assert_equal(attachments.unseal(fd, word), pattern(number, 5000), f"the buffer of message {number}")
    return len(attached)


def publisher_attachments(language, folder, kind):
    """A publisher that attaches to the messages of subscribers of each delivery, and replaces them before it publishes."""
    address = address_in(folder, kind)
    for delivery in ("reliable", "best-effort", "latest"):
        source = broadcast.Publisher(address, capacity=8192, longest=1024)
        reads, writes = os.pipe()
        fcntl.fcntl(writes, F_SETPIPE_SZ, 1 << 20)
        with Endpoint(language, "subscribe-each", address, longest=1024, sizes=ACCEPTED) as endpoint:
            endpoint.expect("bound")
            endpoint.write_line(delivery)
            source.accept()
            sent = [publish(source, number, writes) for number in range(200)]
            os.close(writes)
            source.end()
            line = endpoint.read_line()
            with open(reads, "rb") as pipe:
                written = pipe.read()
            read, lost, attached = parse_counts(line)
            if not line.endswith("closed") or read + lost > 200 or read < 1:
                raise Failure(f"{endpoint.name}, {delivery}: {line}")
            if delivery == "reliable":
                assert_equal((read, attached), (200, sum(count for count, _ in sent)), "messages and attachments")
                assert_equal(written, b"".join(each for _, each in sent), "what came through the pipe")
            # Each part belongs to one message, and they have the order of the messages.
            for _, each in sent:
                written = written.removeprefix(each) if each else written
            assert_equal(written, b"", "what came through the pipe beside that")
        source.close()


def publish(source, number, pipe):
    """Publishes a message; returns the number of its attachments, and what its subscriber writes into the pipe."""
    message = number.to_bytes(4, "little") + pattern(number, number * 13 % 1000)
    if number % 7 < 2:
        replaced = attachments.seal(b"replaced")
        source.send_parcels([(8, replaced), (attachments.NO_SIZE, pipe)])
        os.close(replaced)
    contents = [pattern(number, number * 17), b""] if number % 3 == 2 else []
    sealed = [(len(content), attachments.seal(content)) for content in contents]
    attached = [*sealed, (attachments.NO_SIZE, pipe)] if number % 3 else []
    source.send(message, attached)
    attachments.close(sealed)
    return len(attached), message + b"".join(contents) if attached else b""


CASES = [pair_host, pair_guest, stream, killed_peer, close_without_end, unread_messages, agents, service, wrong_meeting, ring_too_large, exec_during_handshake,
         parent, child, subscriber, publisher, shm, tokens, tokens_before_end, implementation_object_opened, python_object_opened, members, busy_event_loop, call_frames,
         echoed_attachments, subscriber_attachments, publisher_attachments]
# Cases that only one language has.
ONLY = {child: "node", busy_event_loop: "node"}  # the Rust program starts Node children alone, and has no event loop


# Cases that run at both kinds of address.
MEETINGS = [pair_host, pair_guest, members]


def run(languages):
    for language in languages:
        for case in CASES:
            if ONLY.get(case, language) != language:
                continue
            for kind in ("path", "abstract") if case in MEETINGS else ("path",):
                with tempfile.TemporaryDirectory(prefix="ringfence-") as folder:
                    case(language, folder, kind)
            print(f"  {language}: {case.__name__.replace('_', ' ')}", flush=True)
