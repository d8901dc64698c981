"""What payloads on `imbus` mean: what upstream's loop is to see of them, and which subscribed channels they name.

What is not understood is passed on. Left out are: channels without a subscriber here, and what is known to stop
upstream's loop.
"""
import json
import sys
import timeit
import types
from typing import Any, NamedTuple

import pytest
from bus_alt_connection.payloads import accept, key, key_of_row

from bus_alt_connection import payloads

HERE, ALSO_HERE, GONE = ("demo", "here"), ("demo", "res.partner", 3), ("demo", "gone")
SUBSCRIBED = {HERE, ALSO_HERE, "a bare name"}       # as `key` makes them


class One(NamedTuple):
    payload: Any        # for upstream's loop, if anything
    keys: list
    malformed: bool


def accepted(payload, nested=False, subscribed=SUBSCRIBED):
    """`accept` of one payload, which may be anything that JSON can say; its text is compared by its meaning."""
    text = payload if isinstance(payload, str) else json.dumps(payload)
    found = accept([text], subscribed, nested)
    assert found.malformed in ([], [text])
    passed, = found.payloads or [None]
    meaning = "as it was" if passed == text else passed and json.loads(passed)
    return One(meaning, found.keys, bool(found.malformed))


# -- channels ----------------------------------------------------------------------------------------------------------

def test_a_subscribed_channel_is_passed_on_as_it_was():
    assert accepted([["demo", "here"]]) == One("as it was", [HERE], False)


def test_the_text_is_not_changed_where_all_of_it_is_passed_on():
    """Blanks, order and escapes stay as the sender wrote them."""
    text = '[ ["demo",  "h\\u0065re"] ]'
    assert list(accept([text], SUBSCRIBED, False).payloads) == [text]


def test_each_channel_that_is_named_is_a_key():
    assert accepted([["demo", "res.partner", 3], ["demo", "here"], "a bare name"]) == One(
        "as it was", [ALSO_HERE, HERE, "a bare name"], False)


def test_what_nobody_here_subscribed_to_is_left_out():
    assert accepted([["demo", "gone"]]) == One(None, [], False)
    assert accepted(["another bare name"]) == One(None, [], False)
    assert accepted([["other", "here"]]) == One(None, [], False)
    assert accepted([["demo", "gone"], ["demo", "here"]]) == One([["demo", "here"]], [HERE], False)


def test_no_channel_is_no_payload():
    assert accepted([]) == One(None, [], False)


@pytest.mark.parametrize("channel", [5, None, True, 1.5, [], [5], [None, "x"]])
def test_a_channel_of_an_unknown_shape_is_passed_on(channel):
    assert accepted([channel]) == One("as it was", [], False)
    assert accepted([["demo", "gone"], channel]) == One([channel], [], False)


@pytest.mark.parametrize("channel", [{"a": 1}, [{"a": 1}], [["demo"], "x"], ["demo", ["x"]]])
def test_a_channel_that_can_be_no_key_is_left_out(channel):
    """It stops the loop; the others of the payload are passed on."""
    assert accepted([channel]) == One(None, [], True)
    assert accepted([channel, ["demo", "here"]]) == One([["demo", "here"]], [HERE], True)


def test_lists_in_lists():
    """Where upstream makes tuples of them they are keys, else they stop its loop."""
    channel, subscribed = ["demo", ["a", ["b"]]], {("demo", ("a", ("b",)))}
    assert accepted([channel], nested=True, subscribed=subscribed) == One("as it was", [*subscribed], False)
    assert accepted([channel], nested=False, subscribed=subscribed) == One(None, [], True)
    assert accepted([["demo", {"a": 1}]], nested=True) == One(None, [], True)


# -- payloads ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text", [
    "", "no JSON", "[", '["demo"', "[[\"demo\",\"here\"]] and more", "'", "\x00", "[" * 100_000,
])
def test_what_is_no_json_is_left_out(text):
    assert accepted(text) == One(None, [], True)


def test_a_list_that_is_nested_too_deep_is_left_out(monkeypatch):
    """The parser of Python 3.12 and later takes lists that are deeper than Python's own calls can go."""
    deep = []
    for _ in range(3999):   # as a payload of 8000 bytes may have it
        deep = [deep]
    monkeypatch.setattr(payloads, "_parsed", lambda text: [deep, ["demo", "here"]])
    assert accepted("", nested=True) == One([["demo", "here"]], [HERE], True)


@pytest.mark.parametrize("value", [5, 1.5, True, None])
def test_what_cannot_be_iterated_is_left_out(value):
    assert accepted(value) == One(None, [], True)


@pytest.mark.parametrize("value", ['"a text"', '{"type": "another shape than today\'s"}', "{}", '""'])
def test_what_the_loop_can_iterate_is_passed_on(value):
    """A later series may send it, and its loop will know."""
    assert accepted(value) == One("as it was", [], False)


# -- many together -----------------------------------------------------------------------------------------------------

def test_of_many_each_counts_for_itself():
    found = accept(['[["demo","gone"]]', "no JSON", '[["demo","here"]]', '"a text"', '[["demo",{}],"a bare name"]',
                    "no JSON"], SUBSCRIBED, False)
    assert list(found.payloads) == ['[["demo","here"]]', '"a text"', '["a bare name"]']
    assert found.keys == [HERE, "a bare name"]
    assert found.malformed == ["no JSON", '[["demo",{}],"a bare name"]', "no JSON"]


def test_what_is_left_of_many_is_passed_on_once():
    """On a busy channel each payload may name another channel that nobody has."""
    texts = [json.dumps([["demo", "here"], ["demo", f"gone {number}"]]) for number in range(3)]
    found = accept(texts, SUBSCRIBED, False)
    assert list(map(json.loads, found.payloads)) == [[["demo", "here"]]] and found.keys == [HERE]


def test_the_same_again_is_not_parsed_again(monkeypatch):
    seen = []
    monkeypatch.setattr(payloads, "_parsed", lambda text: seen.append(text) or json.loads(text))
    found = accept(['[["demo","here"]]'] * 3, SUBSCRIBED, False)
    assert list(found.payloads) == seen == ['[["demo","here"]]']


# -- upstream's own parser ---------------------------------------------------------------------------------------------

@pytest.fixture
def upstreams(monkeypatch):
    """Gives Odoo this module as ``odoo.addons.bus.tools.orjson``, which parses for the loop from series 19 on."""
    def provide(**attributes):
        names = ["odoo", "odoo.addons", "odoo.addons.bus", "odoo.addons.bus.tools", "odoo.addons.bus.tools.orjson"]
        modules = [types.ModuleType(name) for name in names]
        for name, module in zip(names, modules, strict=True):
            monkeypatch.setitem(sys.modules, name, module)
        for parent, child in zip(modules, modules[1:], strict=False):
            setattr(parent, child.__name__.rpartition(".")[2], child)
        vars(modules[-1]).update(attributes)
        payloads.upstreams_parser.cache_clear()
    yield provide
    payloads.upstreams_parser.cache_clear()


def strict(text):
    """Refuses what orjson refuses and Python's parser does not."""
    def refuse(constant):
        raise ValueError(constant)
    value = json.loads(text, parse_constant=refuse)
    if "Infinity" in json.dumps(value):
        raise ValueError("number is infinity")
    json.dumps(value, ensure_ascii=False).encode()
    return value


@pytest.mark.parametrize("text", [
    "[NaN]", "[-Infinity]", "[1e999]", '[[1,"\\ud800"]]', '"\\ud800"', '{"\\ud800":1}', '["demo",["demo","here"],NaN]',
    '[["demo","gone"],NaN]',
])
def test_what_upstreams_parser_refuses_is_left_out(upstreams, text):
    """All of it, so no subscriber counts as told."""
    assert accepted(text).payload is not None
    upstreams(orjson=None, loads=strict)
    assert accepted(text) == One(None, [], True)


@pytest.mark.parametrize("text", ['[["demo","here"],["demo","\\ud800"]]', '[["demo","here"],["demo",NaN]]'])
def test_what_upstreams_parser_does_not_get_to_see_hurts_nobody(upstreams, text):
    upstreams(orjson=None, loads=strict)
    assert accepted(text) == One([["demo", "here"]], [HERE], False)


@pytest.mark.parametrize("text", ['[["demo","here"]]', '[5,null,[]]', '{"a": 1}', '"a text"'])
def test_what_upstreams_parser_takes_is_passed_on(upstreams, text):
    found = accepted(text)
    upstreams(orjson=None, loads=strict)
    assert accepted(text) == found == One("as it was", found.keys, False)


def test_only_what_reaches_the_loop_is_parsed_by_it(upstreams):
    seen = []
    upstreams(orjson=None, loads=seen.append)
    accepted([["demo", "gone"]])
    accepted("no JSON")
    accepted(7)
    assert not seen
    accepted([["demo", "here"], ["demo", "gone"]])
    assert list(map(json.loads, seen)) == [[["demo", "here"]]]


def test_nothing_is_parsed_twice_by_the_same_parser(upstreams):
    """Where orjson is not installed Odoo takes Python's."""
    seen = []
    upstreams(json=json, loads=seen.append)
    assert accepted([["demo", "here"]]) == One("as it was", [HERE], False)
    assert not seen


# -- cost --------------------------------------------------------------------------------------------------------------

def least(function):
    """The least of several, since other work on the machine only makes it longer."""
    return min(timeit.repeat(function, number=20, repeat=70))


def test_a_foreign_payload_costs_no_more_than_its_parsing():
    """A server with a thousand databases notifies them all: this is what most of them cost."""
    texts = [f'[["tenant{number}","res.partner",1234]]' for number in range(100)]
    subscribed = {("demo", number) for number in range(5000)}
    assert accept(texts, subscribed, False) == ({}, [], [])
    assert least(lambda: accept(texts, subscribed, False)) < 1.3 * least(lambda: list(map(json.loads, texts)))


def test_one_of_its_own_costs_no_more_than_it_does_in_upstreams_loop():
    """Which parses each and makes keys of its channels; what is left of them for it is little, and is done once."""
    texts = [f'[["demo","here"],["demo",{number}]]' for number in range(100)]

    def upstreams():
        channels = []
        for text in texts:
            channels.extend(json.loads(text))
        return {tuple(channel) for channel in channels}
    assert {HERE} < upstreams()
    assert least(lambda: accept(texts, SUBSCRIBED, False)) < 1.3 * least(upstreams)


# -- keys --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("channel, made", [
    (["demo", "here"], HERE), ("a bare name", "a bare name"), ([], ()), (5, 5), (None, None),
    (["demo", ["a", 1]], ("demo", ("a", 1))),
])
def test_a_list_becomes_a_tuple(channel, made):
    assert key(channel) == made


@pytest.mark.parametrize("channel", [{}, ["demo", {}], ["demo", [{}]]])
def test_what_can_be_no_key(channel):
    with pytest.raises(TypeError):
        key(channel)
    with pytest.raises(TypeError):
        key(["demo", ["a"]], nested=False)


@pytest.mark.parametrize("text, made", [
    ('["demo","here"]', HERE), ('"a bare name"', "a bare name"), ('["demo",["a"]]', ("demo", ("a",))),
    ("a bare name", None), ("", None), (None, None), ('{"a": 1}', None), ('["demo"', None), ("[" * 100_000, None),
])
def test_the_key_of_a_row(text, made):
    """A row's channel is JSON; one that is not, or is NULL, belongs to nobody and costs nobody else's row."""
    assert key_of_row(text) == made
