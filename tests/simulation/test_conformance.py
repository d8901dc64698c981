"""The model does what the real PostgreSQL and the real PgBouncer do: the same steps on both give the same observations.

Contract: a scenario is written once, as steps on a `Model` or a `Real` world, and returns what it saw. Both use the
addon's own `Link`. Takes 40 s.
"""
import contextlib
import time

import pytest

from stack.servers.postgres import connect

from .holds import Holds
from .life import Life
from .pooler import Pooler
from .postgres import Row
from .standins import addon, installed, load

DEADLINE = 20.0         # seconds, for what has to happen
TIMEOUT = 2.0           # of a statement
DATABASE = "conformance"


def outcome(call, *args, **kwargs):
    """What a statement gives: its rows, or what kind of failure it is for the addon."""
    try:
        return call(*args, **kwargs)
    except addon.errors.TimedOut:
        return "timed out"
    except addon.errors.ConnectionLost as exc:
        return getattr(exc.__cause__, "pgcode", None) or ("broken" if exc.broken else "failed")


def code(call, *args, **kwargs):
    """The same, without rows."""
    found = outcome(call, *args, **kwargs)
    return found if isinstance(found, str) else "ok"


class World:
    """Steps on either world. `pooled`: through the pooler."""

    def link(self, pooled=False, database="postgres"):
        return addon.link.Link.open(self.info(pooled, database), 5.0)

    def opens(self, pooled=False, database="postgres"):
        """Whether a connection can be made."""
        try:
            self.link(pooled, database).close()
            return True
        except addon.errors.ConnectionLost:
            return False

    def until(self, condition):
        """Wait until it holds."""
        deadline = self.now() + DEADLINE
        while not condition():
            assert self.now() < deadline
            self.pause(0.05)

    def received(self, *links):
        """What each has received up to now: a NOTIFY on a channel of its own tells that all of it is there."""
        found = []
        for link in links:
            heard = []
            link.query('LISTEN "until here"')
            self.notify("until here", "")
            self.until(lambda link=link, heard=heard: heard.extend(link.receive()) or any(
                each.channel == "until here" for each in heard))
            found.append([each.payload for each in heard if each.channel != "until here"])
        return found

    def notify(self, channel, payload, database="postgres"):
        link = self.link(database=database)
        try:
            sql = f"SELECT pg_is_in_recovery(), {addon.endpoints.IDENTITY}, \"pg_notify\"(%s, %s)"
            return code(link.query, sql, (channel, payload))
        finally:
            link.close()

    def look(self, link, known=-1, seconds=1e6, settled=-1e6, server_limit=None):
        """What a look sees."""
        rows = outcome(link.query, addon.recovery.QUERY, {"known": known, "seconds": seconds, "settled": settled},
                       server_limit=server_limit, timeout=TIMEOUT)
        if isinstance(rows, str):
            return rows
        found = sorted((channel, sorted(ids)) for channel, ids, *_ in rows if ids)
        return found, next(row[2:] for row in rows if row[1] is None)


class Model(World):
    def __init__(self, life):
        self.life, self.server = life, life.primary
        self.pooler = Pooler(life, "10.0.0.7", self.server.address, login_retry=1.0)
        for server in (life.primary, life.other):
            database = server.databases["one"]
            database.last_id, server.databases = 0, {"postgres": server.databases["postgres"], DATABASE: database}

    def info(self, pooled, database):
        return {"host": "10.0.0.7", "port": 6432, "dbname": database} if pooled else {
            "host": self.server.address, "port": 5432, "dbname": database}

    def now(self):
        return self.life.kernel.now

    def pause(self, seconds):
        self.life.kernel.sleep(seconds)

    def database(self):
        return self.server.databases[DATABASE]

    def begin(self, channel):
        """A transaction that has inserted a row. Returns its id and what commits it."""
        database, now = self.database(), self.now()
        row = Row(self.life.row_number(), database.next_id(), channel, now, self.life.clock())
        return row.id, lambda: database.rows.append(row)

    def empty(self):
        self.database().rows = []
        self.database().last_id = 0

    @contextlib.contextmanager
    def locked(self):
        self.database().locked = True
        yield
        self.server.unlock(self.database())

    def waiting(self):
        """How many statements wait for the table."""
        return sum(backend.waits is not None for backend in self.server.backends.values())

    def kill(self, pid):
        self.server.backends[pid].terminate("terminating connection due to administrator command")

    def listens(self, channel):
        return sum(channel in backend.listens for backend in self.server.backends.values())

    def restart(self):
        self.server.stop()
        self.pause(1.0)
        self.server.start()

    @contextlib.contextmanager
    def down(self):
        self.server.stop()
        yield
        self.server.start()

    @contextlib.contextmanager
    def paused(self):
        self.pooler.paused = True
        yield
        self.pooler.resume()

    @contextlib.contextmanager
    def full_pooler(self):
        self.pooler.room = len(self.pooler.clients)
        yield
        self.pooler.room = 100

    def drop_database(self):
        database = self.server.databases.pop(DATABASE)
        for backend in list(self.server.backends.values()):
            if backend.database == DATABASE:
                backend.terminate("terminating connection due to administrator command")
        return lambda: self.server.databases.setdefault(DATABASE, database)


class Real(World):
    def __init__(self, stack):
        self.stack, self.postgres, self.pgbouncer = stack, stack.postgres, stack.pgbouncer
        self.make_database()

    def make_database(self):
        self.postgres.query(f"CREATE DATABASE {DATABASE} OWNER odoo")
        self.postgres.query("CREATE TABLE bus_bus (id serial PRIMARY KEY, channel varchar,"
                            " create_date timestamp DEFAULT timezone('UTC', now()))", dbname=DATABASE)
        self.postgres.query("ALTER TABLE bus_bus OWNER TO odoo", dbname=DATABASE)

    def info(self, pooled, database):
        server = self.pgbouncer if pooled else self.postgres
        return {"host": server.host, "port": server.port, "dbname": database, "user": "odoo",
                "password": self.postgres.odoo_password}

    def now(self):
        return time.monotonic()

    def pause(self, seconds):
        time.sleep(seconds)     # between two questions

    def connection(self):
        info = self.info(False, DATABASE)
        return connect(info["host"], info["port"], DATABASE, info["user"], info["password"])

    def begin(self, channel):
        connection = self.connection()
        connection.autocommit = False
        cursor = connection.cursor()
        cursor.execute("INSERT INTO bus_bus (channel) VALUES (%s) RETURNING id", [channel])

        def commit():
            connection.commit()
            connection.close()
        return cursor.fetchone()[0], commit

    def empty(self):
        self.postgres.query("TRUNCATE bus_bus RESTART IDENTITY", dbname=DATABASE)

    @contextlib.contextmanager
    def locked(self):
        connection = self.connection()
        connection.autocommit = False
        connection.cursor().execute("LOCK TABLE bus_bus IN ACCESS EXCLUSIVE MODE")
        yield
        connection.rollback()
        connection.close()

    def waiting(self):
        return self.postgres.query("SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event_type ="
                                   " 'Lock'", [DATABASE])[0][0]

    def kill(self, pid):
        self.postgres.query("SELECT pg_terminate_backend(%s)", [pid])

    def listens(self, channel):
        """Sessions whose latest statement is this LISTEN."""
        return self.postgres.query("SELECT count(*) FROM pg_stat_activity WHERE query = %s",
                                   [f'LISTEN "{channel}"'])[0][0]

    def restart(self):
        self.postgres.restart()

    @contextlib.contextmanager
    def down(self):
        self.postgres.stop()
        yield
        self.postgres.start()

    @contextlib.contextmanager
    def paused(self):
        assert self.pgbouncer.pause(DEADLINE)
        yield
        self.pgbouncer.command("RESUME")

    @contextlib.contextmanager
    def full_pooler(self):
        clients = len(self.pgbouncer.command("SHOW CLIENTS")) - 1      # without the console itself
        with self.pgbouncer.changed(settings={"max_client_conn": clients}):
            yield

    def drop_database(self):
        self.postgres.query(f"DROP DATABASE {DATABASE} WITH (FORCE)")
        return self.make_database


@pytest.fixture(scope="module")
def real(stack):
    load()
    real = Real(stack)
    yield real
    stack.postgres.query(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")


def on_the_model(scenario):
    """What a scenario sees on the model; its waits pass in virtual time."""
    life, seen = Life(0), []
    life.kernel.preempt = 0.0
    life.holds, life.browsers, life.notifiers = Holds(life), [], []
    with installed(life):
        life.kernel.spawn(lambda: seen.append(scenario(Model(life))), "scenario", process="odoo")
        life.kernel.run(life.kernel.now + 300)
        life.kernel.end()
    if life.exception:
        raise life.exception
    return seen[0]


# -- scenarios -----------------------------------------------------------------------------------------------------

def ids_and_commits(world):
    """Ids are given before the commit, commits come in any order, a look sees what has committed."""
    world.empty()
    link = world.link(database=DATABASE)
    seen = [world.look(link)]
    first, commit_first = world.begin("a")
    second, commit_second = world.begin("b")
    third, commit_third = world.begin("a")
    commit_second()
    seen += [first, second, third, world.look(link)]
    commit_third()
    commit_first()
    seen += [world.look(link), world.look(link, known=1), world.look(link, known=3), world.look(link, known=99)]
    # by time: none is older than 100 s, none was there 100 s ago
    seen += [world.look(link, settled=100.0), world.look(link, seconds=-100.0)]
    seen += [world.look(link, seconds=100.0, settled=-1)]
    link.close()
    return seen


def who_hears_a_notify(world):
    """Sessions of the same database that LISTEN on that channel, in the order of the commits, once each."""
    a, b, other = world.link(), world.link(), world.link(database=DATABASE)
    for link in (a, other):
        link.query('LISTEN "imbus"')
        link.query('LISTEN "imbus"')
    b.query('LISTEN "another"')
    for payload in ("1", "2", "3"):
        world.notify("imbus", payload)
    a.query('UNLISTEN "imbus"')
    world.notify("imbus", "4")
    world.notify("imbus", "5", database=DATABASE)
    seen = [*world.received(a, b), other.query("SELECT 1") and [each.payload for each in other.receive()]]
    for link in (a, b, other):
        link.close()
    return seen


def payloads(world):
    """The longest payload, and one that is refused."""
    return [world.notify("imbus", "x" * 7999), world.notify("imbus", "x" * 8000), world.notify("imbus", "é" * 4000)]


def heartbeat(world):
    """A heartbeat names the LISTENs; what it needs is prepared once."""
    link = world.link()
    seen = [code(link.query, addon.session.HEARTBEAT), code(link.query, addon.session.PREPARE),
            code(link.query, addon.session.PREPARE), code(link.query, addon.session.server_settings(5.0))]
    for channel in ("imbus", "mine"):
        link.query(f'LISTEN "{channel}"')
    seen.append(sorted(link.query(addon.session.HEARTBEAT)))
    link.query('UNLISTEN "mine"')
    seen.append(link.query(addon.session.HEARTBEAT))
    link.close()
    return seen


def killed(world):
    """A session that is killed leaves no LISTEN, and its client notices."""
    link = world.link()
    link.query('LISTEN "of the killed"')
    before = world.listens("of the killed")
    world.kill(link.query("SELECT pg_backend_pid()")[0][0])
    world.until(lambda: not world.listens("of the killed"))
    return [before, code(link.query, "SELECT 1"), link.usable]


def left_by_its_client(world):
    """So does one whose client has closed it."""
    link = world.link()
    link.query('LISTEN "of the closed"')
    link.close()
    world.until(lambda: not world.listens("of the closed"))
    return True


def through_the_pooler(world):
    """The pooler invents process ids; a LISTEN stays on a server connection, and what arrives there is lost."""
    link = world.link(pooled=True)
    seen = [link.query("SELECT pg_backend_pid()")[0][0] == link.backend_pid]
    link.query('LISTEN "through the pooler"')
    seen.append(world.listens("through the pooler"))
    world.notify("through the pooler", "lost")
    watch = world.link()
    world.received(watch)       # by now it would be there
    seen.append(len(link.receive()))
    link.close()
    watch.close()
    return seen


def server_restarts(world):
    """A session ends with its server, a client of the pooler stays."""
    direct, pooled = world.link(), world.link(pooled=True)
    identity = f"SELECT pg_is_in_recovery(), {addon.endpoints.IDENTITY}"
    before = pooled.query(identity)[0]
    world.restart()
    seen = [code(direct.query, "SELECT 1"), direct.usable]

    def answers():
        return code(pooled.query, "SELECT 1") == "ok"
    world.until(answers)
    after = pooled.query(identity)[0]
    seen += [before[0], after[0], before[1] == after[1], after[2]]
    for link in (direct, pooled):
        link.close()
    return seen


def server_is_down(world):
    """Nobody gets in; a client of the pooler gets an error, or waits."""
    pooled = world.link(pooled=True)
    pooled.query("SELECT 1")
    with world.down():
        seen = [world.opens(), code(pooled.query, "SELECT 1", timeout=1.0) in ("timed out", "broken", "08P01")]
    world.until(world.opens)
    world.until(lambda: world.opens(pooled=True))
    return seen


def table_is_locked(world):
    """A look waits; with a limit of the server's it is cancelled there, without one it waits on, without a client."""
    with world.locked():
        link = world.link(database=DATABASE)
        seen = [world.look(link, server_limit=0.5) in ("57014", "55P03"), link.usable, world.waiting()]
        seen += [world.look(link), link.usable]
        link.close()
        world.pause(0.3)
        seen.append(world.waiting())
    world.until(lambda: not world.waiting())
    return seen


def pooler_is_paused(world):
    """A statement waits, and is answered afterwards."""
    link = world.link(pooled=True)
    link.query("SELECT 1")
    with world.paused():
        seen = [code(link.query, "SELECT 1", timeout=0.5), link.usable]
    world.until(lambda: link.wait(0.1))
    link.close()
    return seen


def pooler_is_full(world):
    """Nobody else gets in; who is in stays."""
    link = world.link(pooled=True)
    link.query("SELECT 1")
    with world.full_pooler():
        seen = [world.opens(pooled=True), code(link.query, "SELECT 1")]
    link.close()
    return seen


def database_is_dropped(world):
    """Its sessions end, directly and through the pooler; nobody gets in until it is made again."""
    direct, pooled = world.link(database=DATABASE), world.link(pooled=True, database=DATABASE)
    exists = world.link()
    seen = [exists.query(addon.recovery.EXISTS, (DATABASE,))]
    world.look(pooled)
    again = world.drop_database()
    seen += [exists.query(addon.recovery.EXISTS, (DATABASE,)), code(direct.query, "SELECT 1"), direct.usable,
             world.opens(database=DATABASE), world.opens(pooled=True, database=DATABASE)]
    again()
    world.until(lambda: world.opens(database=DATABASE))
    world.until(lambda: world.opens(pooled=True, database=DATABASE))
    for link in (direct, pooled, exists):
        link.close()
    return seen


SCENARIOS = [ids_and_commits, who_hears_a_notify, payloads, heartbeat, killed, left_by_its_client, through_the_pooler,
             server_restarts, server_is_down, table_is_locked, pooler_is_paused, pooler_is_full, database_is_dropped]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_the_model_does_as_the_real_one(scenario, real):
    assert on_the_model(scenario) == scenario(real)


class Standby(Real):
    """A real standby in the place of the server."""

    def __init__(self, stack, standby):
        self.stack, self.postgres = stack, standby


def on_a_standby(world):
    """It can be read, and refuses LISTEN and NOTIFY."""
    link = world.link()
    seen = [link.query("SELECT pg_backend_pid(), pg_is_in_recovery(), " + addon.endpoints.IDENTITY)[0][1],
            code(link.query, 'LISTEN "imbus"'), world.notify("imbus", "x")]
    link.close()
    return seen


def test_a_standby(stack, standby):
    def scenario(model):
        model.server = model.life.other
        return on_a_standby(model)
    load()
    assert on_the_model(scenario) == on_a_standby(Standby(stack, standby)) == [True, "25006", "25006"]


def test_a_scenario_fails_where_the_model_lies(monkeypatch):
    """The comparison sees a difference: a model whose NOTIFYs reach every database is not as the real one."""
    before = on_the_model(who_hears_a_notify)

    def everywhere(server, _database, channel, payload):
        for backend in server.backends.values():
            if channel in backend.listens:
                backend.wire.to_client(("notify", channel, payload))
    monkeypatch.setattr("tests.simulation.postgres.Server.notify", everywhere)
    assert on_the_model(who_hears_a_notify) != before


