"""The implementations under test: a Rust and a Node program with the same commands and output."""

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
# The limit for any wait, in seconds. A longer wait means a hang.
LIMIT = 60


def commands():
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
    return {
        "rust": [os.path.join(target, "debug", "ringfence-partner")],
        "node": [os.environ.get("RINGFENCE_NODE", "node"), "--expose-gc", os.path.join(HERE, "node.mjs")],
    }


class Failure(Exception):
    """An implementation has not conformed."""


class Endpoint:
    """A process that prints lines."""

    def __init__(self, language, command, address, capacity=8192, longest=100_000, sizes=(), **more):
        self.name = f"{language} {command}"
        words = [command, address, PYTHON, str(capacity), str(longest)]
        if sizes:
            words.append(",".join(map(str, sizes)))
        self.process = subprocess.Popen([*commands()[language], *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, bufsize=1, **more)
        self.pid = self.process.pid
        self.lines = queue.Queue()
        # Readable once there is a line, for callers that also wait for something else.
        self.output_ready, self._output_written = os.pipe()
        threading.Thread(target=self._read_output, daemon=True).start()

    def _read_output(self):
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))
            os.write(self._output_written, b"\n")
        self.lines.put(None)
        os.close(self._output_written)

    def read_line(self, limit=LIMIT):
        try:
            line = self.lines.get(timeout=limit)
        except queue.Empty:
            raise Failure(f"{self.name} has printed nothing for {limit} s: it hangs") from None
        if line is None:
            raise Failure(f"{self.name} has ended: {self.process.wait(LIMIT)}")
        os.read(self.output_ready, 1)
        return line

    def waits_for_connection(self, sock):
        """Waits for a line or a connection. Returns whether it is a connection."""
        poll = select.poll()
        poll.register(self.output_ready, select.POLLIN)
        poll.register(sock, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(LIMIT * 1000)]
        if not ready:
            raise Failure(f"{self.name} has done nothing for {LIMIT} s: it hangs")
        return self.output_ready not in ready

    def expect(self, wanted):
        found = self.read_line()
        if found != wanted:
            raise Failure(f"{self.name} reports {found!r}, not {wanted!r}")

    def write_line(self, line):
        self.process.stdin.write(line + "\n")

    def finish(self):
        """Waits for its exit."""
        code = self.process.wait(LIMIT)
        if code != 0:
            raise Failure(f"{self.name}: exit code {code}")

    def kill(self):
        self.process.kill()
        self.process.wait()
        if self.output_ready is not None:
            os.close(self.output_ready)
            self.output_ready = None

    def resources(self):
        """The number of its descriptors, threads and mappings of shared memory."""
        proc = f"/proc/{self.pid}"
        with open(f"{proc}/maps") as maps:
            shared = sum("memfd:" in line for line in maps)
        return len(os.listdir(f"{proc}/fd")), len(os.listdir(f"{proc}/task")), shared

    def wait_for_resources(self, baseline):
        """Waits until it holds no more than the baseline."""
        deadline = time.monotonic() + LIMIT
        while True:
            found = self.resources()
            if all(now <= limit for now, limit in zip(found, baseline)):
                return
            if time.monotonic() > deadline:
                raise Failure(f"{self.name} keeps {found} descriptors, threads and mappings, after {baseline}")
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
