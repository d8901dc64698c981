"""What is wrong with the direct address is said in one line, and the bus is degraded, not dark.

Each case breaks one thing for real, awaits its line in the log, sees a notification arrive all the same, mends it
where PostgreSQL can, and sees the listener come by itself.

Takes 3 min.
"""
import time

import pytest

from stack.clients.client import compact
from stack.clients.flow import Flow
from stack.clients.listeners import check_once_a_minute, wait_listening
from stack.process import free_port

DEGRADED = 30.0     # seconds, for every notification; it is 10 at most


def degraded(stack, server, flow):
    """Every notification arrives within the degraded time, and nothing of this shows a traceback or a secret."""
    event = time.monotonic()
    flow.wait_received(1, since=event)
    assert flow.slowest(since=event) < DEGRADED
    log = server.log_text()
    assert stack.postgres.odoo_password not in log
    assert "Traceback" not in log


def instant(stack, server, flow, line):
    """The bus listens to PostgreSQL, its log has the line, and what is sent from then on comes at once."""
    wait_listening(stack.postgres, server, "bus")
    server.wait_log(line)
    flow.check_pushed()


@pytest.fixture
def see(stack, odoo):
    """Start a server with these settings, await the line, see the bus degraded; and then see it heal, if it can."""
    def see(line, heal=None, level="ERROR", **settings):
        settings.setdefault("poll_seconds", 2)      # quicker than the default, which is tried below
        env = {f"IMDISPATCHER_{name.upper()}": str(value) for name, value in settings.items()}
        server = odoo(env=env, options={"max_cron_threads": 0})
        with Flow(server, stack.pgbouncer, stack.postgres, every=1.0) as flow:
            server.wait_log(rf"{level} .*bus listener.*{line}")
            degraded(stack, server, flow)
            if heal:
                heal()
                instant(stack, server, flow, "bus listener is listening")
            flow.check()
        check_once_a_minute(rf" {level} .*The bus listener", server.log_text())
    return see


@pytest.fixture
def role(postgres):
    yield lambda options="": postgres.query(f"CREATE ROLE direct LOGIN PASSWORD 'first' {options}")
    postgres.query("DROP ROLE direct")


def test_wrong_password(see, role, postgres):
    role()
    see("password authentication failed.*imdispatcher_db_password", db_user="direct", db_password="second",
        heal=lambda: postgres.query("ALTER ROLE direct PASSWORD 'second'"))


def test_unknown_database(see, postgres):
    see('database "nowhere" does not exist.*imdispatcher_db_name', db_name="nowhere")


def test_tls_refused(see):
    see("server does not support SSL.*imdispatcher_db_sslmode", db_sslmode="require")


def test_server_full(see, role, postgres):
    role("CONNECTION LIMIT 0")
    see("too many connections.*max_connections", db_user="direct", db_password="first",
        heal=lambda: postgres.query("ALTER ROLE direct CONNECTION LIMIT 5"))


def test_recovery_mode(see, standby):
    see("standby.*imdispatcher_db_host", db_host=standby.host, db_port=standby.port)


def test_unknown_host(see):
    see("nowhere.invalid.*could not resolve the host name.*imdispatcher_db_host", db_host="nowhere.invalid")


def test_nobody_there(see):
    see("Connection refused.*imdispatcher_db_port", level="WARNING", db_host="127.0.0.1", db_port=free_port())


def test_another_cluster_among_the_hosts(stack, odoo, other):
    """As an old primary that still runs: the listeners go on to the host that NOTIFYs reach."""
    hosts = [other, stack.postgres]
    server = odoo(options={"imdispatcher_db_host": ",".join(each.host for each in hosts),
                           "imdispatcher_db_port": ",".join(str(each.port) for each in hosts)})
    with Flow(server, stack.pgbouncer, stack.postgres) as flow:
        server.wait_log("The bus listener does not receive NOTIFYs: it listens on .*, which is another server")
        instant(stack, server, flow, "The bus listener is listening again")
        flow.check()


def test_another_cluster(see, other):
    see("another server than the one that NOTIFYs reach.*imdispatcher_db_host", db_host=other.host, db_port=other.port)


def test_another_database(see):
    see('database "demo" .* NOTIFYs go to "postgres".*imdispatcher_db_name = postgres', db_name="demo")


def test_the_direct_port_is_the_pooler(see, pgbouncer):
    see("pooler that shares its connections.*PostgreSQL itself", db_host=pgbouncer.host, db_port=pgbouncer.port)


def test_nothing_configured_behind_the_pooler(stack, odoo):
    server = odoo(direct=False)
    with Flow(server, stack.pgbouncer, stack.postgres, every=1.0) as flow:
        server.wait_log("ERROR .*bus listener.*pooler that shares its connections")
        degraded(stack, server, flow)
        flow.check()


def test_no_pooler_at_all(stack, odoo, postgres):
    """Where Odoo goes straight to PostgreSQL the listener heals as well, with nothing configured."""
    server = odoo(pooled=False, direct=False)
    with Flow(server, stack.pgbouncer, stack.postgres) as flow:
        pid, = wait_listening(postgres, server, "bus")
        event = time.monotonic()
        postgres.query("SELECT pg_terminate_backend(%s)", [pid])
        assert flow.back_after(event) < DEGRADED
        wait_listening(postgres, server, "bus")
        flow.check_pushed()
        flow.check()


def test_the_pooler_sends_notifies_to_another_database(stack, odoo, pgbouncer, postgres):
    """`postgres = … dbname=other` in pgbouncer.ini: only the LISTEN needs to be told."""
    postgres.query("CREATE DATABASE signals OWNER odoo")
    with pgbouncer.changed(databases={"postgres": "dbname=signals"}):
        server = odoo(options={"imdispatcher_db_name": "signals"})
        with Flow(server, pgbouncer, postgres) as flow:
            wait_listening(postgres, server, "bus")
            flow.check_pushed()
            flow.check()


def test_payloads_of_an_sql_ascii_database(stack, odoo, pgbouncer, postgres):
    """Such a database passes on any bytes; psycopg2 would drop what it cannot decode, and what came behind it."""
    postgres.query("CREATE DATABASE bytes OWNER odoo ENCODING 'SQL_ASCII' TEMPLATE template0")
    with pgbouncer.changed(databases={"postgres": "dbname=bytes"}):
        server = odoo(options={"imdispatcher_db_name": "bytes"})
        with Flow(server, pgbouncer, postgres) as flow:
            pid, = wait_listening(postgres, server, "bus")
            connection = postgres.connect("bytes")
            connection.set_client_encoding("SQL_ASCII")
            for _ in range(3):
                # one statement, so that what is good comes right behind what is not
                connection.cursor().execute(
                    b"SELECT pg_notify('imbus', E'\\xe9\\xff'), pg_notify('imbus', '"
                    + compact([flow.sender.wire_channel]).encode() + b"')")
            flow.check_pushed()
            flow.check()
            assert wait_listening(postgres, server, "bus") == [pid]
            server.wait_log("malformed")


def test_odoos_own_db_host_is_a_list(stack, odoo, pgbouncer, postgres):
    """libpq's list in Odoo's own db_host works for the listener as for Odoo."""
    server = odoo(direct=False, options={"db_host": f"127.0.0.1,{pgbouncer.host}",
                                         "imdispatcher_db_port": postgres.port})
    with Flow(server, pgbouncer, postgres) as flow:
        wait_listening(postgres, server, "bus")
        flow.check_pushed()
        flow.check()
