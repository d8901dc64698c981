"""What the server holds is not repeated beside it: a locked table, a NOTIFY in its commit, a database that is copied.

PostgreSQL says how many of its backends wait. Takes 8 min.
"""
import contextlib
import itertools
import os
import signal
import threading
import time

import pytest

from stack.clients.client import OdooError, Sender
from stack.clients.listeners import check_once_a_minute, wait_listening
from stack.clients.state import lines, wait_failing, wait_healthy
from stack.clients.unnotified import clients, gets
from stack.process import DEADLINE, wait_until

NAMES = itertools.count(1)
HELD = 90           # seconds
AT_MOST = 2         # backends of one Odoo that wait at the same time
EVERY = 0.25        # seconds between two counts
pytestmark = [pytest.mark.timeout(600), pytest.mark.long]


@pytest.fixture
def second(stack):
    """Another database with an Odoo in it, which is gone after the test."""
    name = stack.database(f"held{next(NAMES)}")
    yield name
    stack.drop(name)


@pytest.fixture
def console(postgres):
    """A superuser's connection that stays open."""
    with contextlib.closing(postgres.connect()) as connection:
        yield connection


def ask(connection, sql, params=None):
    with connection.cursor() as cr:
        cr.execute(sql, params)
        return cr.fetchall()


class Count(threading.Thread):
    """Counts some backends until the block ends: `most`, and with `seen` how many there were when."""

    def __init__(self, postgres, sql, params):
        super().__init__(daemon=True)
        self.connection = postgres.connect()
        self.question = f"SELECT count(*) FROM ({sql}) AS found", params
        self.seen = []
        self.ending = threading.Event()

    def now(self):
        return ask(self.connection, *self.question)[0][0]

    def run(self):
        while not self.ending.wait(EVERY):
            self.seen.append(self.now())

    @property
    def most(self):
        return max(self.seen, default=0)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc):
        self.ending.set()
        self.join()
        self.connection.close()


def while_held(count, seconds=HELD, each=None):
    """Let so much time pass, with `each` every two seconds; too many ends it at once."""
    over = time.monotonic() + seconds
    while time.monotonic() < over:
        assert count.most <= AT_MOST, f"{count.most} backends wait, {seconds - over + time.monotonic():.0f} s after it"
        if each:
            each()
        turn = min(over, time.monotonic() + 2)
        wait_until(lambda turn=turn: time.monotonic() > turn, DEADLINE, "time stands still")


WAITS_FOR_A_LOCK = "SELECT 1 FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'"


@pytest.mark.parametrize("pooled, listens", [(True, True), (True, False), (False, True)],
                         ids=["pooled", "pooled-polling", "straight"])
def test_a_locked_table(stack, odoo, postgres, proxy, second, facts, pooled, listens):
    """The other databases are looked at as ever, one warning names the locked one, and nothing of it is left behind."""
    server = odoo(f"demo,{second}", pooled=pooled, options={
        "imdispatcher_db_host": proxy.host, "imdispatcher_db_port": proxy.port, "max_cron_threads": 0})
    with clients(stack, server, "demo", second) as found:
        wait_listening(postgres, server, "bus")
        wait_healthy(server)
        client, sender = found["demo"]
        if facts.client == "LongPolling":
            found[second][0].close()        # it would poll anew, and wait for the lock by itself
        locker = postgres.connect(second)
        locker.autocommit = False
        try:
            if not listens:
                proxy.refuse()
                wait_failing(server)
            with Count(postgres, WAITS_FOR_A_LOCK, [second]) as count:
                since = server.log_size()
                locker.cursor().execute("LOCK TABLE bus_bus")
                sent = itertools.count()

                def another_row_arrives():
                    number = next(sent)
                    sender.insert(number)
                    gets(client, number)
                while_held(count, each=another_row_arrives)
                locker.rollback()
                wait_until(lambda: not count.now(), 5, "backends wait for a lock that nobody holds")
                assert count.seen and count.most >= (facts.client != "LongPolling"), "nobody looked at the locked table"
            if facts.client != "LongPolling":
                log = "\n".join(line for line in lines(server, second, since) if " DEBUG " not in line)
                check_once_a_minute(r" (WARNING|ERROR) ", log)
                found[second][1].insert("after the lock")
                gets(found[second][0], "after the lock")
        finally:
            proxy.heal()
            locker.close()


HANGS = "SELECT 1 FROM pg_stat_activity WHERE datname = 'postgres' AND usename = 'odoo' AND query ~* 'notify'" \
        " AND wait_event_type = 'Lock'"


@pytest.fixture
def hanging(postgres, console):
    """`with hanging():` all NOTIFYs hang in their commit.

    The lock that each commit of a NOTIFY takes is held by another session, whose own commit waits for a standby that
    is not there.
    """
    @contextlib.contextmanager
    def hanging():
        postgres.query("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        postgres.query("SELECT pg_reload_conf()")
        other = postgres.connect()
        thread = threading.Thread(target=commit, args=[other], daemon=True)
        try:
            thread.start()
            wait_until(lambda: ask(console, "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"), DEADLINE,
                       "the other session does not hang")
            yield
        finally:
            postgres.query("ALTER SYSTEM RESET synchronous_standby_names")
            postgres.query("SELECT pg_reload_conf()")
            thread.join(DEADLINE)
            other.close()

    def commit(connection):
        cr = connection.cursor()
        cr.execute("SET synchronous_commit = on")
        connection.autocommit = False
        # what has written nothing but a NOTIFY waits for no standby
        cr.execute("SELECT pg_logical_emit_message(true, 'test', 'something'), pg_notify('test', 'something')")
        connection.commit()

    # everyone else's commits wait for nobody
    postgres.query("ALTER SYSTEM SET synchronous_commit = 'local'")
    postgres.query("SELECT pg_reload_conf()")
    yield hanging
    postgres.query("ALTER SYSTEM RESET synchronous_commit")
    postgres.query("SELECT pg_reload_conf()")


@pytest.mark.parametrize("pooled", [True, False], ids=["pooled", "straight"])
def test_a_notify_that_hangs(stack, odoo, postgres, hanging, pooled):
    """What is sent arrives by polling, and of NOTIFYs that PostgreSQL holds there are two, not more each minute."""
    server = odoo(pooled=pooled, options={"max_cron_threads": 0})
    with clients(stack, server, "demo") as found:
        client, own = found["demo"]
        wait_listening(postgres, server, "bus")
        wait_healthy(server)
        sender = Sender(own.session, stack.postgres, own.channel)
        sender.send_orm("the first prepares the others")
        gets(client, "the first prepares the others")
        since = server.log_size()
        with Count(postgres, HANGS, None) as count:
            ending = threading.Event()
            sent = []

            def send():
                while not ending.wait(1):
                    number = len(sent)
                    with contextlib.suppress(OdooError):        # a request that was held for too long is an error
                        sender.send_orm(number)
                        sent.append(number)
            thread = threading.Thread(target=send, daemon=True)
            with hanging():
                thread.start()
                try:
                    while_held(count)
                    assert count.most, "no NOTIFY hangs"
                finally:
                    ending.set()
            thread.join(DEADLINE)
            wait_until(lambda: not count.now(), 10, "NOTIFYs hang that nothing holds")
        assert len(sent) > 5, "who sends is held for too long"
        for number in sent:
            gets(client, number)
        check_once_a_minute(r" (WARNING|ERROR) .*NOTIFY", "\n".join(lines(server, "", since)))
        wait_healthy(server, timeout=30)
        sender.send_orm("at once")
        gets(client, "at once", timeout=5)


LOCKS = "SELECT 1 FROM pg_locks JOIN pg_database ON pg_database.oid = objid AND classid = 'pg_database'::regclass"
IN_START_UP = f"{LOCKS} WHERE datname = %s AND NOT granted"


def test_a_database_that_is_copied(stack, odoo, postgres, console, second, facts):
    """Without a pooler. New connections to it are held in their start-up, where no timeout of the server's counts.

    One of them may be Odoo's own.
    """
    if facts.client == "LongPolling":
        pytest.skip(f"in {facts} each poll of a client is a connection of Odoo's own, and they are held one by one")
    server = odoo(f"demo,{second}", pooled=False, options={"max_cron_threads": 0})
    copying = postgres.connect()
    target = f"{second}_copy"

    def copy():
        # ended on purpose, or refused as someone was quicker than the test
        with contextlib.suppress(Exception):
            copying.cursor().execute(f'CREATE DATABASE "{target}" TEMPLATE "{second}"')
    thread = threading.Thread(target=copy, daemon=True)
    pid = copying.info.backend_pid
    try:
        with clients(stack, server, "demo", second) as found, Count(postgres, IN_START_UP, [second]) as count:
            wait_listening(postgres, server, "bus")
            wait_healthy(server)
            found[second][1].close()
            thread.start()
            own_lock = f"{LOCKS} WHERE pid = %s AND datname = %s AND mode = 'ShareLock' AND granted"
            wait_until(lambda: ask(console, own_lock, [pid, second]), DEADLINE, "it is not copied")
            os.kill(pid, signal.SIGSTOP)
            try:
                ask(console, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [second])
                client, sender = found["demo"]
                sent = itertools.count()

                def another_row_arrives():
                    number = next(sent)
                    sender.insert(number)
                    gets(client, number)
                while_held(count, each=another_row_arrives)
                assert count.most, "nobody connects to it"
            finally:
                os.kill(pid, signal.SIGCONT)
                thread.join(DEADLINE)
            wait_until(lambda: not count.now(), 10, "connections are held that nothing holds")
            found[second][1].insert("after it")
            gets(found[second][0], "after it")
    finally:
        copying.close()
        server.kill()
        postgres.query(f'DROP DATABASE IF EXISTS "{target}" WITH (FORCE)')
