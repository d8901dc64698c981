"""A pooler on each database host, and a balancer in front that keeps connections where they are: the primary moves.

What is kept leads to a server that is a standby now, and that lags. Takes 3 min.
"""
import pytest

from stack import PgBouncer, Stack
from stack.clients.listeners import wait_listening
from stack.clients.state import pass_seconds, wait_healthy
from stack.clients.unnotified import FOUND, clients, gets
from stack.faults.network import Proxy
from stack.process import DEADLINE, wait_until

pytestmark = [pytest.mark.timeout(500), pytest.mark.long]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.newest)], ids=["threaded", "prefork"])
def test_they_are_given_up(stack, workers):
    with Stack(machine=stack.machine) as own:
        own.database("demo")
        old, new = own.postgres, own.add(own.postgres.standby(own.folder / "standby")).start()
        poolers = own.pgbouncer, own.add(PgBouncer(own.machine, own.folder / "pooler", new)).start()
        balancer = Proxy((poolers[0].host, poolers[0].port))
        server = own.odoo()
        server.db_host, server.db_port = balancer.host, balancer.port
        try:
            server.start("demo", workers=workers, options={
                "max_cron_threads": 0, "imdispatcher_db_host": f"{old.host},{new.host}",
                "imdispatcher_db_port": f"{old.port},{new.port}"})
            with clients(own, server, "demo") as found:
                client, sender = found["demo"]
                wait_listening(old, server, "bus")
                wait_healthy(server)
                sender.insert("before")
                gets(client, "before")
                # Odoo's own connections are not what is looked at: it opens new ones, the bus its own
                poolers[0].command("KILL demo")
                poolers[0].command("RESUME demo")
                pass_seconds(45)        # it has looked at the table and asked where NOTIFYs go
                sender.close()
                old.stop()
                new.promote()
                poolers[1].command("RECONNECT")
                balancer.target = poolers[1].host, poolers[1].port      # of new connections alone
                # the old one comes back as a standby of the new, and replays nothing
                old.follow(new)
                old.start(recovery_min_apply_delay="1h")
                wait_until(lambda: old.query("SELECT pg_is_in_recovery()") == [(True,)], DEADLINE, "it is no standby")
                wait_listening(new, server, "bus")
                wait_healthy(server, timeout=60)
                sender.pooler = new
                sender.insert("after it")
                gets(client, "after it", FOUND)
                kept = [row for row in poolers[0].show("CLIENTS") if row["user"] == "odoo"]
                assert not kept, kept
        finally:
            balancer.close()
            server.kill()
