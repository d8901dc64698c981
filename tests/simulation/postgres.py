"""The model of PostgreSQL: sessions, rows of bus_bus, LISTEN and NOTIFY, locks, restarts, a standby.

What is modelled: ids that are given before their transaction commits, commits in any order, statements that see what
has committed; NOTIFYs in the order of their commits, to the sessions of that database that LISTEN; locks on the table
and on the log-in, with statement_timeout; a session whose client has gone, which is noticed when it waits for the
client; start-up, full, standby, promotion, a copy. What is not: SQL. The statements are recognised by the addon's own
constants, and one that is not known ends the life with UnknownStatement.
"""
import re

from .standins import ServerError, UnknownStatement

NOTIFY = re.compile(r"""notify (\w+), %s$|select "?pg_notify"?\('(\w+)', %s\)$""", re.IGNORECASE)
LONGEST_PAYLOAD = 7999


class Row:
    """A row of bus_bus. `began`: when its transaction began; `created`: the same by the server's clock."""

    def __init__(self, number, id, channel, began, created):
        self.number, self.id, self.channel, self.began, self.created = number, id, channel, began, created
        self.committed = None   # virtual time

    def __repr__(self):
        return f"row {self.number} (id {self.id})"


class Database:
    def __init__(self, name):
        self.name, self.rows, self.last_id = name, [], 0
        self.locked = False     # whether another session holds an exclusive lock on bus_bus
        self.waiting = []       # backends, for that lock

    def next_id(self):
        self.last_id += 1
        return self.last_id

    def copy(self, without=0):
        """A copy of what has committed, without so many of its latest rows."""
        other = Database(self.name)
        other.rows = self.rows[:len(self.rows) - without]
        other.last_id = max([row.id for row in other.rows], default=0)
        return other


class Server:
    """One PostgreSQL.

    `accepting`: whether its port is open. `starting`: whether it refuses log-ins for now. `stopped`: whether its
    processes stand still (the kernel's TCP answers). `login_locked`: whether log-ins wait for a lock.
    """

    def __init__(self, world, name, address, databases):
        self.world, self.kernel, self.name, self.address = world, world.kernel, name, address
        self.databases = {each: Database(each) for each in databases}
        self.accepting, self.starting, self.standby = True, False, False
        self.stopped = self.login_locked = False
        self.room = 100
        self.backends, self._last_pid, self._held = {}, 1000, []
        self.restarts = 0
        self.epoch = self.started = int(self.kernel.now * 1000000) + ord(name[-1])
        self.unlistenable = 0   # LISTENs that fail next
        world.network.hosts[address, 5432] = self

    @property
    def well(self):
        return self.accepting and not (self.starting or self.stopped or self.standby)

    def accept(self, wire):
        self._last_pid += 1
        backend = Backend(self, wire, self._last_pid)
        self.backends[backend.pid] = backend
        self.kernel.at(self.kernel.random.uniform(0.0005, 0.003), self.when_running, backend.log_in)
        return backend

    def when_running(self, call, *args):
        if self.stopped:
            self._held.append((call, args))
        else:
            call(*args)

    def notify(self, database, channel, payload):
        """Commit a NOTIFY."""
        if len(payload.encode()) > LONGEST_PAYLOAD:
            raise ServerError("payload string too long", "22023")
        if self.standby:
            raise ServerError("cannot execute NOTIFY during recovery", "25006")
        for backend in self.backends.values():
            if channel in backend.listens and backend.database == database:
                backend.wire.to_client(("notify", channel, payload))

    # -- faults ----------------------------------------------------------------------------------------------------

    def stop(self, fast=True):
        """Shut it down; without `fast` as a crash does. All sessions end."""
        self.accepting, self.stopped, self._held = False, False, []
        for backend in list(self.backends.values()):
            backend.terminate("terminating connection due to administrator command" if fast else
                              "server closed the connection unexpectedly")

    def start(self, seconds=0.0):
        """Start it; so long it refuses log-ins."""
        self.accepting, self.starting = True, seconds > 0
        self.epoch = self.started = int(self.kernel.now * 1000000) + ord(self.name[-1])
        self.kernel.at(seconds, self._started, self.epoch)

    def _started(self, epoch):
        if epoch == self.epoch:
            self.starting = False

    def resume(self):
        """Have its processes run again."""
        self.stopped = False
        held, self._held = self._held, []
        for call, args in held:
            call(*args)

    def lock(self, name):
        self.databases[name].locked = True

    def unlock(self, database):
        database.locked = False
        waiting, database.waiting = database.waiting, []
        for backend in waiting:
            backend.go_on()

    def unlock_login(self):
        self.login_locked = False
        for backend in list(self.backends.values()):
            if not backend.ready:
                backend.log_in()


class Backend:
    """A session, and the process that serves it. `wire` leads to its client."""

    def __init__(self, server, wire, pid):
        self.server, self.wire, self.pid, self.database = server, wire, pid, wire.client.info["dbname"]
        self.application = wire.client.info.get("application_name") or "a client's"
        self.listens, self.prepared = {}, False
        self.ready = self.gone = self.stopped = False
        self.keepalive = False      # whether its TCP finds out that the client's host is gone
        self.waits = None           # the statement that waits for a lock
        self.waiting_since = 0.0
        self._pending = []

    def __repr__(self):
        return f"backend {self.pid} of {self.server.name}"

    def log_in(self):
        server = self.server
        if self.ready or self.pid not in server.backends:
            return
        if server.starting:
            self.terminate("FATAL: the database system is starting up")
        elif server.login_locked:
            self.waiting_since = self.waiting_since or server.kernel.now
        elif self.gone:
            self.end()
        elif self.database not in server.databases:
            self.terminate(f'FATAL: database "{self.database}" does not exist')
        elif len(server.backends) > server.room:
            self.terminate("FATAL: sorry, too many clients already")
        else:
            self.ready = True
            self.wire.to_client(("ready", self.pid))

    def hangup(self):
        """Its client has gone: a session that does not wait for its client notices that later."""
        self.gone = True
        if self.ready and self.waits is None and not (self.server.stopped or self.stopped):
            self.end()

    def end(self):
        self.server.backends.pop(self.pid, None)
        self.listens = {}

    def terminate(self, text):
        if self.pid in self.server.backends:
            self.end()
            self.wire.to_client(("closed", text))

    def receive(self, statement):
        if self.server.stopped or self.stopped:
            self._pending.append(statement)
            if self.server.stopped:
                self.server.when_running(self.resume)
        else:
            self.run(statement)

    def resume(self):
        self.stopped = False
        pending, self._pending = self._pending, []
        for statement in pending:
            self.run(statement)
        if self.gone and self.waits is None:
            self.end()

    def run(self, statement):
        """Run a statement, and answer."""
        if self.pid not in self.server.backends:
            return
        world = self.server.world
        if statement.sql == world.statements.look:
            world.happens("look", self)
            database = self.server.databases.get(self.database)
            if database is not None and database.locked:
                self.waits, self.waiting_since = statement, world.kernel.now
                database.waiting.append(self)
                if statement.limit:
                    world.kernel.at(statement.limit, self.cancel, statement)
                return
        try:
            rows = world.statements.run(self, statement)
        except ServerError as exc:
            self.wire.to_client(("error", str(exc), exc.pgcode))
        else:
            self.wire.to_client(("rows", rows))
            world.happens("reply", self)

    def cancel(self, statement):
        """The statement has waited for as long as it may."""
        if self.waits is statement and self.pid in self.server.backends:
            self.waits = None
            self.server.databases[self.database].waiting.remove(self)
            self.wire.to_client(("error", "canceling statement due to statement timeout", "57014"))
            if self.gone:
                self.end()

    def go_on(self):
        statement, self.waits = self.waits, None
        self.run(statement)
        if self.gone:
            self.end()


class Statements:
    """The statements of the addon, by its own constants, and what they do."""

    def __init__(self, addon):
        self.look = addon.recovery.QUERY
        self.limit = addon.recovery.LIMIT
        identity = addon.endpoints.IDENTITY
        self.exact = {
            "SELECT 1": lambda backend, _: [(1,)],
            "SELECT pg_backend_pid()": lambda backend, _: [(backend.pid,)],
            "SELECT pg_notification_queue_usage()": lambda backend, _: [(0.0,)],
            addon.session.PREPARE: self._prepare,
            addon.session.HEARTBEAT: self._heartbeat,
            addon.recovery.EXISTS: lambda backend, given: [(1,)] * (given[0] in backend.server.databases),
            self.look: self._look,
            f"SELECT pg_backend_pid(), pg_is_in_recovery(), {identity}":
                lambda backend, _: [(backend.pid, *self._identity(backend))],
            "SELECT host(inet_server_addr()), current_setting('port')": lambda backend, _: [("127.0.0.1", "5432")],
            f"SELECT pg_is_in_recovery(), {identity}": lambda backend, _: [self._identity(backend)],
            f'SELECT pg_is_in_recovery(), {identity}, "pg_notify"(%s, %s)': self._notify_and_identity,
        }
        self.settings = addon.session.SERVER_SETTINGS.partition("{")[0]

    def run(self, backend, statement):
        sql, given = statement.sql, statement.parameters
        known = self.exact.get(sql)
        if known:
            return known(backend, given)
        if sql.startswith(("LISTEN", "UNLISTEN")):
            return self._listen(backend, *sql.split(" ", 1))
        if sql.startswith(self.settings):
            backend.keepalive = True
            return [("",)]
        notify = NOTIFY.match(sql)
        if not notify:
            raise UnknownStatement(sql)
        world = backend.server.world
        world.happens("notify", backend)
        backend.server.notify(backend.database, notify.group(1) or notify.group(2), given[0])
        world.holds.left(given[0])
        world.counts["notified"] += 1
        return [("",)]

    @staticmethod
    def _identity(backend):
        return backend.server.standby, backend.server.started, backend.database

    def _notify_and_identity(self, backend, given):
        backend.server.notify(backend.database, *given)
        return [(*self._identity(backend), "")]

    @staticmethod
    def _prepare(backend, _given):
        if backend.prepared:
            raise ServerError("prepared statement already exists", "42P05")
        backend.prepared = True
        return []

    @staticmethod
    def _heartbeat(backend, _given):
        if not backend.prepared:
            raise ServerError("prepared statement does not exist", "26000")
        return [(channel,) for channel in backend.listens]

    @staticmethod
    def _listen(backend, verb, channel):
        server = backend.server
        if server.standby:
            raise ServerError(f"cannot execute {verb} during recovery", "25006")
        if verb == "UNLISTEN":
            backend.listens.pop(channel.strip('"'), None)
        elif server.unlistenable:
            server.unlistenable -= 1
            raise ServerError("could not access status of transaction 4711", "58P01")
        else:
            backend.listens[channel.strip('"')] = None
        return []

    def _look(self, backend, given):
        """What recovery.QUERY says, of the rows that have committed."""
        server = backend.server
        database = server.databases.get(backend.database)
        if database is None:
            raise ServerError("database is gone", "3D000")
        clock = server.world.clock()
        since, until = clock - given["seconds"], clock - given["settled"]
        newest = sorted((row for row in database.rows if row.id > given["known"]), key=lambda row: -row.id)[:self.limit]
        found = {}
        for row in newest:
            if since <= row.created <= until:
                found.setdefault(row.channel, []).append(row.id)
        highest = max((row.id for row in database.rows), default=0)
        lowest = min((row.id for row in newest if row.created > since), default=None)
        more = len(newest) == self.limit and min(row.created for row in newest) > since
        return [(channel, ids, None, None, None, None) for channel, ids in found.items()] + [
            (None, None, highest, lowest, server.standby, more)]
