"""The other end of the protocol, written from docs/internals/protocol.md and from nothing else.

It takes Python 3.9 and its standard library. It is no client to use: it is slow, and it sleeps by polling the line. It is there to
show that the page suffices, and to lie to the real ends where they listen.
"""
