"""The sending half on the real thing: a NOTIFY leaves on a connection that is kept, and is never lost.

A transaction is held between its commit and its NOTIFY (stack/faults/hold.py), so that a fault comes in between for
sure. What is kept is asked of the pooler, by the name that the addon gives its connection. Takes 4 minutes.
"""
import collections
import concurrent.futures
import contextlib
import os
import re
import signal
import subprocess
import textwrap
import time
import types
from pathlib import Path

import psycopg2
import pytest
import requests

from stack.clients.client import Sender, Session, compact
from stack.clients.flow import when_serves
from stack.clients.jobs import QUICK, a_job, scheduled
from stack.clients.listeners import backends_of, client_ports, wait_listening
from stack.clients.state import pass_seconds
from stack.faults.hold import ADDONS, HOLDING, Hold
from stack.faults.network import Island, Proxy
from stack.process import DEADLINE, children, wait_until

NAME = "bus_alt_connection notify"
# seconds
PATIENCE = 5.0      # the connect timeout: no caller waits longer
AT_ONCE = 2.5       # not for a timeout
SOON = 3.0          # within one after the pooler's return, and what it takes to fetch it; a look at the table is later
BEAT = 4.0          # an HTTP worker waits so long for a request

# one worker, so that the same one sends each time
KINDS = pytest.mark.parametrize("workers", [0, 1], ids=["threaded", "prefork"])


@pytest.fixture(autouse=True)
def all_run_again(stack):
    """Whatever a test that fails leaves behind."""
    yield
    for program in (stack.postgres, stack.pgbouncer):
        if not program.running:
            program.start()


def kept(pgbouncer, server, proxy=None):
    """The connections that a server keeps: {the port that the pooler sees: the process that has it}."""
    ports = {row["port"]: row["port"] for row in pgbouncer.show("CLIENTS") if row["application_name"] == NAME}
    if proxy:
        ports = {client.getpeername()[1]: ports[upstream.getsockname()[1]] for client, upstream in list(proxy.pairs)
                 if upstream.getsockname()[1] in ports}
    found, server_port = {}, (proxy or pgbouncer).port
    for pid in [server.pid, *children(server.pid)]:
        with contextlib.suppress(FileNotFoundError):    # a process that ended meanwhile
            found.update({ports[port]: pid for port in client_ports([pid], server_port) if port in ports})
    return found


def http_workers(server):
    return {int(pid) for pid in re.findall(r"Worker WorkerHTTP \((\d+)\) alive", server.log_text())}


class Held:
    """A server whose transactions can be held; `with held.sending(sender, payload) as answer:` runs while that is."""

    def __init__(self, server, hold):
        self.server, self.hold = server, hold
        self.pool = concurrent.futures.ThreadPoolExecutor(1)

    @contextlib.contextmanager
    def sending(self, sender, payload):
        with self.hold:
            answer = self.pool.submit(self.timed, sender, payload)
            try:
                self.hold.wait()
                yield answer
            finally:
                self.go()

    def go(self):
        self.went = time.monotonic()
        self.hold.release()

    def timed(self, sender, payload):
        """Send; seconds from the end of the hold to the answer."""
        sender.send_orm(payload)
        return time.monotonic() - self.went


@pytest.fixture
def held(odoo, tmp_path):
    def start(workers, env=None, load="", addons=(), **kw):
        hold = Hold(tmp_path)
        server = odoo(workers=workers, load=f"base,web,bus_alt_connection,{HOLDING}{load}", addons=[ADDONS, *addons],
                      env={**hold.env, **(env or {})}, **kw)
        return Held(server, hold)
    return start


def warm(client, sender):
    """Send once, so that there is a connection."""
    sender.send_orm("warm")
    assert client.next(DEADLINE).payload == "warm"


def gets_late(client, payload, server, since):
    """What waited arrives because it left, and not because somebody looked at the table."""
    server.wait_log("INFO .*All queued NOTIFYs have been sent", since=since)
    left = time.monotonic()
    arrived = client.next(DEADLINE)
    assert arrived.payload == payload
    assert arrived.at - left < SOON
    return arrived


# -- nothing is lost, and nobody is told of it -------------------------------------------------------------------------

@KINDS
@pytest.mark.parametrize("before", ["kept", "none"])
def test_pooler_killed_before_the_notify(held, bus, pgbouncer, workers, before):
    held = held(workers)
    client, sender = bus(held.server)
    if before == "kept":
        warm(client, sender)
        assert kept(pgbouncer, held.server)
    since = held.server.log_size()
    with held.sending(sender, "committed") as answer:
        pgbouncer.kill()
        held.go()
        assert answer.result(DEADLINE) < AT_ONCE, "refused: nothing to wait for"
        held.server.wait_log(r"WARNING .*Cannot send a NOTIFY: .* It is queued", since=since)
        pass_seconds(3)
        pgbouncer.start()
        back = when_serves(pgbouncer)
    assert gets_late(client, "committed", held.server, since).at - back < SOON


def test_pooler_killed_before_the_notify_of_a_job(held, bus, pgbouncer):
    """A cron thread runs it, which is marked as a listener's, and before series 15 never LISTENs."""
    held = held(0, load=",bus_test_hurry", addons=[Path(__file__).parent / "addons"])
    client, sender = bus(held.server)
    since = held.server.log_size()
    with held.hold, scheduled(sender, "2000-01-01 00:00:00"):
        held.hold.wait()
        pgbouncer.kill()
        held.go()
        held.server.wait_log(r"WARNING .*Cannot send a NOTIFY: .* It is queued", since=since)
        pgbouncer.start()
        when_serves(pgbouncer)
        gets_late(client, "ran", held.server, since)
        assert kept(pgbouncer, held.server)


@KINDS
def test_postgresql_killed_before_the_notify(held, bus, postgres, pgbouncer, workers):
    held = held(workers)
    client, sender = bus(held.server)
    warm(client, sender)
    with held.sending(sender, "committed") as answer:
        postgres.kill()
        held.go()
        pass_seconds(3)
        postgres.start()
        back = when_serves(pgbouncer)
        assert answer.result(DEADLINE) < PATIENCE + 1.0
    arrived = client.next(DEADLINE)
    assert arrived.payload == "committed"
    assert arrived.at - back < SOON


def test_sender_killed_before_the_notify(held, bus):
    """What waits dies with its process, and the row is committed: a look at the table finds it."""
    held = held(1)
    client, sender = bus(held.server)
    warm(client, sender)
    pid, = http_workers(held.server)
    with held.sending(sender, "committed") as answer:
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        with pytest.raises(requests.ConnectionError):
            answer.result(DEADLINE)
    arrived = client.next(2 * DEADLINE)
    assert arrived.payload == "committed"
    assert arrived.at - killed < 60
    held.server.wait_log(r"Worker WorkerHTTP \(\d+\) alive(?s:.*)Worker WorkerHTTP \(\d+\) alive")
    sender.send_orm("from another worker")
    assert client.next(DEADLINE).payload == "from another worker"


def test_pooler_restarts_under_many_workers(odoo, postgres, pgbouncer, workers=20):
    """All of them have a connection; none of their callers sees an error, and every NOTIFY leaves."""
    server = odoo(workers=workers)
    # PostgreSQL itself is listened to: what a browser does when its own server has no database is another matter
    hearing = postgres.connect()
    hearing.cursor().execute("LISTEN imbus")
    senders = [Sender(Session(server, "demo"), pgbouncer, f"sender-{number}") for number in range(workers)]
    sent = 0

    def send(sender):
        for number in range(3):
            sender.send_orm(number)     # an answer that is an error raises here

    def rush():
        """Several at once, so that each worker has to take one."""
        nonlocal sent
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            list(pool.map(send, senders))
        sent += 3

    wait_until(lambda: rush() or set(kept(pgbouncer, server).values()) == http_workers(server), DEADLINE,
               lambda: f"not all workers have one: {kept(pgbouncer, server)}")
    assert len(kept(pgbouncer, server)) == workers, "one each"
    for _ in range(3):
        pgbouncer.restart()
        when_serves(pgbouncer)
        rush()
    expected = collections.Counter({compact([sender.wire_channel]): sent for sender in senders})
    arrived = collections.Counter()

    def all_arrived():
        hearing.poll()
        arrived.update(notification.payload for notification in hearing.notifies)
        hearing.notifies.clear()
        return not expected - arrived

    try:
        wait_until(all_arrived, DEADLINE, lambda: f"lost: {expected - arrived}")
    finally:
        hearing.close()
    assert "A NOTIFY on" not in server.log_text()


@KINDS
def test_a_firewall_that_forgets_the_connection(held, bus, pgbouncer, workers):
    """TCP lives, nothing passes, and nobody says so; what is opened anew passes."""
    proxy = Proxy((pgbouncer.host, pgbouncer.port))
    try:
        held = held(workers, options={"db_host": proxy.host, "db_port": proxy.port})
        client, sender = bus(held.server)
        warm(client, sender)
        ours, = [row["port"] for row in pgbouncer.show("CLIENTS") if row["application_name"] == NAME]
        since = held.server.log_size()
        with held.sending(sender, "silent") as answer:
            proxy.forget([ours])
            held.go()
            assert answer.result(DEADLINE) < PATIENCE + 1.0
        gets_late(client, "silent", held.server, since)
        before = time.monotonic()
        sender.send_orm("as before")
        # The answer, and not the arrival: before series 16 a client that is about to poll anew misses what comes
        # between upstream's look at the table and its wait, and has it 50 s later.
        assert time.monotonic() - before < AT_ONCE
        assert client.next(DEADLINE).payload == "as before"
    finally:
        proxy.close()


def libpq(odoo):
    """The version of the libpq that an Odoo runs with."""
    program = "import psycopg2.extensions; print(psycopg2.extensions.libpq_version())"
    return int(subprocess.check_output([odoo.source.command[0], "-c", program], env=odoo.env()))


def test_packets_are_dropped(held, bus, pgbouncer):
    """The kernel finds out: the caller waits for a second or two, and not for the whole connect timeout.

    It is told to by tcp_user_timeout, which libpq has from 12 on.
    """
    why = Island.why_not()
    if why:
        pytest.skip(why)
    with Island() as island:
        proxy = island.serve((pgbouncer.host, pgbouncer.port))
        # prefork: in one process the lock of Odoo's own pool is held by whoever meets a dead connection in it
        held = held(1, options={"db_host": proxy.host, "db_port": proxy.port})
        client, sender = bus(held.server)
        warm(client, sender)
        bound = 3.5 if libpq(held.server) >= 120000 else PATIENCE + 1.0
        since = held.server.log_size()
        with held.sending(sender, "dropped") as answer:
            island.drop()
            held.go()
            try:
                assert answer.result(DEADLINE) < bound
            finally:
                island.heal()
        gets_late(client, "dropped", held.server, since)


def test_while_one_waits_nobody_else_does(held, bus, pgbouncer):
    """Known to be down: who comes then is answered at once, and all leave in their order."""
    held = held(0)
    client, sender = bus(held.server)
    warm(client, sender)
    since = held.server.log_size()
    pgbouncer.command("PAUSE postgres")     # it accepts, and answers nobody
    try:
        before = time.monotonic()
        sender.send_orm("0")
        first = time.monotonic() - before
        waits = []
        for number in range(1, 10):
            before = time.monotonic()
            sender.send_orm(str(number))
            waits.append(time.monotonic() - before)
    finally:
        pgbouncer.command("RESUME postgres")
    assert PATIENCE - 1 < first < PATIENCE + 2
    assert max(waits) < AT_ONCE, waits
    gets_late(client, "0", held.server, since)
    assert [client.next(DEADLINE).payload for _ in range(9)] == [str(number) for number in range(1, 10)]


# -- one connection, as long as it is used -----------------------------------------------------------------------------

@pytest.mark.parametrize("workers", [0, 2], ids=["threaded", "prefork"])
def test_one_connection_and_only_in_who_notifies(odoo, bus, pgbouncer, postgres, workers):
    server = odoo(workers=workers)
    client, sender = bus(server)
    sender.send_sql("by somebody else")     # received, and so the evented process is at work
    assert client.next(DEADLINE)
    assert not kept(pgbouncer, server)
    sender.send_orm("one")
    assert client.next(DEADLINE).payload == "one"
    (port, pid), = kept(pgbouncer, server).items()
    if workers:
        assert pid in http_workers(server)
        wait_until(lambda: sender.send_orm("more") or len(kept(pgbouncer, server)) == 2, DEADLINE,
                   "the other worker takes none")
        assert set(kept(pgbouncer, server).values()) == http_workers(server)
        # it is the pooler's client: PostgreSQL itself has nobody from an HTTP worker
        assert not backends_of(postgres, http_workers(server))
    else:
        for number in range(20):
            sender.send_orm(number)
        assert kept(pgbouncer, server) == {port: pid}


@KINDS
def test_it_is_closed_when_idle(held, bus, pgbouncer, workers):
    idle = 8.0
    held = held(workers, env={"BUS_TEST_IDLE": str(idle)})
    client, sender = bus(held.server)
    for _ in range(2):      # and then there is another
        sender.send_orm("one")
        used = time.monotonic()
        assert client.next(DEADLINE).payload == "one"
        assert kept(pgbouncer, held.server)
        wait_until(lambda: not kept(pgbouncer, held.server), idle + 10, "it is not closed")
        took = time.monotonic() - used
        # in a threaded server a listener's thread closes it, at its next heartbeat
        assert idle - BEAT - 1 < took < idle + (2.0 if workers else 9.0)
    assert "closing because: client close request" in pgbouncer.log.read_text(), "without a goodbye"


@pytest.fixture
def evented(bus):
    """A client, and a sender whose transactions run in the evented process: `client, sender, pid = evented(server)`."""
    def open_bus(server):
        client, _ = bus(server)
        session = Session(server, "demo")
        # a server that is called at its other port: that process has all the routes
        session.odoo = types.SimpleNamespace(url=server.evented_url, evented_url=server.evented_url)
        sender = Sender(session, None, *client.channels)
        return client, sender, server.evented_pid
    return open_bus


def test_greenlets_share_one(odoo, evented, pgbouncer):
    server = odoo(workers=1)
    client, sender, pid = evented(server)
    warm(client, sender)
    before = kept(pgbouncer, server)
    assert pid in before.values()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(sender.send_orm, range(40)))
    assert kept(pgbouncer, server) == before
    assert "A NOTIFY on" not in server.log_text()


def test_the_evented_process_goes_on_meanwhile(held, evented, pgbouncer):
    """One greenlet waits for an answer that does not come; the others do not."""
    proxy = Proxy((pgbouncer.host, pgbouncer.port))
    try:
        held = held(1, options={"db_host": proxy.host, "db_port": proxy.port})
        client, sender, pid = evented(held.server)
        warm(client, sender)
        ours = [port for port, process in kept(pgbouncer, held.server, proxy).items() if process == pid]
        assert len(ours) == 1
        since = held.server.log_size()
        with held.sending(sender, "silent") as answer:
            proxy.forget(ours)
            held.go()
            stalls = []
            while not answer.done():
                before = time.monotonic()
                requests.get(held.server.evented_url + "/bus_alt_connection/health", timeout=DEADLINE)
                stalls.append(time.monotonic() - before)
            assert PATIENCE - 1 < answer.result() < PATIENCE + 1.0
        assert max(stalls) < AT_ONCE
        gets_late(client, "silent", held.server, since)
    finally:
        proxy.close()


@pytest.mark.needs("cron_listeners")
def test_cron_trigger_leaves_by_it(odoo, bus, pgbouncer, postgres):
    server = odoo(workers=0)
    wait_listening(postgres, server, "cron")
    with a_job(server, bus) as trigger:
        logins = len(re.findall("login attempt: db=postgres", pgbouncer.log.read_text()))
        for _ in range(3):
            assert trigger() < QUICK
        assert len(kept(pgbouncer, server)) == 1
        assert len(re.findall("login attempt: db=postgres", pgbouncer.log.read_text())) <= logins + 2


@pytest.mark.needs("notify_function")
def test_a_function_of_ones_own(odoo, bus, pgbouncer, postgres):
    """ODOO_NOTIFY_FUNCTION: what it names is what is called."""
    postgres.query("CREATE FUNCTION my_notify(channel text, payload text) RETURNS void LANGUAGE sql AS"
                   " $$ SELECT pg_notify('by_my_function', payload); SELECT pg_notify(channel, payload) $$")
    hearing = postgres.connect()
    try:
        hearing.cursor().execute("LISTEN by_my_function")
        server = odoo(env={"ODOO_NOTIFY_FUNCTION": "my_notify"})
        client, sender = bus(server)
        sender.send_orm("mine")
        assert client.next(DEADLINE).payload == "mine"
        assert len(kept(pgbouncer, server)) == 1
        # the listener's own test NOTIFY comes by it, too
        wait_until(lambda: hearing.poll() or compact([sender.wire_channel]) in [
            each.payload for each in hearing.notifies], DEADLINE, "the function was not called")
    finally:
        hearing.close()
        postgres.query("DROP FUNCTION my_notify")


# -- the switch --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("how", ["environment", "odoo.conf"])
def test_switched_off(odoo, bus, pgbouncer, how):
    off = {"env": {"IMDISPATCHER_KEEP_NOTIFY": "0"}} if how == "environment" else {
        "options": {"imdispatcher_keep_notify": False}}
    server = odoo(**off)
    client, sender = bus(server)
    for number in range(3):
        sender.send_orm(number)
        assert client.next(DEADLINE).payload == number
    assert not kept(pgbouncer, server)
    assert "Wrong setting" not in server.log_text()


def test_switch_that_is_wrong(odoo, bus, pgbouncer):
    server = odoo(options={"imdispatcher_keep_notify": "perhaps"})
    client, sender = bus(server)
    warm(client, sender)
    assert kept(pgbouncer, server), "the default holds"
    lines = [line for line in server.log_text().splitlines() if "Wrong setting" in line]
    assert len(lines) == 1 and "ERROR" in lines[0] and "imdispatcher_keep_notify" in lines[0], lines


# -- the database manager ----------------------------------------------------------------------------------------------

def db_service(server, method, *args):
    answer = requests.post(server.url + "/jsonrpc", timeout=300, json={
        "jsonrpc": "2.0", "method": "call", "id": 1,
        "params": {"service": "db", "method": method, "args": args}}).json()
    assert "error" not in answer, answer
    return answer["result"]


@pytest.mark.parametrize("pooled", [True, False], ids=["pooled", "direct"])
def test_database_manager(odoo, bus, facts, pooled):
    server = odoo(pooled=pooled, workers=2, load=f"{facts.server_wide},bus_alt_connection",
                  options={"list_db": True, "db_name": None, "dbfilter": ".*"})
    client, sender = bus(server)

    def still_notifies(payload):
        sender.send_orm(payload)
        assert client.next(DEADLINE).payload == payload

    still_notifies("before")
    assert "demo" in db_service(server, "list")
    assert db_service(server, "duplicate_database", "admin", "demo", "copied")
    still_notifies("after a copy")
    assert db_service(server, "rename", "admin", "copied", "renamed")
    assert {"demo", "renamed"} <= set(db_service(server, "list"))
    still_notifies("after a new name")
    assert db_service(server, "drop", "admin", "renamed")
    assert "renamed" not in db_service(server, "list")
    assert db_service(server, "create_database", "admin", "created", False, "en_US", "admin")
    still_notifies("after a new database")
    assert db_service(server, "drop", "admin", "created")
    assert not {"created", "renamed", "copied"} & set(db_service(server, "list"))


@KINDS
def test_template_postgres_within_the_idle_time(held, postgres, pgbouncer, workers):
    """Without a pooler the connection is a session of `postgres`, which has to be gone for a copy of that."""
    if not workers:
        pytest.skip("a threaded server that has no listener keeps its idle connection: no thread is there to close it")
    idle = 15.0
    held = held(workers, pooled=False, env={"BUS_TEST_IDLE": str(idle)}, options={"max_cron_threads": 0})
    sender = Sender(Session(held.server, "demo"), pgbouncer)
    connection = postgres.connect("template1")
    pgbouncer.stop()    # that has sessions of `postgres`, too
    try:
        sender.send_orm("one")
        used = time.monotonic()
        ours = [row for row in backends_of(postgres, [held.server.pid, *children(held.server.pid)]) if row[1] == NAME]
        assert len(ours) == 1

        def made():
            try:    # PostgreSQL itself waits for 5 s for the others to leave
                connection.cursor().execute("CREATE DATABASE made TEMPLATE postgres")
                return True
            except psycopg2.errors.ObjectInUse:
                return False

        assert not made(), "it is in the way"
        wait_until(made, idle + 20, "it stays in the way")
        assert time.monotonic() - used < idle + 6.0
        connection.cursor().execute("DROP DATABASE made")
    finally:
        pgbouncer.start()
        connection.close()


# -- inside one process ------------------------------------------------------------------------------------------------

PRELUDE = '''
import contextlib, logging, os, select, sys, threading, time
import psycopg2
import odoo.sql_db
from odoo.tools import config
from odoo.addons.bus_alt_connection import notifier, routing

def notify(payload, channel="imbus"):
    with odoo.sql_db.db_connect("postgres").cursor() as cr:
        cr.execute("notify imbus, %s", (payload,))

hearing = psycopg2.connect(host=config["imdispatcher_db_host"], port=config["imdispatcher_db_port"], dbname="postgres",
                           user=config["db_user"], password=config["db_password"])
hearing.autocommit = True
hearing.cursor().execute("LISTEN imbus")

def heard(last, timeout=60):
    """The payloads that came, up to this one."""
    found, deadline = [], time.monotonic() + timeout
    while last not in found:
        assert time.monotonic() < deadline, "not %r, but %s" % (last, found)
        select.select([hearing], [], [], deadline - time.monotonic())
        hearing.poll()
        found += [hearing.notifies.pop(0).payload for _ in list(hearing.notifies)]
    return found

def wait_until(done, what, timeout=60):
    deadline = time.monotonic() + timeout
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)

def raises(kind, function, *args):
    try:
        function(*args)
    except kind as exc:
        return exc
    raise AssertionError("%s is not raised" % kind)

def threads():
    return [each for each in threading.enumerate() if each.name == "bus_alt_connection.notifier"]

@contextlib.contextmanager
def away():
    """Odoo's own address refuses."""
    port, config["db_port"] = config["db_port"], 1
    try:
        yield
    finally:
        config["db_port"] = port

def backend():
    """Who the connection is for PostgreSQL, which is asked over it."""
    return of(ours).query("SELECT pg_backend_pid()")[0][0]

def of(notifier):
    """The connection that it keeps, or None."""
    return notifier.path._kept.get("postgres")

def counted():
    """(how many left, wait, were dropped, connections that were made)"""
    return ours.sent, len(ours.queue), ours.dropped, ours.path.connections

ours = notifier.get_notifier()
'''


def in_odoo(stack, script, pooled=False, end="print('the end')"):
    """Run a script in `odoo shell`, in a process of its own: what it printed. An error in it is one here."""
    odoo = stack.odoo(pooled=pooled, name=f"odoo-shell-{time.monotonic_ns()}")
    config = odoo.config({"workers": 0, "max_cron_threads": 0, "db_name": "demo"})
    done = subprocess.run([*odoo.source.command, "shell", "-c", str(config), "-d", "demo", "--no-http"],
                          input=PRELUDE + textwrap.dedent(script) + "\n" + end + "\n", env=odoo.env(), cwd=odoo.folder,
                          text=True, errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    assert "the end" in done.stdout, done.stdout
    return done.stdout


def test_what_the_server_refuses_is_the_callers_error(stack):
    in_odoo(stack, """
        notify("first")
        pid = backend()
        exc = raises(psycopg2.Error, notify, "x" * 8000)
        assert exc.pgcode == "22023", exc.pgcode
        assert "payload string too long" in str(exc)
        assert counted() == (1, 0, 0, 1)
        notify("x" * 7999)
        assert backend() == pid, "it is as good as before"

        def several():
            with odoo.sql_db.db_connect("postgres").cursor() as cr:
                cr.execute("notify imbus, %s", ("one of two",))
                cr.execute("notify imbus, %s", ("x" * 8000,))

        def while_another_is_handled():
            try:
                raise exc
            except psycopg2.Error:
                with away():
                    ours.path.close()
                    notify("kept")

        raises(psycopg2.Error, several)
        while_another_is_handled()
        notify("last")
        found = heard("last")
        assert found == ["first", "x" * 7999, "kept", "last"], [each[:10] for each in found]
    """)


def test_it_leaves_when_the_cursor_commits(stack):
    in_odoo(stack, """
        class Broken(Exception):
            pass

        def broken():
            with odoo.sql_db.db_connect("postgres").cursor() as cr:
                cr.execute("notify imbus, %s", ("broken",))
                raise Broken()

        def rolled_back():
            cr = odoo.sql_db.db_connect("postgres").cursor()
            cr.execute("notify imbus, %s", ("rolled back",))
            cr.rollback()
            cr.execute("notify imbus, %s", ("committed",))
            cr.commit()
            cr.execute("notify imbus, %s", ("closed",))
            cr.close()
            assert cr.closed
            raises(psycopg2.Error, cr.execute, "notify imbus, %s", ("too late",))
            raises(psycopg2.Error, cr.execute, "SELECT 1")

        raises(Broken, broken)
        rolled_back()
        notify("last")
        assert heard("last") == ["committed", "last"]
        assert counted() == (2, 0, 0, 1)
    """)


def test_used_for_more_it_is_odoos_own_cursor(stack):
    in_odoo(stack, """
        def mixed(committed):
            with odoo.sql_db.db_connect("postgres").cursor() as cr:
                assert type(cr) is routing.SystemCursor
                cr.execute("notify imbus, %s", ("first",))
                cr.execute("SELECT %s::int", (5,))
                assert type(cr._cursor) is odoo.sql_db.Cursor
                assert cr.fetchone() == (5,) and cr.rowcount == 1 and cr.dbname == "postgres"
                cr.execute("notify imbus, %s", ("second",))
                assert not cr.closed
                assert not committed or cr.commit() is None
                cr.rollback()
            assert cr.closed

        def fetched():
            with odoo.sql_db.db_connect("postgres").cursor() as cr:
                cr.execute("SELECT pg_notify('imbus', %s)", ("fetched",))
                assert cr.fetchall() == [("",)]

        mixed(False)
        mixed(True)
        fetched()
        assert heard("fetched") == ["first", "second", "fetched"]
        assert counted() == (0, 0, 0, 0)
    """)


def test_everybody_else_gets_odoos_own(stack):
    """The list of the databases has to fail where it always did: else it finds none, which ends all sessions."""
    in_odoo(stack, """
        from odoo.service import db

        config["list_db"], config["db_name"] = True, False
        notify("once")
        connection = odoo.sql_db.db_connect("postgres")
        assert type(connection) is odoo.sql_db.Connection
        with contextlib.closing(connection.cursor()) as cr:
            cr.execute("SELECT 1")
            assert type(cr._cursor) is odoo.sql_db.Cursor and not cr._cnx.closed
        assert "demo" in db.list_dbs(True)
        assert type(odoo.sql_db.db_connect("demo")) is odoo.sql_db.Connection
        for to, more in (("postgres", {"allow_uri": True}), ("demo", {})):
            with contextlib.closing(odoo.sql_db.db_connect(to, **more).cursor()) as cr:
                assert type(cr) is odoo.sql_db.Cursor
        with away():
            raises(psycopg2.OperationalError, db.list_dbs, True)
            raises(psycopg2.OperationalError, odoo.sql_db.db_connect("postgres").cursor().execute, "SELECT 1")
    """)


def test_forks_share_nothing(stack):
    in_odoo(stack, """
        def child(end):
            pid = os.fork()
            if pid:
                assert os.waitpid(pid, 0)[1] == 0
                return
            try:
                theirs = notifier.get_notifier()
                assert theirs is not ours and theirs.sent == 0
                notify("from a child")
                assert of(theirs).query("SELECT pg_backend_pid()")[0][0] != parent
                if end == "exit":
                    sys.exit(0)         # with what Python does at its end
                if end == "collect":
                    notifier._notifiers.clear()
                    import gc; gc.collect()
                os._exit(0)
            except AssertionError:
                import traceback; traceback.print_exc()
                os._exit(1)

        with_lock = threading.Event()

        def send_all_the_time():
            while not with_lock.is_set():
                notify("meanwhile")

        notify("before")
        parent = backend()
        hearing.notifies.clear()
        for end in ("exit", "collect", "_exit"):
            child(end)
            heard("from a child")
            notify("from the parent")
            heard("from the parent")
            assert backend() == parent
        # and while another thread of the parent holds the lock
        sender = threading.Thread(target=send_all_the_time)
        sender.start()
        for _ in range(5):
            child("_exit")
        with_lock.set()
        sender.join()
        assert backend() == parent
        # one that had something waiting leaves it to its parent
        with away():
            ours.path.close()
            notify("waits")
            child_pid = os.fork()
            if not child_pid:
                os._exit(len(notifier.get_notifier().queue))
            assert os.waitpid(child_pid, 0)[1] == 0
        heard("waits")
    """)


def test_what_waits(stack):
    """Equal ones are one, too many are dropped, all in their order; the thread ends when nothing is left to do."""
    log = in_odoo(stack, """
        notifier.Notifier.LIMIT = 3
        assert not threads()
        with away():
            for payload in ("1", "2", "2", "3", "4", "5", "4"):
                notify(payload)
            assert len(ours.queue) in (3, 4), counted()
            assert len(threads()) == 1
            with odoo.sql_db.db_connect("postgres").cursor() as cr:
                cr.execute("NOTIFY cron_trigger, %s", ["demo"])
        found = heard("5")
        assert found == sorted(found) and found[-2:] == ["4", "5"], found
        wait_until(lambda: not ours.queue, "some wait still")
        wait_until(lambda: not threads(), "the thread stays")
        assert ours.sent + ours.dropped == 6 and 2 <= ours.dropped <= 3, counted()
    """)
    assert len(re.findall("WARNING .*Cannot send a NOTIFY: ", log)) == 1
    assert len(re.findall("WARNING .*More than 3 NOTIFYs are queued: the oldest are dropped", log)) == 1
    assert len(re.findall("INFO .*All queued NOTIFYs have been sent", log)) == 1


def test_one_that_waited_and_is_refused_is_dropped(stack):
    log = in_odoo(stack, """
        with away():
            for payload in ("first", "x" * 8000, "last"):
                notify(payload)
        assert heard("last") == ["first", "last"]
        assert ours.dropped == 1
    """)
    assert len(re.findall("WARNING .*A queued NOTIFY was refused and is dropped: payload", log)) == 1


def test_threads_share_one(stack):
    in_odoo(stack, """
        def send(name):
            for number in range(100):
                notify("%s-%d" % (name, number))

        senders = [threading.Thread(target=send, args=(name,)) for name in "abcdefgh"]
        for each in senders:
            each.start()
        for each in senders:
            each.join()
        notify("last")
        found = heard("last")
        assert len(found) == 801
        for name in "abcdefgh":     # those of one thread in their order
            assert [each for each in found if each.startswith(name + "-")] == ["%s-%d" % (name, n) for n in range(100)]
        assert counted() == (801, 0, 0, 1) and not threads()
    """)


def test_a_connection_that_died_costs_nobody_anything(stack):
    log = in_odoo(stack, """
        notify("first")
        for number in range(3):
            hearing.cursor().execute("SELECT pg_terminate_backend(%s)", (backend(),))
            notify(str(number))
        assert heard("2") == ["first", "0", "1", "2"]
        assert counted() == (4, 0, 0, 4)
    """)
    assert "WARNING" not in log.split("the end")[0].split("modules loaded")[-1], log
