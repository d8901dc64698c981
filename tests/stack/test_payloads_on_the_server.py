"""What reaches upstream's loop: all that it does not stop on, whatever its shape; and how NOTIFYs are sent."""
import os
from pathlib import Path

import pytest

from stack import StackError
from stack.clients.client import Sender, Session, compact
from stack.clients.listeners import wait_listening
from stack.clients.state import lines, wait_healthy
from stack.download.python import packages

# JSON that upstream's loop goes through without an error, though none of it is what a series sends today
OTHER_SHAPES = ['{"a": 1}', '{"demo": ["a", "b"]}', '"text"', '{"channels": [["demo", "x"]], "id": 5}']
STOPS_IT = ["", "not JSON", "null", "7", "true", '[{"a": 1}]', '[["a", {"b": 1}]]', '[[["a"], 1]]', "[" * 3900]

# JSON for Python, and not for orjson
STOPS_ORJSON = ["[NaN]", "[-Infinity]", "[1e999]", '[[1,"\\ud800"]]', '"\\ud800"', '{"\\ud800":1}']


@pytest.fixture(params=[0, 2], ids=["threaded", "prefork"])
def heard(request, odoo):
    """A server that logs what upstream's loop parses."""
    return odoo(workers=request.param, load="base,web,bus_alt_connection,bus_test_heard",
                addons=[Path(__file__).parent / "addons"], options={"max_cron_threads": 0})


def parsed(server, since):
    """What upstream's loop parsed since."""
    return [line.partition("Upstream parses ")[2].strip() for line in server.log_text(since).splitlines()
            if "Upstream parses " in line]


def test_what_is_not_understood_is_passed_on(stack, heard, bus):
    client, sender = bus(heard)
    wait_listening(stack.postgres, heard, "bus")
    wait_healthy(heard)
    since = heard.log_size()
    for payload in OTHER_SHAPES:
        sender.notify(payload)
    sender.send_sql("after them")
    assert client.next(timeout=5).payload == "after them"
    found = parsed(heard, since)
    for payload in OTHER_SHAPES:
        assert payload in found
    assert not lines(heard, "malformed", since)
    assert "Bus.loop error" not in heard.log_text(since)


def test_what_stops_the_loop_is_not(stack, heard, bus):
    """And costs nothing of what comes with it."""
    client, sender = bus(heard)
    wait_listening(stack.postgres, heard, "bus")
    wait_healthy(heard)
    since = heard.log_size()
    for number, payload in enumerate(STOPS_IT):
        sender.notify(payload)
        sender.send_sql(number)
        assert client.next(timeout=5).payload == number
    # whoever it is for has it, also where something else stands beside
    sender.insert("beside")
    sender.notify(compact([sender.wire_channel, ["demo", "x", 1], 7, None, {"a": 1}, [["deep"]]]))
    assert client.next(timeout=5).payload == "beside"
    assert "Bus.loop error" not in heard.log_text(since)
    assert "loop of the bus failed" not in heard.log_text(since)
    assert len(lines(heard, "malformed", since)) == 1
    assert "Traceback" not in heard.log_text(since)


@pytest.fixture
def orjson(stack):
    """A folder with orjson, for the interpreter that runs the tests and Odoo."""
    if os.environ.get("ODOO_PYTHON"):
        pytest.skip("NOT TESTED: ODOO_PYTHON may need another orjson")
    try:
        return packages(stack.machine.cache, "orjson")
    except StackError as exc:
        pytest.skip(f"NOT TESTED: {exc}")


@pytest.mark.needs("own_parser")
def test_what_stops_the_loop_where_orjson_parses(stack, odoo, bus, orjson):
    """Odoo parses with it where it is installed, and it accepts less than Python's parser."""
    server = odoo(options={"max_cron_threads": 0}, load="base,web,bus_alt_connection,bus_test_heard",
                  addons=[Path(__file__).parent / "addons"],
                  env={"PYTHONPATH": f"{stack.machine.odoo.env['PYTHONPATH']}{os.pathsep}{orjson}"})
    client, sender = bus(server)
    wait_listening(stack.postgres, server, "bus")
    wait_healthy(server)
    assert str(orjson) in Path(f"/proc/{server.pid}/maps").read_text(), "Odoo did not import it"
    since = server.log_size()
    for number, payload in enumerate(STOPS_ORJSON):
        sender.notify(payload)
        sender.send_sql(number)
        assert client.next(timeout=5).payload == number
    for payload in OTHER_SHAPES:
        sender.notify(payload)
    sender.send_sql("after them")
    assert client.next(timeout=5).payload == "after them"
    found = parsed(server, since)
    assert not set(STOPS_ORJSON) & set(found) and set(OTHER_SHAPES) <= set(found)
    assert len(lines(server, "malformed", since)) == 1
    assert "loop of the bus failed" not in server.log_text(since)
    assert "Traceback" not in server.log_text(since)


@pytest.mark.parametrize("workers", [0, 2], ids=["threaded", "prefork"])
@pytest.mark.needs("notify_function")
def test_the_function_that_odoo_notifies_with(stack, odoo, function, workers):
    """Since series 16 the environment names it: what Odoo sends and what the addon sends takes that way."""
    size = stack.postgres.log.stat().st_size
    server = odoo(workers=workers, env={"ODOO_NOTIFY_FUNCTION": function})
    session = Session(server, "demo")
    sender = Sender(session, stack.pgbouncer, "own-function")
    with session.subscribe([sender.channel], last=sender.insert("seen before")) as client:
        client.wait_subscribed()
        wait_listening(stack.postgres, server, "bus")
        wait_healthy(server)
        server.wait_log("The cron listener is listening")
        sender.send_orm("through the function")
        assert client.next(timeout=5).payload == "through the function"
    sender.close()
    server.kill()
    server = odoo(workers=workers)
    server.wait_log("The cron listener does not receive NOTIFYs: (?s:.*)permission denied for function pg_notify(?s:.*)"
                    "Let Odoo's role run that function")
    with open(stack.postgres.log) as log:
        log.seek(size)
        sent = [line for line in log if " sent on " in line]
    assert any("sent on imbus" in line for line in sent)
    assert any("sent on imbus" not in line for line in sent), "the addon's own NOTIFY did not take that way"
