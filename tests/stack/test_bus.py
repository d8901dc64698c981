"""The main job, on the real thing: a notification of an Odoo behind a transaction pooler reaches its client.

Takes 3 min.
"""
import contextlib
import os
import socket

import pytest

from stack.clients.jobs import QUICK, a_job
from stack.clients.listeners import backends_of, client_ports, direct, keepalive_in, wait_listening
from stack.process import DEADLINE, children, shortest, wait_until


def test_a_notification_arrives(serving, bus):
    client, sender = bus(serving)
    for number in range(5):
        sender.send_orm(number)
        assert client.next().payload == number


def test_the_listener_is_named_and_idle(serving, bus, postgres):
    bus(serving)
    wait_listening(postgres, serving, "bus")
    rows = direct(postgres, serving)
    kind = "evented" if serving.workers else "odoo"
    (name, pid), = [name.rsplit(" ", 1) for _, name, _, _ in rows if " bus " in name]
    assert name == f"bus_alt_connection bus {kind} {socket.gethostname()[-24:]}"
    assert int(pid) == serving.evented_pid
    assert {state for _, _, state, _ in rows} == {"idle"}


def test_postgresql_asks_whether_the_listener_is_there(serving, bus, postgres):
    """Within seconds, where the kernel's default is two hours: a host that is gone keeps no backend."""
    bus(serving)
    pid, = wait_listening(postgres, serving, "bus")
    (client_port,), = postgres.query("SELECT client_port FROM pg_stat_activity WHERE pid = %s", [pid])

    def asked_in():     # PostgreSQL's end of the connection
        return keepalive_in([postgres.port], [client_port])
    # the heartbeat's
    wait_until(lambda: asked_in() <= 5, DEADLINE, lambda: f"it is asked in {asked_in()} s")


def test_only_the_listeners_go_directly(serving, bus, postgres, pgbouncer, facts):
    client, sender = bus(serving)
    sender.send_orm("once")
    assert client.next()
    wait_listening(postgres, serving, "bus")
    crons = 1 if facts.cron_listeners else 0    # what the shipped odoo.conf asks for
    wait_listening(postgres, serving, "cron", crons)
    pids = [serving.pid, *children(serving.pid)]
    rows = backends_of(postgres, pids)
    assert len(rows) == 1 + crons, rows
    if serving.workers:
        # an HTTP worker has nothing but connections to the pooler, nor has a cron worker that does not listen
        listening = {int(name.rsplit(" ", 1)[1]) for _, name, _, _ in direct(postgres, serving)}
        others = set(children(serving.pid)) - listening
        assert len(others) == serving.workers + 1 - crons
        assert client_ports(others, pgbouncer.port)
        assert not backends_of(postgres, others)


def test_nothing_listens_in_the_pool(serving, bus, postgres, pgbouncer):
    client, sender = bus(serving)
    sender.send_orm("once")
    assert client.next()
    servers = pgbouncer.show("SERVERS")
    assert servers
    for row in servers:
        # asked of each server connection of the pool in turn, by the port it comes from
        (query,), = postgres.query("SELECT coalesce(max(query), '') FROM pg_stat_activity WHERE client_port = %s",
                                   [row["local_port"]]) or [("",)]
        assert not query.lower().startswith("listen")
    # and through the pool itself: each pooled session says what it listens to
    for database in {row["database"] for row in servers}:
        pooled = pgbouncer.connect(database)
        cr = pooled.cursor()
        cr.execute("SELECT count(*) FROM pg_listening_channels()")
        assert cr.fetchone()[0] == 0
        pooled.close()


@pytest.mark.needs("cron_listeners")
def test_a_cron_trigger_runs_at_once(serving, postgres, bus):
    wait_listening(postgres, serving, "cron")
    with a_job(serving, bus) as trigger:
        for _ in range(3):
            assert trigger() < QUICK


def test_without_the_addon_nothing_arrives(odoo, bus):
    client, sender = bus(odoo(workers=2, load="base,web"))
    sender.send_orm("lost")
    assert client.next(timeout=3) is None


@pytest.mark.parametrize("way", ["load flag", "environment", "the published addon's environment", "odoo.conf"])
def test_every_way_to_say_it(odoo, bus, postgres, way):
    host, port = postgres.host, str(postgres.port)
    names = {"environment": "IMDISPATCHER_DB_", "the published addon's environment": "ODOO_IMDISPATCHER_DB_"}
    if way == "odoo.conf":
        server = odoo(load="base,web,bus_alt_connection")
    elif way == "load flag":
        server = odoo(load="base,web", args=["--load=base,web,bus_alt_connection"])
    else:
        server = odoo(direct=False, env={names[way] + "HOST": host, names[way] + "PORT": port})
    client, sender = bus(server)
    sender.send_orm("here")
    assert client.next().payload == "here"
    wait_listening(postgres, server, "bus")


def test_two_databases(stack, odoo, bus, postgres):
    stack.database("second")
    server = odoo("demo,second", workers=2)
    clients = {name: bus(server, name, channel="shared") for name in ("demo", "second")}
    wait_listening(postgres, server, "bus")
    for name, (_, sender) in clients.items():
        sender.send_orm(name)
    for name, (client, _) in clients.items():
        assert client.next().payload == name
    # one listener serves both, and each gets its own only
    assert [client.next(timeout=0.5) for client, _ in clients.values()] == [None, None]


@pytest.mark.parametrize("workers", [0, 2], ids=["threaded", "prefork"])
def test_it_stops_as_fast(odoo, bus, postgres, facts, workers):
    # see test_stops_in_any_state
    options = None if facts.cron_listeners else {"max_cron_threads": 0}

    def stops(load):
        server = odoo(workers=workers, load=load, options=options)
        bus(server)
        if "bus_alt" in load:
            # A thread that starts just now may take the signal (Linux gives it to whoever looks first), and upstream's
            # main thread sleeps on for a minute: seen with the bus's threads, once in thirty stops without this.
            wait_listening(postgres, server, "bus")
        took = server.stop(timeout=10)
        # without the addon the cron threads of 15 end with one
        assert "bus_alt" not in load or "Traceback" not in server.log_text().split("Initiating shutdown")[-1]
        return took

    # a process of the prefork server may be in a pause of upstream's, 4 s, when it is told to end
    bound = stops("base,web") + (5.0 if workers else 2.0)
    assert shortest(lambda: stops("base,web,bus_alt_connection"), bound) < bound


def test_not_configured_says_so(odoo, postgres):
    server = odoo(direct=False)
    server.wait_log(r"Odoo's own address: neither imdispatcher_db_host nor _db_port is set")
    assert len([line for line in server.log_text().splitlines() if "neither imdispatcher" in line]) == 1


@pytest.mark.parametrize("wrong", [
    {"PORT": "70000", "SSLMODE": "maybe"}, {"SSLROOTCERT": "/nowhere/ca.pem"}, {"PASSWORD_FILE": "/nowhere/password"},
], ids=lambda wrong: "+".join(wrong))
def test_wrong_settings_do_not_stop_odoo(odoo, bus, postgres, wrong):
    """Nor is there a direct connection with something weaker: the table is polled."""
    secret = "hunter2hunter2"
    if "PASSWORD_FILE" not in wrong:
        wrong = {**wrong, "PASSWORD": secret}
    server = odoo(env={f"IMDISPATCHER_DB_{name}": value for name, value in wrong.items()},
                  options={"imdispatcher_poll_seconds": 1})
    for name, value in wrong.items():
        if name != "PASSWORD":
            server.wait_log(rf"ERROR .*({name}|password file).*{value}")
    client, sender = bus(server)     # before series 16 nobody listens until somebody waits
    server.wait_log("ERROR .*The bus listener cannot connect.*(wrong setting|the password file)")
    sender.send_orm("polled")
    assert client.next().payload == "polled"
    assert not direct(postgres, server)
    assert secret not in server.log_text()


def test_idle_sessions_are_not_dropped(stack, odoo, bus, postgres):
    postgres.query("ALTER ROLE odoo SET idle_session_timeout = '1s'")
    try:
        server = odoo()
        client, sender = bus(server)
        pid, = wait_listening(postgres, server, "bus")
        name = postgres.query("SELECT setting FROM pg_settings WHERE name = 'idle_session_timeout'")
        assert name, "this PostgreSQL knows no idle_session_timeout"
        # waits for what would happen: PostgreSQL drops another session of the same role
        other = postgres.connect(user="odoo")
        wait_until(lambda: not postgres.query("SELECT 1 FROM pg_stat_activity WHERE pid = %s",
                                              [other.get_backend_pid()]), DEADLINE, "nobody is dropped for being idle")
        assert wait_listening(postgres, server, "bus") == [pid]
        sender.connection = None    # dropped as well
        sender.send_sql("still here")
        assert client.next().payload == "still here"
    finally:
        postgres.query("ALTER ROLE odoo RESET idle_session_timeout")


def test_client_ports_sees_this_process(postgres, pgbouncer):
    """The check above can fail: a connection of this process is found by it, and none that leads elsewhere."""
    with contextlib.closing(postgres.connect()) as connection:
        (own,), = postgres.query("SELECT client_port FROM pg_stat_activity WHERE pid = %s",
                                 [connection.info.backend_pid])
        assert own in client_ports([os.getpid()], postgres.port)
        assert own not in client_ports([os.getpid()], pgbouncer.port)
        assert connection.info.backend_pid in {pid for pid, *_ in backends_of(postgres, [os.getpid()])}


def test_the_error_line_gives_the_address(odoo, bus, postgres):
    server = odoo(direct=False)
    bus(server)
    server.wait_log(rf"ERROR .*imdispatcher_db_host = 127.0.0.1, imdispatcher_db_port = {postgres.port}\b")
