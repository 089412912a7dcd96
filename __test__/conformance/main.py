"""
The protocol from outside: an end in Python, written from docs/internals/protocol.md alone, is a pair with the crate and with Node, in every role
that it has; then it lies to them at every field of every frame and at every word.

    python3 main.py [rust] [node] [--honest | --lies] [--roles ROLE …] [--seed N] [--more N]

The real ends must have been built: `npm run test:conformance` does.
"""

import argparse
import sys
import time

import honest


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("languages", nargs="*", choices=["rust", "node", []], default=[])
    parser.add_argument("--honest", action="store_true")
    parser.add_argument("--lies", action="store_true")
    parser.add_argument("--roles", nargs="*", default=[], help="of those who lie: see liars.py (all)")
    parser.add_argument("--seed", type=int, default=1, help="of the lies that are drawn")
    parser.add_argument("--more", type=int, default=100, help="how many are drawn, of each end")
    arguments = parser.parse_args()
    languages = arguments.languages or ["rust", "node"]
    started = time.monotonic()
    if not arguments.lies:
        honest.run(languages)
    if not arguments.honest:
        import liars
        unknown = set(arguments.roles) - set(liars.ROLES)
        if unknown:
            parser.error(f"there is no {', '.join(unknown)}, only {', '.join(liars.ROLES)}")
        liars.run(languages, arguments.roles, arguments.seed, arguments.more)
    print(f"Conforms, in {time.monotonic() - started:.0f} s.")


sys.exit(main())
