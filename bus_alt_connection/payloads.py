# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""What a payload on ``imbus`` means: which of its channels have a subscriber here.

Contract: what is not understood is passed on. Only what is known to stop upstream's loop is left
out: text that is not JSON, a value that cannot be iterated, a channel that cannot be a key.
"""

import functools
import json
from typing import Any, Container, Hashable, List, NamedTuple, Optional

# The parser without what Python puts around it, which takes three times as long as a payload does.
_scan = json.JSONDecoder().scan_once


class Accepted(NamedTuple):
    payload: Optional[str]  # for upstream's loop; None if nothing of it concerns it
    keys: List[Hashable]  # the subscribed channels that it names
    malformed: bool  # whether something was left out


FOREIGN = Accepted(None, [], False)  # nothing of it concerns this process; not to be changed


def accept(payload: str, subscribed: Container, nested: bool) -> Accepted:
    """What upstream's loop is to see of a payload.

    A server with a thousand databases notifies them all; what nobody here has subscribed to costs
    one parsing and no turn of the loop.

    :param subscribed: the channels that have a subscriber, as ``key`` makes them
    :param nested: whether upstream makes keys of lists in lists
    """
    try:
        channels = _parsed(payload)
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
            passed.append(found)
        except TypeError:
            malformed = True
    if not passed:
        return Accepted(None, keys, True) if malformed else FOREIGN
    if len(passed) < len(channels):
        payload = _text(tuple(passed))
    return Accepted(payload, keys, malformed)


def _parsed(payload: str) -> Any:
    """:raises ValueError: if it is not JSON"""
    try:
        value, end = _scan(payload, 0)
        if end == len(payload):
            return value
    except StopIteration:
        pass
    return json.loads(payload)  # with blanks around it, or with the reason why it cannot be


# On a channel that is busy the same is left of many payloads.
@functools.lru_cache(maxsize=256)
def _text(channels: tuple) -> str:
    return json.dumps(channels)


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
        channel = tuple(map(key, channel)) if nested else tuple(channel)
    hash(channel)
    return channel


def key_of_row(channel: Any) -> Optional[Hashable]:
    """The channel of a row in the table, where it is JSON text; None for anything else."""
    try:
        return key(json.loads(channel))
    except (ValueError, TypeError, RecursionError):
        return None
