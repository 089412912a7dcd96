"""A peer in Python, written from docs/internals/protocol.md and from nothing else.

It needs only the standard library of Python 3.9. It is slow, and sleeps by polling the line. It exists to
show that the page suffices, and to attack the Rust and Node implementations.
"""
