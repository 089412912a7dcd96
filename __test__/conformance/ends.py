"""The real ends: a Rust and a Node program with one command line and one language of lines."""

import os
import queue
import select
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
PYTHON = os.path.realpath(sys.executable)
# The limit for a wait for an end, on any machine. A longer wait means that it hangs.
LIMIT = 60


def commands():
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
    return {
        "rust": [os.path.join(target, "debug", "ringfence-partner")],
        "node": [os.environ.get("RINGFENCE_NODE", "node"), "--expose-gc", os.path.join(HERE, "node.mjs")],
    }


class Failure(Exception):
    """An end has done something that is not allowed."""


class End:
    """A process that prints lines."""

    def __init__(self, language, deed, address, capacity=8192, longest=100_000, sizes=(), **more):
        self.name = f"{language} {deed}"
        words = [deed, address, PYTHON, str(capacity), str(longest)]
        if sizes:
            words.append(",".join(map(str, sizes)))
        self.process = subprocess.Popen([*commands()[language], *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, bufsize=1, **more)
        self.pid = self.process.pid
        self.lines = queue.Queue()
        # Readable once there is a line, for callers that also wait for something else.
        self.spoken, self._spoke = os.pipe()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))
            os.write(self._spoke, b"\n")
        self.lines.put(None)
        os.close(self._spoke)

    def hear(self, limit=LIMIT):
        try:
            line = self.lines.get(timeout=limit)
        except queue.Empty:
            raise Failure(f"{self.name} has said nothing for {limit} s: it hangs") from None
        if line is None:
            raise Failure(f"{self.name} has ended: {self.process.wait(LIMIT)}")
        os.read(self.spoken, 1)
        return line

    def comes(self, sock):
        """Waits for a line, or for a connection; says whether it is a connection."""
        poll = select.poll()
        poll.register(self.spoken, select.POLLIN)
        poll.register(sock, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(LIMIT * 1000)]
        if not ready:
            raise Failure(f"{self.name} has done nothing for {LIMIT} s: it hangs")
        return self.spoken not in ready

    def expect(self, wanted):
        found = self.hear()
        if found != wanted:
            raise Failure(f"{self.name} says {found!r}, not {wanted!r}")

    def say(self, line):
        self.process.stdin.write(line + "\n")

    def finish(self):
        """Waits for its exit."""
        code = self.process.wait(LIMIT)
        if code != 0:
            raise Failure(f"{self.name}: exit code {code}")

    def kill(self):
        self.process.kill()
        self.process.wait()
        if self.spoken is not None:
            os.close(self.spoken)
            self.spoken = None

    def holds(self):
        """The number of its descriptors, threads and mappings of shared memory."""
        proc = f"/proc/{self.pid}"
        with open(f"{proc}/maps") as maps:
            shared = sum("memfd:" in line for line in maps)
        return len(os.listdir(f"{proc}/fd")), len(os.listdir(f"{proc}/task")), shared

    def settles(self, most):
        """Waits until it holds no more than that."""
        deadline = time.monotonic() + LIMIT
        while True:
            found = self.holds()
            if all(now <= limit for now, limit in zip(found, most)):
                return
            if time.monotonic() > deadline:
                raise Failure(f"{self.name} keeps {found} descriptors, threads and mappings, where it had {most}")
            time.sleep(0.02)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


def pattern(number, length):
    """The bytes of message `number`: those of __test__/support/bytes.ts."""
    word = (number + 1) * 0x9E3779B1 & 0xFFFFFFFF
    words = []
    for _ in range((length + 3) // 4):
        word = (word * 1664525 + 1013904223) & 0xFFFFFFFF
        words.append(word)
    return b"".join(word.to_bytes(4, "little") for word in words)[:length]
