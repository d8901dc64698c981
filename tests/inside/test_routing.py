"""Routing inside a real Odoo, through a real pooler: which `db_connect` goes where.

Contract: a thread that is not marked gets upstream's own. In a marked one the first cursor on the system database
listens directly, all others are pooled while it is open, and the next one listens when it is closed. After that nothing
is left of it. PostgreSQL and the kernel are asked, not the addon.
"""
import contextlib
import os
import select
import sys
import threading
import time
import traceback

import psycopg2
import pytest

import odoo.sql_db
from odoo import api
from odoo.modules.registry import Registry
from odoo.tools import config

SYSTEM = "postgres"
CYCLES = 5


def wait_until(done, what, timeout=60):
    deadline = time.monotonic() + timeout
    while not done():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout} s: {what() if callable(what) else what}\n{stacks()}")
        time.sleep(0.02)


def stacks():
    """Where all threads but this one are."""
    frames = sys._current_frames()
    return "\n".join(thread.name + "\n" + "".join(traceback.format_stack(frames[thread.ident]))
                     for thread in threading.enumerate() if thread is not threading.current_thread())


@pytest.fixture(scope="module")
def postgres():
    """Asks PostgreSQL itself, past the pooler, as the role that Odoo is."""
    connection = psycopg2.connect(
        host=config["imdispatcher_db_host"], port=config["imdispatcher_db_port"], dbname=SYSTEM,
        user=config["db_user"], password=config["db_password"])
    connection.autocommit = True

    def query(sql, *args):
        with connection.cursor() as cr:
            cr.execute(sql, args)
            return cr.fetchall()
    yield query
    connection.close()


@pytest.fixture
def subscribers(addon):
    """Marks as a listener's thread: what a cron thread is marked with."""
    return lambda: addon.cron.Subscribers(lambda: [""])


@pytest.fixture
def listeners(postgres):
    """The direct backends of this process, as PostgreSQL has them."""
    def of_this_process():
        return [pid for pid, in postgres("SELECT pid FROM pg_stat_activity WHERE application_name LIKE %s ORDER BY pid",
                                         rf"bus\_alt\_connection % {os.getpid()}")]
    wait_until(lambda: not of_this_process(), "an earlier test's listener ends")
    return of_this_process


@pytest.fixture
def notify():
    """NOTIFY by another statement than Odoo's: a short connection to the system database, through the pooler."""
    def send(channel, payload):
        with odoo.sql_db.db_connect(SYSTEM).cursor() as cr:
            cr.execute("SELECT pg_notify(%s, %s)", (channel, payload))
            assert is_pooled(cr)
    return send


def is_pooled(cr):
    """Whether this is on a connection to the address that Odoo itself was given."""
    return cr._cnx.get_dsn_parameters()["port"] == str(config["db_port"])


def received(connection, payload, timeout=60):
    """Wait on a connection, as upstream's loop waits, until this payload is there."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if select.select([connection], [], [], deadline - time.monotonic())[0]:
            connection.poll()
            while connection.notifies:
                if connection.notifies.pop(0).payload == payload:
                    return True
    return False


@contextlib.contextmanager
def listening(channel, listeners):
    """A cursor that LISTENs, begun as upstream begins; it is listening when the block begins."""
    before = set(listeners())     # one that ended a moment ago may be among them
    with odoo.sql_db.db_connect(SYSTEM).cursor() as cr:
        cr.execute("LISTEN " + channel)
        cr.commit()
        wait_until(lambda: set(listeners()) - before, "a listener connects directly")
        # PostgreSQL has its backend before that LISTENs
        wait_until(lambda: cr._listener.state.phase == "listening", "it listens")
        yield cr


def run(*functions):
    """Run each in a thread of its own, at the same time; an error in one is raised here."""
    errors = []

    def guarded(function):
        try:
            function()
        except BaseException as exc:  # an assertion as well
            errors.append(exc)
    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def test_an_unmarked_thread_gets_upstreams_own(addon, listeners):
    for database in (SYSTEM, config["db_name"]):
        database = database if isinstance(database, str) else database[0]
        connection = odoo.sql_db.db_connect(database)
        assert type(connection) is odoo.sql_db.Connection
        assert connection.dbname == database
        with connection.cursor() as cr:
            assert is_pooled(cr)
    assert not listeners()


def test_upstreams_arguments_are_passed_on():
    user, password, host, port = (config["db_" + name] for name in ("user", "password", "host", "port"))
    uri = f"postgresql://{user}:{password}@{host}:{port}/{SYSTEM}"
    with pytest.raises(ValueError, match="URI"):
        odoo.sql_db.db_connect(uri)
    with odoo.sql_db.db_connect(uri, allow_uri=True).cursor() as cr:
        assert is_pooled(cr)


def test_a_marked_thread_listens_directly(addon, subscribers, listeners, notify):
    with addon.routing.listening_for(subscribers()), listening("inside", listeners) as cr:
        notify("inside", "through the pooler")
        assert received(cr._cnx, "through the pooler")
        notify("another_channel", "not for us")
        notify("inside", "the next one")
        assert received(cr._cnx, "the next one")


def test_only_the_first_cursor_listens(addon, subscribers, listeners, notify):
    with addon.routing.listening_for(subscribers()):
        for turn in ("first", "again"):     # when it is closed, the next one listens
            with listening("inside", listeners) as cr:
                for _ in range(3):
                    connection = odoo.sql_db.db_connect(SYSTEM)
                    assert type(connection) is odoo.sql_db.Connection
                    with connection.cursor() as other:
                        assert is_pooled(other)
                        assert len(listeners()) == 1
                notify("inside", turn)
                assert received(cr._cnx, turn)
            wait_until(lambda: not listeners(), "the listener ends")


def test_other_databases_are_not_touched(addon, subscribers, listeners, request):
    name = request.config.getoption("--odoo-database")
    with addon.routing.listening_for(subscribers()):
        assert type(odoo.sql_db.db_connect(name)) is odoo.sql_db.Connection
        with odoo.sql_db.db_connect(name).cursor() as cr:
            assert is_pooled(cr)
        assert not listeners()
        with listening("inside", listeners), odoo.sql_db.db_connect(name).cursor() as cr:
            assert is_pooled(cr)


def test_a_job_in_a_listeners_thread_notifies_through_the_pooler(addon, subscribers, listeners, request):
    """A cron thread runs jobs while its listening cursor is open; what they send comes back to it."""
    name = request.config.getoption("--odoo-database")
    with addon.routing.listening_for(subscribers()), listening("imbus", listeners) as cr:
        with Registry(name).cursor() as job:
            bus = api.Environment(job, api.SUPERUSER_ID, {})["bus.bus"]
            if hasattr(bus, "_sendone"):
                bus._sendone("inside", "bus_alt", {})
                payload = f'[["{name}","inside"]]'
            else:       # before series 15, when a channel had no database
                bus.sendone("inside", {})
                payload = '["inside"]'
            job.commit()        # what is to run then has other names before series 14
        assert received(cr._cnx, payload)
        assert len(listeners()) == 1


@pytest.fixture
def sent(addon):
    """How many NOTIFYs left on the connection that is kept."""
    return lambda: addon.notifier.get_notifier().sent


def test_who_notifies_in_a_marked_thread_that_does_not_listen(addon, subscribers, listeners, sent):
    """A cron thread before series 15: what its jobs send takes the way of all. One that does LISTEN listens."""
    def sends():
        before = sent()
        with odoo.sql_db.db_connect(SYSTEM).cursor() as cr:
            cr.execute("NOTIFY imbus, %s", ("[]",))
        assert sent() == before + 1

    def listens_and_sends():
        with odoo.sql_db.db_connect(SYSTEM).cursor() as cr:
            cr.execute("LISTEN imbus")
            cr.commit()
            wait_until(lambda: [one.state.phase for one in addon.listener.listeners()] == ["listening"], "it listens")
            sends()
            assert received(cr._cnx, "[]")
            cr.execute("NOTIFY imbus, %s", ('["by itself"]',))
            cr.commit()
            assert received(cr._cnx, '["by itself"]')

    with addon.routing.listening_for(subscribers()):
        sends()
        assert not listeners()
        listens_and_sends()
    wait_until(lambda: not listeners(), "the listener ends")


def test_threads_are_on_their_own(addon, subscribers, listeners, notify):
    """Two that are marked have a listener each; one that is not has none, at the same time."""
    # each waits for all: the third looks while both listen
    together = threading.Barrier(3)

    def marked(channel):
        with addon.routing.listening_for(subscribers()), odoo.sql_db.db_connect(SYSTEM).cursor() as cr:
            cr.execute("LISTEN " + channel)
            cr.commit()
            together.wait(60)
            together.wait(60)
            assert received(cr._cnx, channel)

    def unmarked():
        together.wait(60)
        wait_until(lambda: len(listeners()) == 2, lambda: f"two listeners, but {listeners()}")
        assert type(odoo.sql_db.db_connect(SYSTEM)) is odoo.sql_db.Connection
        together.wait(60)
        notify("one", "one")
        notify("two", "two")

    run(lambda: marked("one"), lambda: marked("two"), unmarked)
    wait_until(lambda: not listeners(), "both listeners end")


def test_a_mark_ends_with_its_block(addon, subscribers, listeners):
    class Broken(Exception):
        pass

    with pytest.raises(Broken), addon.routing.listening_for(subscribers()), listening("inside", listeners):
        raise Broken()
    wait_until(lambda: not listeners(), "the listener ends")
    assert type(odoo.sql_db.db_connect(SYSTEM)) is odoo.sql_db.Connection
    # inside a block, a cursor that ended with an error lets the next one listen
    with addon.routing.listening_for(subscribers()):
        with pytest.raises(Broken), listening("inside", listeners):
            raise Broken()
        wait_until(lambda: not listeners(), "the listener ends")
        with listening("inside", listeners):
            pass


def test_a_commit_that_fails_closes_it_too(addon, subscribers, listeners):
    with addon.routing.listening_for(subscribers()):
        with pytest.raises(psycopg2.IntegrityError), odoo.sql_db.db_connect(SYSTEM).cursor() as cr:
            cr.execute("LISTEN inside")
            cr.execute("CREATE TEMP TABLE twice (number int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
            cr.execute("INSERT INTO twice VALUES (1), (1)")
        assert cr.closed
        wait_until(lambda: not listeners(), "the listener ends")
        with listening("inside", listeners):
            pass    # the next one listens


def test_a_query_of_another_kind_is_pooled(addon, subscribers, listeners):
    with addon.routing.listening_for(subscribers()), listening("inside", listeners) as cr:
        cr.execute("SELECT pg_is_in_recovery()")
        assert cr.fetchone() == (False,)
        direct, = listeners()
        cr.execute("SELECT pg_backend_pid() != %s", (direct,))
        assert cr.fetchone() == (True,)


def test_a_listener_that_cannot_connect_ends_too(addon, subscribers, listeners, monkeypatch):
    monkeypatch.setenv("IMDISPATCHER_DB_PORT", "1")
    before = threads()
    with addon.routing.listening_for(subscribers()), odoo.sql_db.db_connect(SYSTEM).cursor() as cr:
        cr.execute("LISTEN inside")
        cr.commit()
        wait_until(lambda: cr._listener.state.problem, "it says that it cannot connect")
        assert cr._listener.state.problem.cause.name == "unreachable"
        assert threads() - before
    wait_until(lambda: not threads() - before, lambda: "threads that stay: %s" % (threads() - before))


def test_the_next_host_is_tried(addon, subscribers, listeners, notify, monkeypatch):
    monkeypatch.setenv("IMDISPATCHER_DB_HOST", "127.0.0.1,{}".format(config["imdispatcher_db_host"]))
    monkeypatch.setenv("IMDISPATCHER_DB_PORT", "1,{}".format(config["imdispatcher_db_port"]))
    with addon.routing.listening_for(subscribers()), listening("inside", listeners) as cr:
        notify("inside", "here")
        assert received(cr._cnx, "here")


def threads():
    return {thread.ident for thread in threading.enumerate() if thread.name.startswith("bus_alt_connection")}


def descriptors():
    """This process's open files, by what they are; /proc itself is open while it is read."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink("/proc/self/fd/" + number)
            if not target.startswith("/proc/"):
                found.append(target)
    return sorted(found)


def test_nothing_leaks_after_close(addon, subscribers, listeners, notify):
    with addon.routing.listening_for(subscribers()):
        with listening("inside", listeners):    # what is made once, by Odoo's pool or an import, is made now
            notify("inside", "before")
        # also the thread that keeps the connection of an earlier test's NOTIFY, for a minute
        wait_until(lambda: not listeners() and not threads(), lambda: f"threads that stay: {threads()}", timeout=120)
        before = descriptors()
        for turn in range(CYCLES):
            with listening("inside", listeners) as cr:
                notify("inside", str(turn))
                assert received(cr._cnx, str(turn))
                # that of the turn before is on its way out
                wait_until(lambda: len(threads()) == 1, lambda: f"one thread, but {threads()}")
                assert len(descriptors()) > len(before)
            assert cr._cnx.closed
        wait_until(lambda: not threads(), lambda: f"threads that stay: {threads()}")
        wait_until(lambda: not listeners(), lambda: f"backends that stay: {listeners()}")
        wait_until(lambda: len(descriptors()) <= len(before),
                   lambda: "open files that stay: %s" % (set(descriptors()) - set(before)))
        cr.close()      # a second time


def test_a_cursor_that_never_listened_leaves_nothing(addon, subscribers):
    with addon.routing.listening_for(subscribers()):
        before = descriptors()
        for _ in range(CYCLES):
            odoo.sql_db.db_connect(SYSTEM).cursor().close()
        wait_until(lambda: len(descriptors()) <= len(before),
                   lambda: "open files that stay: %s" % (set(descriptors()) - set(before)))
