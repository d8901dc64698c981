"""Jobs of OCA's queue_job run at once behind the pooler, and soon again after their runner lost its connection.

The real addon from the package index, as docs/queue-job.rst configures it. The runner's direct path has two hosts, of
which the first refuses; the second is on an island where this machine can have one, whose packets can be dropped.

Takes 1 min.
"""
import contextlib
import time

import pytest

from stack.clients.client import Session
from stack.clients.flow import when_serves
from stack.clients.listeners import client_ports, keepalive_in
from stack.faults.network import Island
from stack.process import DEADLINE, free_port, shortest, wait_until
from tests import documents

DATABASE = "jobs"
MODULES = ("base", "web", "bus", "queue_job")
AT_ONCE = 2.0       # seconds
AGAIN = 20.0        # after a loss


class Jobs:
    """An Odoo with queue_job, and jobs for it."""

    def __init__(self, server, postgres, island):
        self.server, self.postgres, self.island = server, postgres, island
        self.session = Session(server, DATABASE)

    def take(self):
        """Have a job run: seconds until it is done."""
        before = time.monotonic()
        answer = self.session.http.get(f"{self.server.url}/queue_job/create_test_job", timeout=DEADLINE)
        answer.raise_for_status()
        uuid = answer.text.split()[-1]
        wait_until(lambda: self.states(uuid) == ["done"], DEADLINE, lambda: f"the job is {self.states(uuid)}")
        return time.monotonic() - before

    def states(self, uuid):
        return [row[0] for row in self.postgres.query("SELECT state FROM queue_job WHERE uuid = %s", [uuid], DATABASE)]


@pytest.fixture(scope="module")
def jobs(stack, servers, queue_job):
    stack.database(DATABASE, MODULES, [queue_job])
    with contextlib.ExitStack() as opened:
        island, path = None, stack.postgres
        if not Island.why_not():
            island = opened.enter_context(Island())
            path = island.serve((stack.postgres.host, stack.postgres.port))
        said = documents.options("queue-job-odoo-conf", imdispatcher_db_host=f"127.0.0.1,{path.host}",
                                 imdispatcher_db_port=f"{free_port()},{path.port}")
        server = servers(DATABASE, workers=2, addons=[queue_job], options={**said, "max_cron_threads": 0})
        server.wait_log("The runner of queue_job connects to the listeners' address")
        server.wait_log(f"queue job runner ready for db {DATABASE}")
        yield Jobs(server, stack.postgres, island)


def test_a_job_runs_at_once(jobs):
    assert shortest(jobs.take, AT_ONCE) < AT_ONCE


def test_postgresql_asks_whether_the_runner_is_there(jobs, postgres):
    """Or else a session that was lost without a word would keep the lock without which no runner runs, for hours."""
    def asks_in():
        ports = postgres.query("SELECT client_port FROM pg_stat_activity WHERE datname = %s", [DATABASE])
        return keepalive_in([postgres.port], [port for port, in ports])
    wait_until(lambda: asks_in() <= 5, DEADLINE, lambda: f"it asks in {asks_in()} s")


def killed(jobs, stack):
    """All that the database has: the runner's connection, and the pooler's."""
    stack.postgres.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [DATABASE])


def restarted(jobs, stack):
    stack.postgres.restart("immediate")
    when_serves(stack.pgbouncer, ["postgres", DATABASE])


def silent(jobs, stack):
    """Until the runner has noticed; its own connection is not the only one that is silent."""
    if not jobs.island:
        pytest.skip(Island.why_not())
    since = jobs.server.log_size()
    jobs.island.drop()
    try:
        jobs.server.wait_log("exception: sleeping", since=since)
    finally:
        jobs.island.heal()


@pytest.mark.parametrize("fault", [killed, *(pytest.param(each, marks=pytest.mark.newest) for each in
                                             (restarted, silent))])
def test_jobs_run_again_after_a_loss(jobs, stack, fault):
    before = time.monotonic()
    fault(jobs, stack)
    jobs.take()
    assert time.monotonic() - before < AGAIN


@pytest.mark.newest
def test_one_with_an_address_of_its_own(stack, odoo, facts, queue_job):
    """It stays there, and notices a silent path all the same; on the threaded server as well."""
    server = odoo(stack.database("more_jobs", MODULES, [queue_job]), addons=[queue_job],
                  load=f"{facts.server_wide},queue_job,bus_alt_connection", options={"max_cron_threads": 0},
                  env={"ODOO_QUEUE_JOB_JOBRUNNER_DB_PORT": str(stack.pgbouncer.port)})
    server.wait_log("The runner of queue_job connects to its own address")
    server.wait_log("queue job runner ready for db more_jobs")

    def asks_in():
        return keepalive_in(client_ports([server.pid], stack.pgbouncer.port), [stack.pgbouncer.port])
    wait_until(lambda: asks_in() <= 5, DEADLINE, lambda: f"it asks in {asks_in()} s")


@pytest.mark.newest
def test_one_that_cannot_be_imported(odoo, facts):
    server = odoo(load=f"{facts.server_wide},bus_alt_connection,queue_job")
    server.wait_log("The runner of queue_job is left as it is: No module named")
    server.wait_log("The listeners of the bus and of cron connect to")
