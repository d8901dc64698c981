"""The primary moves: a standby is promoted and the old one is gone, with both named in one setting.

Takes 1 min.
"""
import time

import pytest

from stack import Stack
from stack.clients.flow import Flow, when_serves
from stack.clients.listeners import wait_listening
from stack.clients.state import lines
from stack.process import DEADLINE, wait_until


@pytest.mark.parametrize("workers", [0, 2], ids=["threaded", "prefork"])
def test_primary_moves(stack, workers):
    with Stack(machine=stack.machine) as own:
        own.database("demo")
        standby = own.add(own.postgres.standby(own.folder / "standby"))
        standby.start()
        hosts = f"{own.postgres.host},{standby.host}"
        ports = f"{own.postgres.port},{standby.port}"
        server = own.odoo().start("demo", workers=workers, options={"imdispatcher_db_host": hosts,
                                                                    "imdispatcher_db_port": ports})
        with Flow(server, own.pgbouncer, own.postgres) as flow:
            wait_listening(own.postgres, server, "bus")
            sent = max(flow.committed)
            # what was sent so far has to be on the standby, or it would be lost with the primary
            lag = ("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn",
                   own.postgres.query("SELECT pg_current_wal_lsn()")[0])
            wait_until(lambda: standby.query(*lag)[0][0], DEADLINE, "the standby does not catch up")
            since = server.log_size()
            own.postgres.kill()
            server.wait_log("bus listener cannot connect", since=since)
            standby.promote()
            own.pgbouncer.target = (standby.host, standby.port)
            own.pgbouncer.renew()
            event = max(time.monotonic(), when_serves(own.pgbouncer))
            assert flow.back_after(event) < 20.0        # it is some tenths; upstream is dark for 50 s
            assert not lines(server, " ERROR ", since), "a standby among several hosts is in its place"
            flow.postgres = standby
            wait_listening(standby, server, "bus")
            flow.stop()
            received = [n.id for n in flow.received()]
            assert received == sorted(set(received))
            flow.wait_received(len([number for number in flow.rows() if number > sent or number in flow.committed]))
