# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""What payloads on ``imbus`` mean: which of their channels have a subscriber here.

Contract: what is not understood is passed on. Only what is known to stop upstream's loop is left
out: text that is not JSON, or not for upstream's parser, a value that cannot be iterated, a channel
that cannot be a key.
"""

import functools
import json
from typing import Any, Callable, Container, Dict, Hashable, Iterable, List, NamedTuple, Optional

# The parser without what Python puts around it, which takes three times as long as a payload does.
_scan = json.JSONDecoder().scan_once


class Accepted(NamedTuple):
    payloads: Iterable[str]  # for upstream's loop, each once
    keys: List[Hashable]  # the subscribed channels in them
    malformed: List[str]  # those of which something was left out


def accept(payloads: Iterable[str], subscribed: Container, nested: bool) -> Accepted:
    """What upstream's loop is to see of the payloads that arrived together.

    A server with a thousand databases notifies them all; what nobody here has subscribed to costs
    one parsing and no turn of the loop.

    :param subscribed: the channels that have a subscriber, as ``key`` makes them
    :param nested: whether upstream makes keys of lists in lists
    """
    passed: Dict[str, None] = {}
    keys: Dict[Hashable, None] = {}
    malformed: List[str] = []
    for payload in payloads:
        if payload in passed:
            continue
        try:
            channels = _parsed(payload)
        except (ValueError, RecursionError):
            malformed.append(payload)
            continue
        if not isinstance(channels, list):
            # The loop iterates whatever it finds.
            if isinstance(channels, (dict, str)) and _readable(payload):
                passed[payload] = None
            else:
                malformed.append(payload)
            continue
        wanted, complete = [], True
        for channel in channels:
            try:
                # as `key` does, but for its call
                found = tuple(channel) if type(channel) is list and not nested else key(channel)
                if found in subscribed or not known(channel):
                    wanted.append(found)
            except (TypeError, RecursionError):
                complete = False
        text = payload if len(wanted) == len(channels) else _text(tuple(wanted))
        if wanted and text not in passed:
            if _readable(text):
                passed[text] = None
                keys.update(dict.fromkeys(wanted))
            else:
                complete = False  # nobody of these is woken: none may count as notified
        if not complete:
            malformed.append(payload)
    return Accepted(passed, [each for each in keys if each in subscribed], malformed)


def _parsed(payload: str) -> Any:
    """:raises ValueError: if it is not JSON"""
    try:
        value, end = _scan(payload, 0)
        if end == len(payload):
            return value
    except StopIteration:
        pass
    return json.loads(payload)  # with blanks around it, or with the reason why it cannot be


def _readable(text: str) -> bool:
    """Whether upstream's parser takes it, too."""
    loads = upstreams_parser()
    if loads is not None:
        try:
            loads(text)
        except (ValueError, RecursionError):
            return False
    return True


@functools.lru_cache(maxsize=None)
def upstreams_parser() -> Optional[Callable[[str], Any]]:
    """Upstream's parser, where it is not Python's.

    From series 19 on it is orjson if that is installed, which refuses what Python's accepts: NaN,
    numbers too large for a float, half a surrogate pair.
    """
    try:
        from odoo.addons.bus.tools import orjson
    except ImportError:
        return None
    return None if getattr(orjson, "json", None) is json else orjson.loads


# On a busy channel the same is left of many payloads.
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
