"""The hostile roles by name, and the lies of each."""

import random
import time
from functools import partial

import lies
import lies_of_attachments
import lies_of_calls
import lies_of_members
import lies_of_tokens


def _shared(role, _seed, more):
    found = [*lies.handshake_lies(role), *lies.line_lies()]
    if role in ("guest", "host"):
        draws = (lies.Draw(number, _seed) for number in range(more))
        return [*found, *lies.pair_words(), *lies.records(), *lies.tails(), *draws]
    return [*found, *(lies.subscriber_words() if role == "subscriber" else lies.publisher_words())]


def _alone(make):
    return lambda _seed, _more: [*make()]


# For each role: its lies, and the function that tells them to a real end of a language.
ROLES = {
    **{role: (partial(_shared, role), partial(lies.lie_as_guest, role=role)) for role in ("guest", "subscriber")},
    **{role: (partial(_shared, role), partial(lies.lie_as_host, role=role)) for role in ("host", "publisher")},
    "newcomer": (_alone(lies_of_members.lies_of_newcomers), lies_of_members.lie_as_newcomer),
    "predecessor": (_alone(lies_of_members.lies_of_hosts), lies_of_members.lie_as_host),
    "sender": (_alone(lies_of_tokens.lies_of_senders), lies_of_tokens.lie_as_sender),
    "caller": (_alone(lies_of_calls.lies_of_calls), lies_of_calls.lie),
    "attacher": (_alone(lies_of_attachments.lies_of_attachments), lies_of_attachments.lie),
    "distributor": (_alone(lies_of_attachments.lies_of_publishers), lies_of_attachments.lie_as_publisher),
    "receiver": (_alone(lies_of_tokens.offers), lies_of_tokens.lie_as_receiver),
}


def run(languages, roles, seed, more):
    for language in languages:
        for role in roles or ROLES:
            make, tell = ROLES[role]
            told = make(seed, more)
            # Another order each time, so that each lie reaches an end that has received other lies before.
            random.Random(seed).shuffle(told)
            started = time.monotonic()
            outcomes = tell(language, lies=told)
            most = ", ".join(f"{count} {line}" for line, count in sorted(outcomes.items(), key=lambda it: -it[1])[:8])
            print(f"  {len(told)} lies of a {role} to {language}, {time.monotonic() - started:.0f} s: {most}", flush=True)
