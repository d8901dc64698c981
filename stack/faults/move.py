"""A pooler that is pointed to another server while the old one goes on: a planned switch, blue and green, a moved VIP.

Contract: the new server is a standby of the old one, and is promoted when it has all that was committed. With "pause"
nothing is committed on the old one after that; with "reconnect" something may be.
"""
import time

from ..process import DEADLINE, wait_until


class Move:
    def __init__(self, pooler, old, new):
        self.pooler, self.old, self.new = pooler, old, new

    def now(self, how):
        """Point the pooler to the new server; returns time.monotonic() of when it leads there."""
        if how == "pause":
            # It waits for open transactions, and a process of Odoo's may hold one while it waits for another (a cron
            # worker does while a job runs), which waits for RESUME: so it is given up and tried again.
            wait_until(lambda: self.pooler.pause(5), DEADLINE, "PAUSE waits for transactions that stay open")
            self.promote()
            self.point_to(self.new)
            self.pooler.command("RESUME")
        else:
            self.promote()
            self.point_to(self.new)
            self.pooler.command("RECONNECT")
        return time.monotonic()

    def promote(self):
        """Once it has all that was committed by now."""
        position = self.old.query("SELECT pg_current_wal_lsn()")[0]
        wait_until(lambda: self.new.query("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", position)[0][0], DEADLINE,
                   "the copy does not catch up")
        self.new.promote()

    def point_to(self, server):
        self.pooler.target = server.host, server.port
        self.pooler.reload()
