"""The other end keeps to the page, in every role that it has; so must the real ends."""

import fcntl
import os
import shutil
import subprocess
import tempfile
import time

from ends import HERE, LIMIT, PYTHON, End, Failure, pattern
from other_end import attachments, calls, many, meet, memory, wire
from other_end.members import Member
from other_end.ring import ALIGNED, FIRST, LAST, WHOLE, Channel, Exposed
from other_end.tokens import Mailbox, Post
from other_end.wire import Hello, Honest

CAPACITY = 8192
LONGEST = 100_000
#: About every limit: words, an eighth of the ring (a fragment), half of it (a record), all of it, and the longest.
SIZES = [near for size in (0, 8, 64, 2048, CAPACITY // 8, CAPACITY // 2, CAPACITY, LONGEST)
         for near in range(size - 9, size + 10, 3) if 0 <= near <= LONGEST]


def same(found, wanted, what):
    if found != wanted:
        raise Failure(f"{what}: {found!r:.80}, not {wanted!r:.80}")


def hello():
    return Hello(capacity=CAPACITY, longest=LONGEST, features=wire.BARRIERS if memory.register_barriers() else 0)


def accepted(place, *terms):
    """The guest of a pair: no other comes after it, and the address is held until the channel ends."""
    met = meet.accept(place, *terms)
    place.shut()
    met.release = place.release
    return met


def echoes(channel, sizes=SIZES):
    """Each message is echoed; then the half-close, and the end."""
    for number, size in enumerate(sizes):
        message = pattern(number, size)
        channel.send(message)
        same(channel.receive(), message, f"the echo of {size} bytes")
    unusual_cuts(channel)
    channel.end()
    same(channel.receive(), None, "after the end")
    same(channel.said_end(), True, "the peer's last word")
    channel.close()


def unusual_cuts(channel):
    """Every cut that keeps to the page: with ALIGNED and without, parts of one byte, a short message in two records."""
    for length in (1, 7, 8, 9, 55, 56, 57, 100, 4000):
        message = pattern(length, length)
        channel.put(WHOLE | ALIGNED, message)
        same(channel.receive(), message, f"{length} bytes at a cache line")
    message = pattern(9, 9)
    channel.put(FIRST, (9).to_bytes(8, "little") + message[:1])
    for byte in message[1:8]:
        channel.put(ALIGNED, bytes([byte]))
    channel.put(LAST, message[8:])
    same(channel.receive(), message, "nine bytes, one by one")


def address(folder, kind):
    return os.path.join(folder, "s") if kind == "path" else f"@ringfence-conformance-{os.path.basename(folder)}"


def host_of_a_pair(language, folder, kind):
    """The other end is the host."""
    where = address(folder, kind)
    place = meet.Place(where)
    with End(language, "echo", where) as end:
        met = accepted(place, hello())
        end.expect(f"guest {os.getpid()}")
        echoes(Channel(met))
        end.expect("over closed")
        end.finish()
    same(os.listdir(folder), [], "what is left beside the path")


def guest_of_a_pair(language, folder, kind):
    """The other end is the guest, without barriers: both fence."""
    where = address(folder, kind)
    with End(language, "echo", where) as end:
        mine = hello()
        mine.features = 0
        met = patient(lambda: meet.guest(where, mine))
        end.expect(f"host {os.getpid()}")
        echoes(Channel(met))
        end.expect("over closed")
        end.finish()


def patient(attempt):
    """Until the end has bound the address."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return attempt()
        except wire.Lost:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def reader(language, folder, kind):
    """A stream in one direction: no answer is waited for, so that both rings' ends are slept at."""
    where = address(folder, kind)
    place = meet.Place(where)
    sizes = SIZES * 3
    with End(language, "produce", where, sizes=sizes) as end:
        met = accepted(place, hello())
        channel = Channel(met)
        for number, size in enumerate(sizes):
            same(channel.receive(), pattern(number, size), f"message {number}")
        same(channel.receive(), None, "after the last")
        same(channel.said_end(), True, "the peer's last word")
        channel.end()
        channel.close()
        end.expect(f"guest {os.getpid()}")
        end.expect("sent")
        end.expect("over closed")
        end.finish()


def cut_off(language, folder, kind):
    """Killed during a channel: its messages are read, then the loss is reported, and not as a clean end."""
    where = address(folder, kind)
    with End(language, "serve", where) as end:
        end.expect("bound")
        asked = hello()
        asked.meeting = wire.SERVICE
        channel = Channel(meet.guest(where, asked))
        channel.send(b"x")
        same(channel.receive(), b"x", "the echo")
        end.kill()
        same(channel.receive(), None, "after the kill")
        same(channel.said_end(), False, "the peer's last word")
        channel.close()


def closed_early(language, folder, kind):
    """A peer that closes without an end after it has sent everything has ended cleanly."""
    where = address(folder, kind)
    place = meet.Place(where)
    with End(language, "close", where) as end:
        met = accepted(place, hello())
        end.expect(f"guest {os.getpid()}")
        channel = Channel(met)
        channel.send(b"x")
        same(channel.receive(), None, "after the close")
        same(channel.said_end(), True, "the peer's last word")
        channel.close()
        end.finish()


def unread(language, folder, kind):
    """A peer that sends, closes, and exits: its unread messages are still read from its memory."""
    where = address(folder, kind)
    place = meet.Place(where)
    sizes = [100, 0, 3000, 8, 2000]
    with End(language, "part", where, sizes=sizes) as end:
        met = accepted(place, hello())
        end.expect(f"guest {os.getpid()}")
        channel = Channel(met)
        channel.send(b"x")
        channel.bell.wait_for_end(60)
        end.finish()
        for number, size in enumerate(sizes):
            same(channel.receive(), pattern(number, size), f"message {number} of one that is gone")
        same(channel.receive(), None, "after the last")
        same(channel.said_end(), False, "the peer's last word")
        channel.close()


def agent(language, folder, kind):
    """Three agents of one service, at once."""
    where = address(folder, kind)
    with End(language, "serve", where) as end:
        end.expect("bound")
        channels = []
        for _ in range(3):
            asked = hello()
            asked.meeting = wire.SERVICE
            channels.append(Channel(meet.guest(where, asked)))
            end.expect("in")
        for channel in channels:
            echoes(channel, SIZES[:20])
            end.expect("closed")


def service(language, folder, kind):
    where = address(folder, kind)
    place = meet.Place(where)
    with End(language, "visit", where) as end:
        end.expect("bound")
        for _ in range(3):
            end.say("")
            asked = hello()
            asked.meeting = wire.SERVICE
            channel = Channel(meet.accept(place, asked))
            channel.send(channel.receive())
            same(channel.receive(), None, "after the end")
            channel.end()
            channel.close()
            end.expect("answered, closed")
    place.release()


def refused(language, folder, kind):
    """REFUSE, both ways: another meeting, and the text of it."""
    where = address(folder, kind)
    with End(language, "serve", where) as end:
        end.expect("bound")
        try:
            meet.guest(where, hello())
            raise Failure("one of a pair was let in by a service")
        except wire.Refused as refusal:
            same(refusal.code, wire.DISAGREES, "the code of REFUSE")
        end.expect("PROTOCOL")


def too_large(language, folder, kind):
    """A ring above the limit is refused before anything of it is mapped."""
    where = address(folder, kind)
    with End(language, "serve", where) as end:
        end.expect("bound")
        asked = hello()
        asked.meeting, asked.capacity = wire.SERVICE, 2 * wire.MAX_PEER_CAPACITY
        with meet.dial(where) as sock:
            try:
                meet.begin_as_guest(sock, asked, None, time.monotonic() + LIMIT)
                raise Failure(f"{end.name} takes a ring of {asked.capacity} bytes")
            except wire.Refused as refusal:
                same(refusal.code, wire.DISAGREES, "the code of REFUSE")
        end.expect("PROTOCOL")


def turncoat(language, folder, kind):
    """A guest that becomes another program between the first look and READY is found by the last look."""
    where = address(folder, kind)
    other = shutil.copy(PYTHON, os.path.join(folder, "other"))
    with End(language, "serve", where) as end:
        end.expect("bound")
        words = [PYTHON, os.path.join(HERE, "turncoat.py"), where, other]
        guest = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT)
        if guest.stdout.strip() not in ("Refused", "Lost"):
            raise Failure(f"{end.name} has taken another program for its guest: {guest.stdout}{guest.stderr}")
        end.expect("PEER_REFUSED")


def parent(language, folder, _kind):
    """A child that this process starts."""
    started = []

    def start(number, text):
        environment = {**os.environ, "RINGFENCE_LINE": text}
        started.append(End(language, "echo", "parent", pass_fds=[number], env=environment))
        return started[0].pid

    agreed, pid = meet.bequeath(start)
    with started[0] as end:
        echoes(Channel(meet.host_of_child(agreed, pid, hello())), SIZES[:20])
        end.expect(f"guest {os.getpid()}")
        end.expect("over closed")
        end.finish()


def child(language, folder, _kind):
    """A child of the real end: this program again, which is asked to echo."""
    with End(language, "produce", f"child:{os.path.join(HERE, 'child.py')}", sizes=[5, 50]) as end:
        end.hear()
        lines = [end.hear() for _ in range(3)]
        if "child has read 2" not in lines or "over closed" not in lines:
            raise Failure(f"a child: {lines}")


def subscriber(language, folder, kind):
    """Every delivery, from the oldest and from now."""
    where = address(folder, kind)
    sizes = [0, 1, 8, 100, 511, 512, 1000, 1016] * 4
    with End(language, "broadcast", where, longest=1024, sizes=sizes) as end:
        end.expect("bound")
        for turn, (delivery, start) in enumerate([(many.RELIABLE, many.NOW), (many.RELIABLE, many.FROM_LATEST),
                                                  (many.BEST_EFFORT, many.NOW), (many.LATEST, many.NOW),
                                                  (many.RELIABLE, many.NOW)]):
            subscription = many.Subscription(where, delivery, start, features=wire.BARRIERS)
            began = subscription.sequence
            found = []
            while (message := subscription.receive()) is not None:
                found.append(message)
            all_sent = [pattern(number, size) for number, size in enumerate(sizes)]
            if delivery == many.RELIABLE:
                # 'latest' is the last message that there is once READY has come, which may be any of these.
                wanted = all_sent if start == many.NOW else (all_sent[-1:] + all_sent)[-max(1, len(found)):]
                same(found, wanted, "what a reliable subscriber gets")
            else:
                same(found[-1:], all_sent[-1:], "the last message")
            same(len(found) + subscription.lost, subscription.sequence - began, "handed out and lost")
            same(subscription.sequence, len(sizes) * (turn + 1), "the sequence")
            subscription.close()
            end.expect("in")
            end.expect("closed")


def counted(line):
    """What a real subscriber says of messages read, of those lost, and of attachments."""
    return [int(part.split()[0]) for part in line.split(", ")[:3]]


def publisher(language, folder, kind):
    """A publisher for each delivery; the reliable one is made to wait."""
    where = address(folder, kind)
    for delivery in ("reliable", "best-effort", "latest"):
        source = many.Publisher(where, capacity=8192, longest=1024)
        with End(language, "follow", where, longest=1024) as end:
            end.expect("bound")
            for number in range(40):
                source.send(pattern(number, number * 13 % 1024))
            end.say(delivery)
            source.accept()
            for number in range(40, 200):
                source.send(pattern(number, number * 13 % 1024))
            source.end()
            line = end.hear()
            read, lost, _ = counted(line)
            if not line.endswith("closed") or read < 1 or delivery == "reliable" and (lost != 0 or read < 160):
                raise Failure(f"{end.name}, {delivery}: {line}")
        source.close()


def over_shm(language, folder, kind):
    """The other backing, from either side."""
    where = address(folder, kind)
    place = meet.Place(where)
    with End(language, "shm", where) as end:
        mine = hello()
        mine.backing = wire.SHM
        met = accepted(place, mine)
        end.expect(f"guest {os.getpid()}")
        echoes(Channel(met), SIZES[:20])
        end.expect("over closed")
        end.finish()
    with End(language, "shm", where) as end:
        mine = hello()
        mine.backing = wire.SHM
        channel = Channel(patient(lambda: meet.guest(where, mine)))
        end.expect(f"host {os.getpid()}")
        echoes(channel, SIZES[:20])
        end.expect("over closed")
        end.finish()


def tokens(language, folder, kind):
    """Each token is returned, increased by one; a token with another secret or mailbox is not."""
    where = address(folder, kind)
    place = meet.Place(where)
    with End(language, "tokens", where) as end:
        mine = hello()
        mine.mailbox = Mailbox()
        met = accepted(place, mine)
        end.expect(f"guest {os.getpid()}")
        channel = Channel(met)
        post = Post(channel)
        all_sent = [0, 1, (1 << 64) - 2, 1 << 63, *range(100, 200)]
        for number, token in enumerate(all_sent):
            if number % 10 == 0:
                post.forge(token)
                post.forge(token, mailbox=post.offer.mailbox + 1, secret=post.offer.secret)
            post.send(token)
        found = [mine.mailbox.take(60) for _ in all_sent]
        same(found, [token + 1 for token in all_sent], "the tokens that came back")
        # It is stored after the token was sent.
        deadline = time.monotonic() + 60
        while met.peer.load(memory.TOKENS) != len(all_sent) and time.monotonic() < deadline:
            time.sleep(0.001)
        same(met.peer.load(memory.TOKENS), len(all_sent), "the word of how many there are")
        channel.close(clean=True)
        end.expect("over closed")
        end.finish()


def last_tokens(language, folder, kind):
    """Tokens that were announced before an end are reported before the end, however close they are."""
    where = address(folder, kind)
    with End(language, "hear", where) as end:
        end.expect("bound")
        for turn in range(100):
            asked = hello()
            asked.meeting = wire.SERVICE
            channel = Channel(meet.guest(where, asked))
            end.expect("in")
            post = Post(channel)
            for token in range(turn % 8 + 1):
                post.send(token)
            if turn % 2:
                channel.send(b"x")
            if turn % 3:
                channel.end()
            channel.close()
            same(end.hear().split(",")[0], f"{post.sent} tokens", "what was heard by the end")


def busy(language, folder, kind):
    """There is always a message, and each takes half a millisecond: the event loop turns all the same."""
    where = address(folder, kind)
    place = meet.Place(where)
    with End(language, "busy", where) as end:
        met = accepted(place, hello())
        end.expect(f"guest {os.getpid()}")
        channel = Channel(met)
        for _ in range(2000):
            channel.send(b"work")
        channel.end()
        same(channel.receive(), None, "after the end")
        channel.close()
        ticks = int(end.hear().split()[0])
        # More than a second of work, in which about two hundred ticks are due.
        if ticks < 10:
            raise Failure(f"{end.name}: a timer of 5 ms has fired {ticks} times in 2,000 messages")
        end.expect("over closed")
        end.finish()


class Keeps(Honest):
    """Keeps a descriptor of the peer's object, which it should close."""

    def before(self, moment, end):
        if moment == "object":
            self.kept = os.dup(end)


def opened_here(language, folder, kind):
    """A process opens the real end's object: the real end reports it, and unread messages are lost."""
    where = address(folder, kind)
    place = meet.Place(where)
    keeps = Keeps()
    with End(language, "echo", where) as end:
        met = accepted(place, hello(), keeps)
        end.expect(f"guest {os.getpid()}")
        channel = Channel(met)
        channel.send(b"x")
        same(channel.receive(), b"x", "the echo")
        try:
            os.close(os.open(f"/proc/self/fd/{keeps.kept}", os.O_RDONLY | os.O_NONBLOCK))
        except BlockingIOError:
            pass  # the kernel waits for the owner of the lease
        os.close(keeps.kept)
        try:
            while channel.receive() is not None:
                pass
            raise Failure(f"{end.name} has said nothing of its object being opened")
        except Exposed:
            pass
        same(bytes(met.peer.bytes[memory.RING:]), bytes(met.peer.size - memory.RING), "what is left of the ring")
        channel.release()
        same(end.hear().split()[0], "OBJECT_EXPOSED", "what it says")


def opened_there(language, folder, kind):
    """This end's object was opened: the real end drops what it has not read."""
    where = address(folder, kind)
    place = meet.Place(where)
    with End(language, "echo", where) as end:
        met = accepted(place, hello())
        end.expect(f"guest {os.getpid()}")
        channel = Channel(met)
        channel.send(b"x")
        same(channel.receive(), b"x", "the echo")
        channel.expose()
        same(end.hear().split()[0], "OBJECT_EXPOSED", "what it says")


def members(language, folder, kind):
    """The address goes from this end to the real one and back, by leaving and by a kill, and is never free."""
    where = address(folder, kind)
    member = Member(where, hello())
    # Bound before the end connects, which is then its guest.
    member.place = meet.Place(where)
    for word in ("leave", "kill"):
        with End(language, "member", where) as end:
            member.wait_as_host()
            end.expect("guest")
            greeted(end, member)
            same(member.leave(), True, "whether the guest has taken the place over")
            end.expect("host")
            member.come_as_guest()
            greeted(end, member)
            if word == "leave":
                # It leaves at its first message.
                member.channel.send(b"x")
                member.succeed()
                end.expect("left")
                end.finish()
            else:
                end.kill()
                member.succeed()
    same(sorted(os.listdir(folder)), ["s", "s.lock"] if kind == "path" else [], "the files of the place")
    member.give_up()
    same(os.listdir(folder), [], "what is left beside the path")


def greeted(end, member):
    end.expect(f"channel {os.getpid()}")
    same(member.channel.receive(), b"hello", "its greeting")


def calling(language, folder, kind):
    """Both sides call, cancel and serve, beside messages."""
    where = address(folder, kind)
    with End(language, "attend", where) as end:
        end.expect("bound")
        asks = hello()
        asks.meeting = wire.SERVICE
        channel = Channel(meet.guest(where, asks))
        end.expect("in")
        same(calls.asked(channel), calls.ASKED, "what it asks")
        calls.send(channel, calls.frame(calls.CANCELLED, 1))
        number = 0
        for size in (0, 1, 8, 500, CAPACITY // 2 - 16, CAPACITY // 2 - 15, CAPACITY, LONGEST // 2 - 16):
            body = pattern(number, size)
            calls.send(channel, calls.frame(calls.REQUEST, number, body, remaining=60_000))
            same(calls.receive(channel), (calls.REPLY, number, body + body), f"the reply to {size} bytes")
            number += 1
        channel.send(b"a message")
        same(calls.receive(channel), (None, None, b"a message"), "the echo")
        calls.send(channel, calls.frame(calls.REQUEST, number, b"fail"))
        kind, failed, body = calls.receive(channel)
        same((kind, failed, calls.read_texts(body)), (calls.ERROR, number, (b"RangeError", b"not today", b"E_NO")), "its error")
        calls.send(channel, calls.frame(calls.REQUEST, number + 1, b"hang"))
        calls.send(channel, calls.frame(calls.CANCEL, number + 1))
        same(calls.receive(channel), (calls.CANCELLED, number + 1, b""), "the end of a cancelled call")
        for more in range(number + 2, number + 100):
            calls.send(channel, calls.frame(calls.REQUEST, more, pattern(more, 9)))
        replies = [calls.receive(channel) for _ in range(98)]
        wanted = [(calls.REPLY, more, 2 * pattern(more, 9)) for more in range(number + 2, number + 100)]
        same(sorted(replies), wanted, "the replies to many at once")
        calls.send(channel, calls.frame(calls.REPLY, 0, b"answer"))
        channel.end()
        same(channel.receive(), None, "after the end")
        channel.close()
        end.expect("closed, asked answer")


#: The limits of the real end: both kinds, up to 4, with up to 1 MiB.
ACCEPTED = [1, 1, 4, 1 << 20]
BOTH = attachments.SEALED | attachments.DESCRIPTORS
F_SETPIPE_SZ = 1031


def with_attachments(where, features=BOTH, count=4, size=1 << 20):
    """A channel with a service, whose end accepts these attachments."""
    asks = hello()
    asks.meeting = wire.SERVICE
    asks.features |= features
    asks.max_attachments, asks.max_attached_bytes = count, size
    return Channel(meet.guest(where, asks), attachments.Parcels(asks))


def attaching(language, folder, kind):
    """Sealed buffers and pipes, alone and together, and more than each end accepts at once."""
    where = address(folder, kind)
    with End(language, "attach", where, sizes=ACCEPTED) as end:
        end.expect("bound")
        channel = with_attachments(where)
        end.expect("in")
        number = 0
        for size in (0, 1, 8, CAPACITY, LONGEST):
            for attached in ([0], [1], [4096], [100_000], [5, 4097, 0, 1 << 19], [None], [None, 3, None]):
                passed_and_returned(channel, pattern(number, size), attached)
                number += 1
        contents = [os.urandom(1 << 18) for _ in range(20)]
        # Both ends wait: each holds 4.
        for at, content in enumerate(contents):
            sent = attachments.seal(content)
            attachments.send(channel, bytes([at]), [(len(content), sent)])
            os.close(sent)
            if at >= 6:
                returned(channel, bytes([at - 6]), [contents[at - 6]])
        for at in range(14, 20):
            returned(channel, bytes([at]), [contents[at]])
        channel.end()
        same(channel.receive(), None, "after the end")
        channel.close()
        end.expect("closed")


def passed_and_returned(channel, message, attached):
    """Sizes of sealed buffers, and None for a pipe."""
    contents = [None if size is None else os.urandom(size) for size in attached]
    pipes = [os.pipe() for size in attached if size is None]
    unsent = iter(pipes)
    sent = [(attachments.NO_SIZE, next(unsent)[1]) if content is None else (len(content), attachments.seal(content))
            for content in contents]
    attachments.send(channel, message, sent)
    for _, fd in sent:
        os.close(fd)
    for (reads, _), writes in zip(pipes, returned(channel, message, contents)):
        os.write(writes, b"through the pipe")
        os.close(writes)
        # To the end: no process holds the other end.
        with open(reads, "rb") as pipe:
            same(pipe.read(), b"through the pipe", "what a pipe brings")


def returned(channel, message, contents):
    """Checks the echo of a message, and returns the descriptors that came with it."""
    same(channel.receive(), message, "the echo of a message with attachments")
    found = channel.reads.attached
    same([word for word, _ in found], [attachments.NO_SIZE if content is None else len(content) for content in contents],
         "the sizes of what came back")
    for (size, fd), content in zip(found, contents):
        if content is not None:
            same(attachments.unseal(fd, size), content, "a sealed buffer that came back")
    return [fd for word, fd in found if word == attachments.NO_SIZE]


def attached_subscriber(language, folder, kind):
    """Each message of a publisher has its own attachments; a reliable subscriber gets all of them."""
    where = address(folder, kind)
    sizes = [0, 1, 8, 100, 511, 512, 1000, 1016] * 8
    with End(language, "broadcast", where, longest=1024, sizes=sizes) as end:
        end.expect("bound")
        most = None
        for delivery in (many.RELIABLE, many.BEST_EFFORT, many.LATEST):
            subscription = many.Subscription(where, delivery, features=wire.BARRIERS | BOTH, max_attachments=4,
                                             max_attached_bytes=1 << 20)
            while subscription.receive() is not None:
                number = (subscription.sequence - 1) % len(sizes)
                found = distributed(subscription.attached, number)
                if delivery == many.RELIABLE:
                    same(found, number % 3, f"the attachments of message {number}")
            subscription.close()
            end.expect("in")
            end.expect("closed")
            most = most or end.holds()
        end.settles(most)


def distributed(attached, number):
    """Checks the attachments of a message of the real publisher, and returns their number."""
    words = [word for word, _ in attached]
    if words not in ([], [attachments.NO_SIZE, 5000][:number % 3]):
        raise Failure(f"message {number} has attachments {words}")
    for word, fd in attached:
        if word == attachments.NO_SIZE:
            same(os.path.samestat(os.fstat(fd), os.stat(PYTHON)), True, "whether it is the same file")
            os.close(fd)
        else:
            same(attachments.unseal(fd, word), pattern(number, 5000), f"the buffer of message {number}")
    return len(attached)


def attaching_publisher(language, folder, kind):
    """A publisher that attaches to the messages of subscribers of each delivery, and changes its mind before it publishes."""
    where = address(folder, kind)
    for delivery in ("reliable", "best-effort", "latest"):
        source = many.Publisher(where, capacity=8192, longest=1024)
        reads, writes = os.pipe()
        fcntl.fcntl(writes, F_SETPIPE_SZ, 1 << 20)
        with End(language, "follow", where, longest=1024, sizes=ACCEPTED) as end:
            end.expect("bound")
            end.say(delivery)
            source.accept()
            sent = [passed_on(source, number, writes) for number in range(200)]
            os.close(writes)
            source.end()
            line = end.hear()
            with open(reads, "rb") as pipe:
                written = pipe.read()
            read, lost, attached = counted(line)
            if not line.endswith("closed") or read + lost > 200 or read < 1:
                raise Failure(f"{end.name}, {delivery}: {line}")
            if delivery == "reliable":
                same((read, attached), (200, sum(count for count, _ in sent)), "messages and attachments")
                same(written, b"".join(each for _, each in sent), "what came through the pipe")
            # Each part belongs to one message, and they have the order of the messages.
            for _, each in sent:
                written = written.removeprefix(each) if each else written
            same(written, b"", "what came through the pipe beside that")
        source.close()


def passed_on(source, number, pipe):
    """Publishes a message; returns the number of its attachments, and what its subscriber writes into the pipe."""
    message = number.to_bytes(4, "little") + pattern(number, number * 13 % 1000)
    if number % 7 < 2:
        replaced = attachments.seal(b"replaced")
        source.pass_on([(8, replaced), (attachments.NO_SIZE, pipe)])
        os.close(replaced)
    contents = [pattern(number, number * 17), b""] if number % 3 == 2 else []
    sealed = [(len(content), attachments.seal(content)) for content in contents]
    attached = [*sealed, (attachments.NO_SIZE, pipe)] if number % 3 else []
    source.send(message, attached)
    attachments.close(sealed)
    return len(attached), message + b"".join(contents) if attached else b""


CASES = [host_of_a_pair, guest_of_a_pair, reader, cut_off, closed_early, unread, agent, service, refused, too_large, turncoat,
         parent, child, subscriber, publisher, over_shm, tokens, last_tokens, opened_here, opened_there, members, busy, calling,
         attaching, attached_subscriber, attaching_publisher]
# Cases that only one language has.
ONLY = {child: "node", busy: "node"}  # the Rust program starts Node children alone, and has no event loop


# Cases that run at both kinds of address.
MEETINGS = [host_of_a_pair, guest_of_a_pair, members]


def run(languages):
    for language in languages:
        for case in CASES:
            if ONLY.get(case, language) != language:
                continue
            for kind in ("path", "abstract") if case in MEETINGS else ("path",):
                with tempfile.TemporaryDirectory(prefix="ringfence-") as folder:
                    case(language, folder, kind)
            print(f"  {language}: {case.__name__.replace('_', ' ')}", flush=True)
