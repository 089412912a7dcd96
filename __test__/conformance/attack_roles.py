"""The hostile roles by name, and the attacks of each."""

import random
import time
from functools import partial

import attacks
import attacks_on_attachments
import attacks_on_calls
import attacks_on_members
import attacks_on_tokens


def _shared(role, _seed, more):
    found = [*attacks.handshake_attacks(role), *attacks.line_attacks()]
    if role in ("guest", "host"):
        draws = (attacks.RandomWords(number, _seed) for number in range(more))
        return [*found, *attacks.pair_words(), *attacks.records(), *attacks.tails(), *draws]
    return [*found, *(attacks.subscriber_words() if role == "subscriber" else attacks.publisher_words())]


def _alone(make):
    return lambda _seed, _more: [*make()]


# For each role: its attacks, and the function that runs them against an implementation.
ROLES = {
    **{role: (partial(_shared, role), partial(attacks.attack_as_guest, role=role)) for role in ("guest", "subscriber")},
    **{role: (partial(_shared, role), partial(attacks.attack_as_host, role=role)) for role in ("host", "publisher")},
    "joining-member": (_alone(attacks_on_members.joining_member_attacks), attacks_on_members.attack_as_member),
    "leaving-host": (_alone(attacks_on_members.leaving_host_attacks), attacks_on_members.attack_as_host),
    "token-sender": (_alone(attacks_on_tokens.token_sender_attacks), attacks_on_tokens.attack_as_sender),
    "caller": (_alone(attacks_on_calls.call_attacks), attacks_on_calls.attack_as_caller),
    "attachment-sender": (_alone(attacks_on_attachments.attachment_attacks), attacks_on_attachments.attack_as_sender),
    "attachment-publisher": (_alone(attacks_on_attachments.publisher_attachment_attacks), attacks_on_attachments.attack_as_publisher),
    "token-receiver": (_alone(attacks_on_tokens.token_receiver_attacks), attacks_on_tokens.attack_as_receiver),
}


def run(languages, roles, seed, more):
    for language in languages:
        for role in roles or ROLES:
            make, run_attacks = ROLES[role]
            selected = make(seed, more)
            # Shuffled, so that each attack follows various others.
            random.Random(seed).shuffle(selected)
            started = time.monotonic()
            outcomes = run_attacks(language, attacks=selected)
            most = ", ".join(f"{count} {line}" for line, count in sorted(outcomes.items(), key=lambda it: -it[1])[:8])
            print(f"  {len(selected)} attacks of role {role} on {language}, {time.monotonic() - started:.0f} s: {most}", flush=True)
