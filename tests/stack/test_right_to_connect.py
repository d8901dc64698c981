"""Odoo's role may no longer connect to `postgres`, where NOTIFYs go: said once, polled, tried every 5 s, healed."""
import contextlib
import itertools
import re
import threading
import time

import pytest

from stack.clients.client import OdooError, Sender
from stack.clients.listeners import check_once_a_minute, wait_listening
from stack.clients.state import DEGRADED, health, lines, pass_seconds, wait_failing, wait_healthy
from stack.clients.unnotified import clients
from stack.process import DEADLINE, wait_until

WATCHED = 40        # seconds
MINUTE = 60         # seconds, in which it tries more often
pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def listener(postgres):
    """A role of the listeners' own, which may connect: (its name, its password)."""
    postgres.query("CREATE ROLE direct LOGIN PASSWORD 'right'")
    postgres.query("GRANT CONNECT ON DATABASE postgres TO direct")
    yield "direct", "right"
    postgres.query("REVOKE CONNECT ON DATABASE postgres FROM direct")
    postgres.query("DROP ROLE direct")


@contextlib.contextmanager
def revoked(postgres, pgbouncer):
    """Nobody but the listeners' role may connect to it, and nobody is connected who may not."""
    postgres.query("REVOKE CONNECT ON DATABASE postgres FROM PUBLIC")
    pgbouncer.command("RECONNECT")
    postgres.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                   " WHERE datname = 'postgres' AND usename <> current_user")
    grant = lambda: postgres.query("GRANT CONNECT ON DATABASE postgres TO PUBLIC")  # noqa: E731
    try:
        yield grant
    finally:
        grant()


def attempts(stack, pooled):
    """How often Odoo's role tried to log in to `postgres`, as the server says that it goes to."""
    if pooled:
        return stack.pgbouncer.log_text().count("login attempt: db=postgres user=odoo")
    return stack.postgres.log_text().count('FATAL:  permission denied for database "postgres"')


@pytest.mark.parametrize("pooled", [True, False], ids=["pooled", "straight"])
@pytest.mark.parametrize("own_role", [True, False], ids=["listener-may", "nobody-may"])
def test_it_may_not_connect(stack, odoo, postgres, pgbouncer, listener, pooled, own_role):
    user, password = listener
    role = {"imdispatcher_db_user": user, "imdispatcher_db_password": password} if own_role else {}
    server = odoo(pooled=pooled, options={"max_cron_threads": 0, **role})
    with clients(stack, server, "demo") as found:
        client, own = found["demo"]
        wait_listening(postgres, server, "bus")
        wait_healthy(server)
        sender = Sender(own.session, postgres, own.channel)
        sender.send_orm("the first prepares the others")
        since = server.log_size()
        with revoked(postgres, pgbouncer) as grant:
            sent, ending = {}, threading.Event()

            def send():
                for number in itertools.count():
                    if ending.wait(1):
                        return
                    began = time.monotonic()
                    try:
                        sender.send_orm(number)
                        sent[number] = time.monotonic(), time.monotonic() - began
                    except OdooError as exc:
                        sent[number] = time.monotonic(), exc
            thread = threading.Thread(target=send, daemon=True)
            thread.start()
            try:
                said = wait_failing(server, timeout=40)
                server.wait_log("ERROR .*bus_alt_connection.*CONNECT", MINUTE + 10, since)
                pass_seconds(MINUTE)
                before = attempts(stack, pooled)
                pass_seconds(WATCHED)
                tried = attempts(stack, pooled) - before
                # the listener, or its look at where NOTIFYs go, and the notifier
                assert 1 <= tried <= 2 * WATCHED / 4, f"{tried} attempts in {WATCHED} s"
                said = health(server)[1]
                assert "CONNECT" in said["remedy"], said
            finally:
                ending.set()
                thread.join(DEADLINE)
            arrived = {}
            wait_until(lambda: len(client.received) > len(sent), DEADLINE, "not everything arrives")
            arrived = {notification.payload: notification.at for notification in client.received}
            late = {number: arrived[number] - at for number, (at, _) in sent.items()
                    if arrived[number] - at > DEGRADED + 2}
            assert not late, late
            errors = [took for _, took in sent.values() if not isinstance(took, float)]
            assert not errors, errors
            grant()
            event = time.monotonic()
            wait_healthy(server, timeout=10)
            wait_listening(postgres, server, "bus", timeout=max(1.0, event + 10 - time.monotonic()))
        said = [line for line in lines(server, "", since) if " ERROR " in line]
        assert said
        for logger in {re.search(r"odoo\.addons\.bus_alt_connection\S*", line)[0] for line in said}:
            check_once_a_minute(re.escape(logger), "\n".join(said))
        assert "Traceback" not in server.log_text(since)
        sender.send_orm("at once")
        wait_until(lambda: client.received[-1].payload == "at once", 5, "it does not come at once")
