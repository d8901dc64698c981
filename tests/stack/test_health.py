"""The health route tells a listening process from one that is not, whatever is away."""
import statistics
import time

import pytest
import requests

from stack.clients.listeners import wait_listening
from stack.process import DEADLINE, wait_until

ROUTE = "/bus_alt_connection/health"
PASS = (200, {"status": "pass", "state": "listening"})
NONE_HERE = (200, {"status": "pass", "state": "no listener here"})
QUICK = 0.2         # seconds, half of the answers: asking a database that is away would take 0.9 or longer


def ask(url):
    answer = requests.get(url + ROUTE, timeout=DEADLINE)
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"
    assert not answer.cookies      # no session is made for who asks every second
    return answer.status_code, answer.json()


def wait_health(url, wanted, timeout=DEADLINE):
    wait_until(lambda: ask(url) == wanted, timeout, lambda: f"the route says {ask(url)}")


@pytest.mark.parametrize("workers", [0, 2], ids=["threaded", "prefork"])
def test_the_life_of_a_listener(odoo, bus, postgres, pgbouncer, workers):
    server = odoo(workers=workers)
    assert ask(server.evented_url) == NONE_HERE       # nobody has come yet
    client, sender = bus(server)
    wait_health(server.evented_url, PASS)
    if workers:
        assert ask(server.url) == NONE_HERE

    sender.close()      # it opens its connection again
    postgres.stop()
    pgbouncer.stop()
    try:
        wait_until(lambda: ask(server.evented_url)[0] == 503, DEADLINE,
                   "the route does not see that PostgreSQL is away")
        status, said = ask(server.evented_url)
        assert said["status"] == "fail"
        assert said["cause"] in ("restart", "unreachable", "unknown")
        for secret in (postgres.host, str(postgres.port), str(pgbouncer.port), postgres.odoo_password, "odoo"):
            assert secret not in str(said).replace("Odoo", "")
        took = []
        for _ in range(20):
            before = time.monotonic()
            ask(server.evented_url)
            took.append(time.monotonic() - before)
        assert statistics.median(took) < QUICK, took
    finally:
        postgres.start()
        pgbouncer.start()
    wait_health(server.evented_url, PASS)
    sender.send_sql("after")
    wait_until(lambda: "after" in [one.payload for one in client.received], DEADLINE, "the client got nothing after it")


def test_connected_is_not_enough(odoo, bus, postgres, pgbouncer):
    """While the pooled path is dark, nothing proves that a notification would arrive."""
    server = odoo(options={"max_cron_threads": 0})
    bus(server)
    wait_health(server.url, PASS)
    pid, = wait_listening(postgres, server, "bus")
    pgbouncer.command("PAUSE")
    try:
        postgres.query("SELECT pg_terminate_backend(%s)", [pid])
        wait_until(lambda: wait_listening(postgres, server, "bus") != [pid], DEADLINE,
                   "the listener does not come back")
        status, said = ask(server.url)
        assert (status, said["status"], said["cause"]) == (503, "fail", "unverified")
    finally:
        pgbouncer.command("RESUME")
    wait_health(server.url, PASS)


def test_who_may_ask_how(odoo):
    server = odoo()
    head = requests.head(server.url + ROUTE, timeout=DEADLINE)
    assert (head.status_code, head.content) == (200, b"")
    assert requests.post(server.url + ROUTE, timeout=DEADLINE).status_code == 405
    assert requests.get(server.url + ROUTE + "/", timeout=DEADLINE).status_code != 200      # Odoo's to answer
