"""The addon's own modules, and what they see of Odoo, psycopg2, sockets and time.

Contract: `load()` gives a private copy of the addon's modules (nobody else's imports see it), unchanged. What they
import from outside is replaced in their own name spaces: psycopg2 by `Driver`, `select`, `socket` and `os` by what
leads to the world, `runtime` by the kernel. No file of the addon is read in another way than Python reads it.
"""
import contextlib
import importlib
import importlib.machinery
import logging
import sys
import types
from types import SimpleNamespace

from psycopg2 import extensions

from stack.addon import FOLDER

PACKAGE = "simulated_addon"
MODULES = ("errors", "runtime", "settings", "endpoints", "link", "loop_connection", "state", "session", "pooled",
           "recovery", "notifier", "listener", "routing", "dispatcher", "cron", "observe.health")


def module(name, **attributes):
    found = types.ModuleType(name)
    found.__path__ = []
    found.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    vars(found).update(attributes)
    return found


class OdooStandIn:
    """The few things that the addon asks of Odoo; `pooled` is the address of its databases."""

    def __init__(self):
        self.pooled = {}
        self.loaded = []
        registries = SimpleNamespace(registries=self)
        self.modules = {name: module(name) for name in (
            "odoo", "odoo.addons", "odoo.addons.bus", "odoo.addons.bus.models", "odoo.modules", "odoo.service")}
        self.modules.update({
            "odoo.sql_db": module("odoo.sql_db", connection_info_for=lambda name: (name, dict(self.pooled))),
            "odoo.tools": module("odoo.tools", config={}),
            "odoo.http": module("odoo.http"),
            "odoo.modules.registry": module("odoo.modules.registry", Registry=registries),
            "odoo.service.server": module("odoo.service.server", server=None),
            "odoo.addons.bus.models.bus": module("odoo.addons.bus.models.bus", ODOO_NOTIFY_FUNCTION="pg_notify"),
        })
        self.modules["odoo"].evented = True
        for name, each in self.modules.items():
            parent, _, own = name.rpartition(".")
            if parent:
                setattr(self.modules[parent], own, each)

    @property
    def snapshot(self):
        return self.loaded      # of Registry.registries

    @contextlib.contextmanager
    def importable(self):
        before = {name: sys.modules.get(name) for name in self.modules}
        sys.modules.update(self.modules)
        try:
            yield
        finally:
            for name, each in before.items():
                if each is None:
                    del sys.modules[name]
                else:
                    sys.modules[name] = each


odoo = OdooStandIn()
addon = SimpleNamespace()       # name of a module -> the module


def load():
    """The addon's modules, as attributes of `addon`."""
    if not vars(addon):
        package = types.ModuleType(PACKAGE)
        package.__path__ = [str(FOLDER)]
        package.__spec__ = importlib.machinery.ModuleSpec(PACKAGE, None, is_package=True)
        sys.modules[PACKAGE] = package
        with odoo.importable():
            for name in MODULES:
                setattr(addon, name.rpartition(".")[2], importlib.import_module(f"{PACKAGE}.{name}"))
        logger = logging.getLogger(PACKAGE)
        logger.propagate = False
        logger.setLevel(logging.INFO)
    return addon


class LogHandler(logging.Handler):
    def __init__(self, write):
        super().__init__()
        self.write = write

    def handle(self, record):
        self.write(record.levelname, record.getMessage(), record.exc_info)


class ServerError(Exception):
    """What psycopg2 raises of an error that a server reports."""

    def __init__(self, text, pgcode=None):
        super().__init__(text)
        self.pgcode = pgcode


class Statement(bytes):
    """What `mogrify` returns: the text, with the parameters still beside it, and the time limit before it."""

    def __new__(cls, sql, parameters, limit=None):
        self = super().__new__(cls, b"")
        self.sql, self.parameters, self.limit = sql, parameters, limit
        return self

    def __radd__(self, settings):
        first, second = settings.decode().strip().rstrip(";").split(";")
        limit = float(first.partition("SET LOCAL statement_timeout = ")[2])
        if second.strip() != f"SET LOCAL lock_timeout = {limit:.0f}":
            raise UnknownStatement(settings)
        return Statement(self.sql, self.parameters, limit / 1000)


class UnknownStatement(BaseException):
    """The addon runs a statement that the model does not know: nothing that it says is worth anything."""


class Cursor:
    def __init__(self, connection):
        self._connection = connection
        self.mogrify = Statement

    def execute(self, sql, parameters=None):
        if not isinstance(sql, Statement):
            sql = Statement(sql, parameters)
        self._connection.send_query(self, sql)

    description, rows = None, ()

    def fetchall(self):
        return list(self.rows)


class Connection:
    """A psycopg2 connection in asynchronous mode; `wire` is its TCP connection, see network.Wire.

    What has arrived waits in `arrived` until `poll` reads it: ("accepted",), ("ready", pid), ("rows", rows),
    ("error", text, pgcode), ("notify", channel, payload), ("closed", text).
    """

    def __init__(self, world, info):
        self.world, self.info = world, info
        self.arrived, self.waiting, self.notifies = [], [], []
        self.closed, self.cursor_busy, self.pid = 0, None, None
        self.established = self.ready = False
        self.number = world.number(self)
        self.wire = world.network.connect(world.process_address(), info, self)

    # -- for the world ---------------------------------------------------------------------------------------------

    def arrive(self, message):
        if message[0] == "accepted":
            self.established = True
        else:
            self.arrived.append(message)
        self.world.kernel.wake(self.waiting)

    # -- for link.py -----------------------------------------------------------------------------------------------

    def poll(self):
        while self.arrived:
            kind, *rest = self.arrived.pop(0)
            if kind == "ready":
                self.ready, self.pid = True, rest[0]
            elif kind == "notify":
                self.notifies.append(extensions.Notify(0, *rest))
            elif kind == "rows":
                cursor, self.cursor_busy = self.cursor_busy, None
                cursor.rows, cursor.description = rest[0], True
            elif kind == "error":
                self.cursor_busy = None
                raise ServerError(*rest)
            else:
                self.closed, self.cursor_busy = 2, None
                self.wire.close()
                self.world.closed(self)
                raise ServerError(rest[0])
        if not self.ready:
            return extensions.POLL_READ if self.established else extensions.POLL_WRITE
        return extensions.POLL_READ if self.cursor_busy else extensions.POLL_OK

    def is_ready(self, event):
        return bool(self.arrived) or (event == POLLOUT and self.established)

    def send_query(self, cursor, statement):
        if self.closed:
            raise ServerError("connection already closed")
        if self.cursor_busy or not self.ready:
            raise ServerError("execute cannot be used while an asynchronous query is underway")
        self.cursor_busy = cursor
        self.wire.to_server(statement)

    def cursor(self):
        if self.closed:
            raise ServerError("connection already closed")
        return Cursor(self)

    def isexecuting(self):
        return self.cursor_busy is not None

    def fileno(self):
        if self.closed:
            raise ServerError("connection already closed")
        return self.number

    def get_parameter_status(self, name):
        return "UTF8"

    def get_backend_pid(self):
        return self.pid

    def close(self):
        if not self.closed:
            self.closed, self.cursor_busy = 1, None
            self.wire.close()
            self.world.closed(self)


POLLIN, POLLOUT = 1, 4


class Poller:
    """select.poll"""

    def __init__(self, world):
        self._world = world

    def register(self, number, event):
        self._connection, self._event = self._world.connections[number], event

    def poll(self, milliseconds):
        connection, kernel = self._connection, self._world.kernel
        deadline = kernel.now + milliseconds / 1000
        while not connection.is_ready(self._event):
            left = deadline - kernel.now
            if left <= 0 or not kernel.wait(connection.waiting, left):
                break
        return connection.is_ready(self._event)


class Socket:
    """What `Link.interrupt` shuts down: the connection with this number."""

    def __init__(self, connection):
        self._connection = connection

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def shutdown(self, _how):
        self._connection.arrive(("closed", "the connection was shut down"))


class Pair:
    """One end of the socket pair between a listener and upstream's loop."""

    def __init__(self, kernel):
        self._kernel, self.bytes, self.waiting, self.other = kernel, 0, [], None

    def setblocking(self, _flag):
        pass

    def fileno(self):
        return -1

    def send(self, data):
        self.other.bytes += len(data)
        self._kernel.wake(self.other.waiting)

    def recv(self, size):
        if not self.bytes:
            raise BlockingIOError
        self.bytes -= min(size, self.bytes)

    def close(self):
        pass

    def wait(self, seconds):
        """Wait until there is something to read."""
        return bool(self.bytes) or self._kernel.wait(self.waiting, seconds) or bool(self.bytes)


def socketpair(kernel):
    one, other = Pair(kernel), Pair(kernel)
    one.other, other.other = other, one
    return one, other


@contextlib.contextmanager
def installed(world):
    """Have the addon live in this world meanwhile."""
    load()
    kernel = world.kernel
    standins = {
        addon.runtime: {
            "monotonic": kernel.monotonic, "wall_clock": lambda: kernel.now + 1.7e9, "sleep": kernel.sleep,
            "uniform": kernel.random.uniform, "token": lambda: f"{kernel.random.getrandbits(64):016x}",
            "Lock": kernel.lock, "Event": kernel.event, "start_thread": world.start_thread},
        addon.link: {
            "psycopg2": SimpleNamespace(connect=world.connect, Error=ServerError), "FAILURES": (ServerError, OSError),
            "select": SimpleNamespace(poll=lambda: Poller(world), POLLIN=POLLIN, POLLOUT=POLLOUT),
            "os": SimpleNamespace(getpid=lambda: 1, dup=lambda number: number),
            "socket": SimpleNamespace(socket=lambda fileno: Socket(world.connections[fileno]), SHUT_RDWR=2)},
        addon.endpoints: {
            "socket": SimpleNamespace(getaddrinfo=world.resolve, SOCK_STREAM=1), "os": SimpleNamespace(environ={})},
        addon.loop_connection: {"socket": SimpleNamespace(socketpair=lambda: socketpair(kernel))},
        addon.session: {"os": SimpleNamespace(getpid=lambda: 1), "HOST": "simulated"},
        addon.notifier: {"os": SimpleNamespace(getpid=world.process_number)},
    }
    before = [(each, name, getattr(each, name)) for each, names in standins.items() for name in names]
    handler = LogHandler(world.log)
    logger = logging.getLogger(PACKAGE)
    try:
        for each, names in standins.items():
            vars(each).update(names)
        logger.addHandler(handler)
        with odoo.importable():
            yield addon
    finally:
        logger.removeHandler(handler)
        for each, name, value in before:
            setattr(each, name, value)
