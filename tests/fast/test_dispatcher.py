"""The subscribers of the bus: which payloads upstream's loop is to see, and who lacks a row.

What is not understood is passed on. Left out are: payloads without a subscriber here, and what is known to stop
upstream's loop.
"""
import json
import sys
import types

import pytest

from bus_alt_connection import dispatcher, endpoints
from bus_alt_connection.dispatcher import Subscribers
from stack.addon import module

HERE, ALSO_HERE = ("demo", "here"), ("demo", "res.partner", 3)
TOPICS, WEBSOCKETS, LONG_POLLS = dispatcher.SERIES      # from 20 on, from 16 on, before


class Client:
    """What a dispatcher keeps of one, in all series; what it is asked for is in `asked`."""

    def __init__(self, last=0, *history):
        self._last_notif_sent_id = self._last_fetched_id = last
        self._notif_history = self._history = [(number, 0.0) for number in history]

    def trigger_notification_dispatching(self):
        pass

    set = trigger_notification_dispatching


def subscribers(kind=WEBSOCKETS, **by_channel):
    """`subscribers(kind, channels={channel: …})`; without, of the channels above."""
    channels = by_channel.get("channels", {HERE: {Client()}, ALSO_HERE: {Client()}, "a bare name": {Client()}})
    return Subscribers(types.SimpleNamespace(**{kind.subscribers: channels}), kind)


def accepted(payload, kind=WEBSOCKETS, **by_channel):
    """True, False or "malformed", for a payload that may be anything that JSON can say, or a text."""
    reported = []
    text = payload if isinstance(payload, str) else json.dumps(payload)
    passed = subscribers(kind, **by_channel).accept("imbus", text, lambda *given: reported.append(given))
    assert reported in ([], [("imbus", text)]) and not (passed and reported)
    return "malformed" if reported else passed


# -- payloads ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("payload, expected", [
    ([["demo", "here"]], True),
    ('[ ["demo",  "h\\u0065re"] ]', True),
    (["a bare name"], True),
    ([["demo", "gone"], ["demo", "res.partner", 3]], True),
    # what nobody here subscribed to
    ([["demo", "gone"]], False),
    (["another bare name"], False),
    ([["other", "here"], "here"], False),
    ([], False),
    # a channel of an unknown shape: a later series may have it
    *(([channel], True) for channel in (5, None, True, 1.5, [], [5], [None, "x"])),
    ([["demo", "gone"], 5], True),
    # a channel that can be no key stops the loop
    *(([channel, ["demo", "here"]], "malformed") for channel in ({"a": 1}, [{"a": 1}], [["demo"], "x"],
                                                                 ["demo", ["x"]])),
    # no JSON
    *((text, "malformed") for text in ("", "no JSON", "[", '["demo"', '[["demo","here"]] and more', "'", "\x00",
                                       "[" * 100_000)),
    # what cannot be iterated stops the loop; what can may be for a later series
    *((text, "malformed") for text in ("5", "1.5", "true", "null")),
    *((text, True) for text in ('"a text"', '{"type": "another shape than today\'s"}', "{}", '""')),
])
def test_a_payload(payload, expected):
    assert accepted(payload) == expected


@pytest.mark.parametrize("kind, expected", [(TOPICS, True), (WEBSOCKETS, "malformed"), (LONG_POLLS, "malformed")])
def test_lists_in_lists(kind, expected):
    """Where upstream makes tuples of them they are keys, else they stop its loop."""
    channels = {("demo", ("a", ("b",))): None}
    assert accepted([["demo", ["a", ["b"]]]], kind, channels=channels) == expected
    assert accepted([["demo", {"a": 1}]], kind, channels=channels) == "malformed"


def test_a_list_that_is_nested_too_deep_is_left_out(monkeypatch):
    """The parser of Python 3.12 and later takes lists that are deeper than Python's own calls can go."""
    deep = []
    for _ in range(3999):   # as a payload of 8000 bytes may have it
        deep = [deep]
    monkeypatch.setattr(dispatcher, "_loads", lambda: lambda text: [deep, ["demo", "here"]])
    assert accepted("", TOPICS) == "malformed"


def test_another_addons_channel_is_passed_on_as_it_came():
    for text in ("no JSON", "", '[["demo","gone"]]'):
        assert subscribers().accept("another", text, pytest.fail)


@pytest.fixture
def upstreams(monkeypatch):
    """Gives Odoo the module ``odoo.addons.bus.tools.orjson``, which parses for the loop from 19 on."""
    def provide(loads):
        names = ["odoo.addons.bus", "odoo.addons.bus.tools", "odoo.addons.bus.tools.orjson"]
        for name in names:
            monkeypatch.delitem(sys.modules, name, raising=False)
            module(name)
        sys.modules[names[-1]].loads = loads
        dispatcher._loads.cache_clear()
    before = {name: found for name, found in sys.modules.items() if name.startswith("odoo.addons.bus")}
    yield provide
    for name in [name for name in sys.modules if name.startswith("odoo.addons.bus") and name not in before]:
        del sys.modules[name]
    sys.modules.update(before)
    dispatcher._loads.cache_clear()


def strict(text):
    """Refuses what orjson refuses and Python's parser does not."""
    def refuse(constant):
        raise ValueError(constant)
    value = json.loads(text, parse_constant=refuse)
    if "Infinity" in json.dumps(value):
        raise ValueError("number is infinity")
    json.dumps(value, ensure_ascii=False).encode()
    return value


@pytest.mark.parametrize("text", ['["a bare name",NaN]', "[-Infinity]", "[1e999]", '[["demo","here"],[1,"\\ud800"]]',
                                  '"\\ud800"', '{"\\ud800":1}'])
def test_what_upstreams_parser_refuses_is_left_out(upstreams, text):
    assert accepted(text) is True
    upstreams(strict)
    assert accepted(text) == "malformed"
    assert accepted('[["demo","here"]]') is True


# -- databases ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("odd", [(5, "x"), (None,), (), "bare", 7], ids=repr)
@pytest.mark.parametrize("kind, others", [(LONG_POLLS, []), (WEBSOCKETS, ["far"]), (TOPICS, ["far"])])
def test_a_channel_without_a_database_may_be_of_any(monkeypatch, odd, kind, others):
    """It ends no look, and those beside it are looked at as well; "far" is not loaded here."""
    monkeypatch.setattr(endpoints, "loaded_databases", lambda: ["one", "two"])

    def databases(*channels):
        return subscribers(kind, channels=dict.fromkeys(channels)).databases()
    assert databases(odd) == ["one", "two"]
    assert databases(("far", "x"), odd, ("two", "x")) == others + ["one", "two"]
    assert databases(("two", "x")) == ["two"]
    assert databases() == []


# -- who lacks a row ---------------------------------------------------------------------------------------------------

def woken(ids, kind=WEBSOCKETS, database="demo", **by_channel):
    """The callables that `wakers` returns, and what they deliver."""
    delivered = []
    found = subscribers(kind, **by_channel).wakers(database, ids, lambda *given: delivered.append(given))
    for wake in found:
        wake()
    return found, delivered


TEXT = '["demo", "here"]'       # of HERE, as it stands in the table


@pytest.mark.parametrize("client, ids, lacks", [
    (Client(), [1], True),
    (Client(5), [6], True),
    (Client(5), [3, 4, 5], False),
    (Client(5), [5, 4, 6], True),
    # what was received beyond: a lower id may commit after a higher one was sent
    (Client(5, 7, 8), [7, 8], False),
    (Client(5, 7, 8), [6], True),
    (Client(5, 8, 7), [8, 6, 7], True),
    (Client(0, 3, 1, 2), [2, 3, 1], False),
    # not as it was known: when in doubt, wake
    (Client(None), [1], True),
    (Client("text"), [1], True),
    (Client(5, 7), [], True),
])
@pytest.mark.parametrize("kind", [TOPICS, WEBSOCKETS])
def test_who_lacks_a_row_is_woken(client, ids, lacks, kind):
    found, _ = woken({TEXT: ids}, kind, channels={HERE: client if kind is TOPICS else {client}})
    assert len(found) == lacks


def test_a_subscriber_of_another_kind_is_woken():
    class Other:
        def trigger_notification_dispatching(self):
            pass
    assert len(woken({TEXT: [1]}, channels={HERE: {Other()}})[0]) == 1


def test_a_long_poll_is_woken_by_any_row():
    """It looks at the table itself."""
    one, other = Client(9), Client(9)
    found, _ = woken({TEXT: [1], '"a bare name"': [2]}, LONG_POLLS, channels={HERE: {one}, "a bare name": {one, other}})
    assert sorted(map(id, (wake.__self__ for wake in found))) == sorted(map(id, (one, other))), "each once"


def test_a_topic_is_upstreams_loop_to_wake():
    _, delivered = woken({TEXT: [1]}, TOPICS, channels={HERE: Client(), ALSO_HERE: Client()})
    assert delivered == [("imbus", '[["demo", "here"]]')]


def test_one_channel_may_be_written_in_two_ways():
    client = Client(5, 7)
    assert len(woken({'["demo","here"]': [6], TEXT: [7]}, channels={HERE: {client}})[0]) == 1
    assert len(woken({TEXT: [7], '["demo","here"]': [6]}, channels={HERE: {client}})[0]) == 1


@pytest.mark.parametrize("text", ["a bare name", "", None, '{"a": 1}', '["demo"', "[" * 100_000, '["demo", {}]'])
def test_a_row_whose_channel_is_none_keeps_no_other_from_being_found(text):
    assert len(woken({text: [1], TEXT: [1]})[0]) == 1


@pytest.mark.parametrize("kind, expected", [
    (TOPICS, [HERE, ALSO_HERE, "bare"]), (WEBSOCKETS, [HERE, ALSO_HERE, "bare"]),
    (LONG_POLLS, [HERE, ALSO_HERE, ("other", "here"), "bare"]),     # which may be any database's
])
def test_where_nobody_knows_which_rows_all_of_the_database_are_woken(kind, expected):
    clients = {channel: Client(100) for channel in (HERE, ALSO_HERE, ("other", "here"), "bare")}
    channels = clients if kind is TOPICS else {channel: {client} for channel, client in clients.items()}
    found, delivered = woken(None, kind, channels=channels)
    if kind is TOPICS:
        assert delivered == [("imbus", json.dumps([channel])) for channel in expected]
    else:
        assert [wake.__self__ for wake in found] == [clients[channel] for channel in expected]


def test_who_comes_and_goes_meanwhile():
    """The table of subscribers is other threads' to change."""
    channels = {HERE: {Client()}}
    assert woken({TEXT: [1], '["demo", "gone"]': [1]}, channels=channels)[1] == []
    assert woken({TEXT: [1]}, channels={HERE: None})[0] == []
