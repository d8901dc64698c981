# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""What a payload on ``imbus`` means: which of its channels have a subscriber here.

Contract: what is not understood is passed on. Only what is known to stop upstream's loop is left
out: text that is not JSON, a value that cannot be iterated, a channel that cannot be a key.
"""

import json
from typing import Any, Container, Hashable, List, NamedTuple, Optional


class Accepted(NamedTuple):
    payload: Optional[str]  # for upstream's loop; None if nothing of it concerns it
    keys: List[Hashable]  # the subscribed channels that it names
    malformed: bool  # whether something was left out


def accept(payload: str, subscribed: Container, nested: bool) -> Accepted:
    """What upstream's loop is to see of a payload.

    A server with a thousand databases notifies them all; what nobody here has subscribed to costs
    one parsing and no turn of the loop.

    :param subscribed: the channels that have a subscriber, as ``key`` makes them
    :param nested: whether upstream makes keys of lists in lists
    """
    try:
        channels = json.loads(payload)
    except (ValueError, RecursionError):
        return Accepted(None, [], True)
    if not isinstance(channels, list):
        # The loop iterates whatever it finds.
        malformed = not isinstance(channels, (dict, str))
        return Accepted(None if malformed else payload, [], malformed)
    passed, keys, malformed = [], [], False
    for channel in channels:
        try:
            found = key(channel, nested)
            if found in subscribed:
                keys.append(found)
            elif known(channel):
                continue
            passed.append(channel)
        except TypeError:
            malformed = True
    if not passed:
        return Accepted(None, keys, malformed)
    return Accepted(
        payload if len(passed) == len(channels) else json.dumps(passed), keys, malformed
    )


def known(channel: Any) -> bool:
    """Whether this is a channel as all series write it: a name, or a list that starts with a database."""
    if isinstance(channel, list):
        return bool(channel) and isinstance(channel[0], str)
    return isinstance(channel, str)


def key(channel: Any, nested: bool = True) -> Hashable:
    """A channel as upstream keeps it: a tuple for a list.

    :raises TypeError: if it can be no key
    """
    if isinstance(channel, list):
        channel = tuple(key(part) if nested else part for part in channel)
    hash(channel)
    return channel


def key_of_row(channel: Any) -> Optional[Hashable]:
    """The channel of a row in the table, where it is JSON text; None for anything else."""
    try:
        return key(json.loads(channel))
    except (ValueError, TypeError, RecursionError):
        return None
