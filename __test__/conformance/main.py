"""
Tests both implementations against a peer in Python that was written from docs/internals/protocol.md: first as a well-formed peer in every
role, then with malformed frames and words.

    python3 main.py [rust] [node] [--conforming | --attacks] [--roles ROLE …] [--seed N] [--more N]

The implementations must have been built: `npm run test:conformance` does.
"""

import argparse
import sys
import time

import conforming


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("languages", nargs="*", choices=["rust", "node", []], default=[])
    parser.add_argument("--conforming", action="store_true")
    parser.add_argument("--attacks", action="store_true")
    parser.add_argument("--roles", nargs="*", default=[], help="hostile roles: see attack_roles.py (all)")
    parser.add_argument("--seed", type=int, default=1, help="of the random attacks")
    parser.add_argument("--more", type=int, default=100, help="number of random attacks per role")
    arguments = parser.parse_args()
    languages = arguments.languages or ["rust", "node"]
    started = time.monotonic()
    if not arguments.attacks:
        conforming.run(languages)
    if not arguments.conforming:
        import attack_roles
        unknown = set(arguments.roles) - set(attack_roles.ROLES)
        if unknown:
            parser.error(f"no role {', '.join(unknown)}; roles: {', '.join(attack_roles.ROLES)}")
        attack_roles.run(languages, arguments.roles, arguments.seed, arguments.more)
    print(f"Both conform, in {time.monotonic() - started:.0f} s.")


sys.exit(main())
