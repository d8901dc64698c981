# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""Checks the whole way of a notification, from the settings to its arrival.

Contract: every check yields one ``Result``, also one that could not be made; no check raises,
none waits longer than the settings' timeouts, none changes anything: what is sent is a LISTEN and
a NOTIFY on a channel with a random name. What is wrong is told in the words of the log
(``errors``). No password is ever part of a result.
"""

import datetime
import os
import random
import re
import socket
import ssl
import struct
import time
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple, Union

from odoo.tools import config

from . import dispatcher, endpoints, errors, queue_job
from .connection import BlockingConnection
from .errors import ConnectionLost
from .listener import Listener
from .recovery import PooledPath
from .settings import CONNECTION, OTHERS, Settings, server_wide_modules

ADDON = "bus_alt_connection"


class Result(NamedTuple):
    name: str  # of the check
    state: str  # "ok", "warning", "failed", or "skipped" if the check could not be made
    text: str
    remedy: Optional[str]


# The checks of the direct connection, in order; without one the rest is skipped.
DIRECT = (
    "direct address",
    "direct credentials",
    "direct TLS",
    "direct server",
    "direct pooler",
    "NOTIFY",
    "connections",
)
# Which of them fails if a server that answers refuses, by the problem's cause; else it is the
# address.
FAILS = {
    "credentials": "direct credentials",
    "pg_hba": "direct credentials",
    "role": "direct credentials",
    "tls": "direct TLS",
    "database": "direct server",
    "standby": "direct server",
    "full": "connections",
}
ODOOS_OWN = (
    "This is Odoo's own connection, which needs it just so: check db_host, db_port, db_user and"
    " db_password."
)
# Causes of which PgBouncer's own settings are the remedy.
PGBOUNCERS = ("query wait", "server login")
# The part of the NOTIFY queue from which on PostgreSQL itself warns in its log.
QUEUE_USAGE = 0.5
# How long a LISTEN that may be lost is waited for.
LISTEN_SECONDS = 1.0
# A certificate that expires sooner is worth a warning.
EXPIRY_DAYS = 21


def ok(name: str, text: str) -> Result:
    return Result(name, "ok", text, None)


def warning(name: str, text: str, remedy: str) -> Result:
    return Result(name, "warning", text, remedy)


def failed(name: str, text: str, remedy: str) -> Result:
    return Result(name, "failed", text, remedy)


def skipped(name: str, text: str) -> Result:
    return Result(name, "skipped", text, None)


def verdict(results: List[Result]) -> Tuple[int, str]:
    """:return: (exit status, one line) for all results"""
    states = [result.state for result in results]
    if "failed" in states:
        return 2, f"BROKEN: {states.count('failed')} check(s) failed, see above."
    if "warning" in states:
        return 1, f"Works, with {states.count('warning')} warning(s), see above."
    return 0, "All is well."


def examine(settings: Settings) -> Iterator[Result]:
    """Make every check, in the order in which a notification goes."""
    for result in check_settings(settings):
        yield result
    yield check_loaded()
    pooled = direct = None
    try:
        pooled, result = open_pooled(settings)
        yield result
        yield _made("pooled mode", check_pooled_mode, settings, pooled)
        pooler, result = check_kind(settings, pooled)
        yield result
        yield _made("NOTIFY queue", check_queue, pooled)
        if queue_job.loaded():
            yield _made("queue_job", check_runner, settings, pooled)
        direct, results = open_direct(settings, pooled)
        for result in results:
            yield result
        if direct is None:
            return
        yield _made("direct server", check_server, pooled, direct)
        arrived, result = check_notify(settings, pooled, direct)
        yield check_pooler(direct, arrived)
        yield result
        yield _made("connections", check_connections, settings, pooled, direct, pooler)
    finally:
        for peer in (pooled, direct):
            if peer is not None:
                peer.link.close()


def _made(name: str, check: Callable[..., Result], *args: Any) -> Result:
    """What a check finds, also if a connection is lost on the way."""
    try:
        return check(*args)
    except ConnectionLost as exc:
        return failed(name, str(exc), exc.cause.remedy)


# -- the settings -----------------------------------------------------------------------------


def check_settings(settings: Settings, environ: Optional[Mapping[str, str]] = None) -> List[Result]:
    """Each setting that is set, and each that is wrong."""
    results = []
    for name in list(CONNECTION) + list(OTHERS):
        if name in settings.sources and settings.values.get(name) is not None:
            value = settings.values[name]
            if name == "db_password":
                value = "set, not shown"
            elif isinstance(value, list):
                value = ",".join(map(str, value))
            text = f"imdispatcher_{name} is {value}, from {settings.sources[name]}"
            results.append(ok("settings", text))
    for problem in settings.problems:
        results.append(warning("settings", problem, "Correct it, or take it out."))
    for source, name in _unknown(os.environ if environ is None else environ):
        results.append(
            warning("settings", f"{name} in {source} is no setting", "Is it misspelt?")
        )
    if not settings.configured:
        text = (
            "neither imdispatcher_db_host nor imdispatcher_db_port is set: the listeners use"
            " Odoo's own address"
        )
        results.append(ok("settings", text))
    return results


def _unknown(environ: Mapping[str, str]) -> Iterator[Tuple[str, str]]:
    """(where it stands, name) of each that looks like a setting and is none."""
    known = {"imdispatcher_" + name for name in list(CONNECTION) + list(OTHERS)}
    for option in sorted(config.options):
        if option.startswith("imdispatcher_") and option not in known:
            yield "Odoo's configuration", option
    for variable in sorted(environ):
        name = variable[len("ODOO_") :] if variable.startswith("ODOO_") else variable
        if name.startswith("IMDISPATCHER_") and name.lower() not in known:
            yield "the environment", variable


def check_loaded() -> Result:
    """Whether the configuration that this command sees loads the addon server-wide."""
    modules = server_wide_modules()
    if ADDON in modules:
        return ok("server-wide", f"server_wide_modules loads {ADDON}")
    return failed(
        "server-wide",
        f"server_wide_modules is {','.join(modules)}: Odoo does not load the addon",
        f"Set server_wide_modules = {','.join([*modules, ADDON])}",
    )


# -- connections ------------------------------------------------------------------------------

FACTS = (
    f"SELECT pg_backend_pid(), pg_is_in_recovery(), {endpoints.IDENTITY},"
    " current_user, current_setting('server_version')"
)


class Peer:
    """An open connection, and what the server behind it says of itself.

    :raises ConnectionLost: if there is none to be had
    """

    def __init__(self, settings: Settings, info: Dict[str, Any], tcp_timeout: float) -> None:
        begun = time.monotonic()
        self.info = info
        self.shown = endpoints.shown(info)
        self.link = BlockingConnection(info, settings.connect_timeout_seconds, tcp_timeout)
        try:
            row = self.link.query(FACTS)[0]
        except BaseException:
            self.link.close()
            raise
        self.seconds = time.monotonic() - begun
        self.pid, self.in_recovery, self.started, self.database = row[:4]
        self.user, self.version = row[4:]
        self.pooler = self.pid != self.link.backend_pid

    def address(self) -> Tuple[str, int]:
        """:return: (host, port) that PostgreSQL says of itself"""
        row = self.link.query(endpoints.ADDRESS)[0]
        return endpoints.address_of(row, self.info.get("host"))

    def answers(self) -> str:
        """What there is to say of it, for people."""
        version = self.version.split()[0]
        return f"{self.shown} answers in {self.seconds * 1000:.0f} ms, PostgreSQL {version}"

    def system(self) -> Optional[str]:
        """What a server has in common with its copies only, None if it does not say."""
        try:
            return self.link.query("SELECT system_identifier::text FROM pg_control_system()")[0][0]
        except ConnectionLost:
            return None  # the role may not ask


def refused_parameter(reason: str) -> Optional[str]:
    """What has PgBouncer accept the startup parameter, None for another reason."""
    found = re.search(r"unsupported startup parameter(?: in options)?: (\w+)", reason)
    if not found:
        return None
    # Added, and not set: the file may have others there.
    return f"Add {found.group(1)} to ignore_startup_parameters in pgbouncer.ini."


def _pooled(settings: Settings, database: Optional[str] = None) -> BlockingConnection:
    """Another connection at Odoo's own address."""
    return BlockingConnection(endpoints.pooled(database), settings.connect_timeout_seconds)


def open_pooled(settings: Settings) -> Tuple[Optional[Peer], Result]:
    """Open a connection as Odoo itself has them."""
    info = endpoints.pooled()
    try:
        pooled = Peer(settings, info, settings.connect_timeout_seconds)
    except ConnectionLost as exc:
        remedy = refused_parameter(exc.reason)
        if remedy is None:
            remedy = exc.cause.remedy if exc.cause.name in PGBOUNCERS else ODOOS_OWN
        return None, failed("pooled address", f"{endpoints.shown(info)}: {exc}", remedy)
    return pooled, ok("pooled address", pooled.answers())


# An endpoint, None if there is none yet, and why it is of no use.
Problem = Tuple[Optional[Dict[str, Any]], ConnectionLost]


def open_direct(settings: Settings, pooled: Optional[Peer]) -> Tuple[Optional[Peer], List[Result]]:
    """Open the connection that the listeners would have."""
    try:
        if settings.auto and pooled is None:
            raise ConnectionLost(
                "imdispatcher_db_host is auto, and there is no pooled connection to ask"
            )
        address = pooled.address() if settings.auto else None
        infos = endpoints.direct(settings, address)
    except ConnectionLost as exc:
        return None, _no_direct([(None, exc)])
    direct, problems, standing_by = None, [], []
    for info in infos:
        try:
            peer = Peer(settings, info, settings.connect_timeout_seconds / 6)
        except ConnectionLost as exc:
            problems.append((info, exc))
            continue
        if direct is None and not peer.in_recovery:
            direct = peer
            continue
        if peer.in_recovery:
            standing_by.append(peer.shown)
            text = "the server is a standby (in recovery mode), where LISTEN is impossible"
            problems.append((info, ConnectionLost(text)))
        peer.link.close()
    if direct is None:
        return None, _no_direct(problems)
    results = [ok("direct address", direct.answers())]
    for info, problem in problems:
        shown = endpoints.shown(info)
        if shown in standing_by:
            results.append(ok("direct address", f"{shown} is a standby, which is passed over"))
        else:
            text = f"{shown}: {problem}. Another host is used"
            results.append(warning("direct address", text, problem.cause.remedy))
    results.append(ok("direct credentials", f"{direct.user} may log in"))
    results.append(_made("direct TLS", check_tls, direct, settings.connect_timeout_seconds))
    return direct, results


def _no_direct(problems: List[Problem]) -> List[Result]:
    """What fails, and that nothing else can be checked."""
    found: Dict[str, List[Result]] = {}
    for info, problem in problems:
        text = str(problem) if info is None else f"{endpoints.shown(info)}: {problem}"
        name = FAILS.get(problem.cause.name, "direct address")
        found.setdefault(name, []).append(failed(name, text, problem.cause.remedy))
        if name != "direct address" and info is not None:
            text = f"{endpoints.shown(info)} answers"
            found.setdefault("direct address", []).append(ok("direct address", text))
    results = []
    for name in DIRECT:
        results.extend(found.get(name) or [skipped(name, "there is no direct connection")])
    return results


# -- is it a pooler, and does a LISTEN last ---------------------------------------------------


class Subscription:
    """LISTENs on a channel of its own, until it is closed."""

    def __init__(self, link: BlockingConnection) -> None:
        self._link = link
        self.channel = "bus_alt_doctor_" + "".join(random.sample("abcdefghijklmnop", 12))
        self._pid = self._link.query(f"LISTEN {self.channel}; SELECT pg_backend_pid()")[0][0]

    def waits_for(
        self, notifier: BlockingConnection, function: str, timeout: float
    ) -> Optional[float]:
        """How long a NOTIFY takes.

        :param notifier: the connection that sends it
        :param function: what it is sent with
        :return: seconds until it arrives here, None if it does not
        """
        quoted = function.replace('"', '""')
        begun = time.monotonic()
        notifier.query(f'SELECT "{quoted}"(%s, %s)', (self.channel, "doctor"))
        while time.monotonic() < begun + timeout:
            if not self._link.wait(begun + timeout - time.monotonic()):
                continue
            if any(one.channel == self.channel for one in self._link.receive()):
                return time.monotonic() - begun
        return None

    def close(self) -> None:
        """A pooler gives the backend to others: leave nothing behind in it."""
        for _attempt in range(20):
            sql = f"UNLISTEN {self.channel}; SELECT pg_backend_pid()"
            if self._link.query(sql)[0][0] == self._pid:
                return


def notify_function() -> str:
    """The function that Odoo NOTIFYs with: its role may be allowed no other."""
    try:
        return dispatcher.Subscribers.notify_function()
    except Exception:  # whatever Odoo's bus has against being imported: the server logs it
        return "pg_notify"


def _seconds_to(
    link: BlockingConnection, notifier: BlockingConnection, function: str, timeout: float
) -> Optional[float]:
    subscription = Subscription(link)
    try:
        return subscription.waits_for(notifier, function, timeout)
    finally:
        subscription.close()


def check_pooled_mode(settings: Settings, pooled: Optional[Peer]) -> Result:
    """Whether Odoo's own address is a pooler, and in which mode as far as can be told."""
    name = "pooled mode"
    if pooled is None:
        return skipped(name, "there is no pooled connection")
    host, port = pooled.address()
    behind = f"; PostgreSQL says that it is at {host} port {port}"
    function = notify_function()
    try:
        with _pooled(settings) as other:
            lasts = _seconds_to(pooled.link, other, function, LISTEN_SECONDS) is not None
    except ConnectionLost as exc:
        pooled.pooler = True
        return ok(name, f"a pooler that refuses a LISTEN ({exc}){behind}")
    if not lasts:
        pooled.pooler = True  # even if it tells the process id of a backend
        return ok(name, f"a pooler in transaction mode: a LISTEN through it is lost{behind}")
    if pooled.pooler:
        return ok(name, f"a pooler in session mode: a LISTEN through it lasts{behind}")
    return ok(name, "no pooler, but PostgreSQL itself")


# -- which pooler, and its settings -----------------------------------------------------------


# What stands at Odoo's own address.
class Pooler(NamedTuple):
    name: Optional[str]  # None if none is to be seen
    settings: Optional[Dict[str, Any]]  # None if they are not announced to clients
    refusal: Optional[str]  # why the settings may not be asked for


NOT_SEEN = Pooler(None, None, None)
UNKNOWN_POOLER = "a pooler that the doctor does not know"
BETWEEN = f"{UNKNOWN_POOLER}, or what only forwards (PostgreSQL has another port)"
# Of PgBouncer: setting, whether a value (seconds) hurts, what it does, the line to set.
HURTS = (
    (
        "server_login_retry",
        lambda value: value > 2,
        "after PostgreSQL was away, clients are refused for that much longer",
        "server_login_retry = 1",
    ),
    (
        "query_wait_timeout",
        lambda value: value == 0,
        "who gets no server connection waits for ever",
        "query_wait_timeout = 120",
    ),
    (
        "query_wait_timeout",
        lambda value: 0 < value < 10,
        "who gets no server connection so soon is disconnected, at every peak",
        "query_wait_timeout = 120",
    ),
    (
        "server_idle_timeout",
        lambda value: 0 < value < 10,
        "after each pause that is longer, a NOTIFY waits for a login to PostgreSQL",
        "server_idle_timeout = 300",
    ),
)


def identify(settings: Settings, pooled: Peer) -> Pooler:
    """Recognise the pooler by what it alone answers."""
    refusal = None
    if pooled.pooler:
        try:
            with _pooled(settings, "pgbouncer") as console:
                version = console.query("SHOW VERSION")[0][0]
                found = {row[0]: row[1] for row in console.query("SHOW CONFIG")}
                return Pooler(version, found, None)
        except ConnectionLost as exc:
            refusal = exc.reason
        if "not allowed" in refusal:
            user = endpoints.pooled().get("user")
            return Pooler("PgBouncer", None, f"its console may not be asked as {user}")
        if "odyssey:" in refusal:
            return Pooler("Odyssey", None, None)
    try:
        version = pooled.link.query("SHOW POOL_VERSION")[0][0]
        pooled.pooler = True
        return Pooler(f"pgpool-II {version.split()[0]}", None, None)
    except ConnectionLost:
        pass  # PostgreSQL does not know that
    if pooled.pooler:
        return Pooler(UNKNOWN_POOLER, None, None)
    # Some tell the process id of the backend, and keep a LISTEN while nobody else wants it.
    asked = str(pooled.info.get("port") or os.environ.get("PGPORT") or 5432).split(",")
    return Pooler(None if str(pooled.address()[1]) in asked else BETWEEN, None, None)


def check_kind(settings: Settings, pooled: Optional[Peer]) -> Tuple[Pooler, Result]:
    """Which pooler it is, and which of its settings hurt as far as they are announced."""
    name = "pooler"
    if pooled is None:
        return NOT_SEEN, skipped(name, "there is no pooled connection")
    try:
        pooler = identify(settings, pooled)
    except ConnectionLost as exc:
        return NOT_SEEN, failed(name, str(exc), exc.cause.remedy)
    return pooler, _judged(name, pooler)


def _judged(name: str, pooler: Pooler) -> Result:
    if pooler.name is None:
        return ok(name, "none is to be seen")
    if pooler.refusal:
        text = f"{pooler.name}: {pooler.refusal}, so its settings were not checked"
        return ok(name, f"{text} (stats_users in pgbouncer.ini allows it)")
    if pooler.settings is None:
        return ok(name, f"{pooler.name}: its settings are not announced to clients")
    found = []
    for setting, hurts, what, line in HURTS:
        value = pooler.settings.get(setting)
        if value is not None and hurts(float(value)):
            found.append((f"{setting} is {value}: {what}", line))
    if found:
        text = "; ".join(text for text, _line in found)
        lines = " and ".join(line for _text, line in found)
        return warning(name, f"{pooler.name}: {text}", f"Set {lines} in pgbouncer.ini.")
    return ok(name, f"{pooler.name}: none of its settings hurts")


# A listener that takes nothing holds up the queue: one that does not read from its connection, or
# one in a transaction, in which PostgreSQL delivers nothing.
HOLDERS = """
SELECT pid, usename, application_name, coalesce(wait_event, '') = 'ClientWrite',
    round(extract(epoch FROM clock_timestamp() - state_change))::int, age(backend_xmin)
FROM pg_stat_activity
WHERE pid <> pg_backend_pid() AND (wait_event = 'ClientWrite' OR state LIKE 'idle in transaction%')
ORDER BY age(backend_xmin) DESC NULLS LAST, state_change LIMIT 5
"""


def check_queue(pooled: Optional[Peer]) -> Result:
    """Whether NOTIFYs have room, and who holds up the queue."""
    name = "NOTIFY queue"
    if pooled is None:
        return skipped(name, "there is no pooled connection")
    usage = pooled.link.query("SELECT pg_notification_queue_usage()")[0][0]
    text = f"{usage * 100:.0f} % full"
    if usage < QUEUE_USAGE:
        return ok(name, text)
    holders = pooled.link.query(HOLDERS)
    if not holders:
        remedy = (
            "See as a superuser which sessions wait for ClientWrite or are idle in transaction:"
            " this role may not see them."
        )
        text += "; when it is full no transaction with a NOTIFY can commit"
        return failed(name, text, remedy)
    for pid, role, application, writing, seconds, age in holders:
        state = "does not read what it is sent" if writing else "is idle in transaction"
        text += f"; pid {pid} ({application or 'no name'}, as {role}) {state} for {seconds} s"
        if age is not None:
            text += f" (age of its oldest snapshot: {age} transactions)"
    ends = " ".join(f"SELECT pg_terminate_backend({holder[0]});" for holder in holders)
    return failed(name, text, f"End the first of them that LISTENs, or all: {ends}")


# Those of Odoo's role: where db_name names none, the runner looks at all of them.
DATABASES = """
SELECT datname FROM pg_database WHERE pg_get_userbyid(datdba) = current_user AND datallowconn
ORDER BY datname LIMIT 1
"""


def check_runner(settings: Settings, pooled: Optional[Peer]) -> Result:
    """Whether the runner of queue_job has a connection on which a LISTEN lasts."""
    name = "queue_job"
    try:
        runner = queue_job.install(settings)
    except Exception as exc:  # whatever an addon of others raises
        return skipped(name, f"its runner cannot be imported: {errors.one_line(exc)}")
    databases = endpoints.named_databases()
    if not databases and pooled is not None:
        databases = [row[0] for row in pooled.link.query(DATABASES)]
    if not databases:
        return skipped(name, "its runner has no database that is known here")
    info = runner._connection_info_for(databases[0])
    info["dbname"] = info.pop("database", databases[0])
    info.pop("connection_factory", None)
    timeout = settings.connect_timeout_seconds
    try:
        with BlockingConnection(info, timeout) as link, BlockingConnection(info, timeout) as other:
            pid = link.query("SELECT pg_backend_pid()")[0][0]
            kind = f"no pooler: backend pid {pid}"
            if pid != link.backend_pid:
                # queue_job itself always uses this one
                lasts = _seconds_to(link, other, "pg_notify", LISTEN_SECONDS) is not None
                kind = f"a pooler in {'session' if lasts else 'transaction'} mode"
    except ConnectionLost as exc:
        text = f"its runner cannot connect to {endpoints.shown(info)}: {exc}"
        return failed(name, text, exc.cause.remedy)
    text = f"its runner connects to {endpoints.shown(info)}, {kind}"
    if kind.endswith("transaction mode"):
        remedy = (
            "Set imdispatcher_db_host and imdispatcher_db_port to PostgreSQL itself, and neither"
            " jobrunner_db_* nor imdispatcher_queue_job."
        )
        return failed(name, f"{text}, where its LISTEN is lost and jobs wait", remedy)
    return ok(name, text)


def check_pooler(direct: Peer, arrived: Union[float, bool, None]) -> Result:
    """Whether the direct connection is one.

    :param arrived: seconds that a NOTIFY took, None if it did not arrive, False if unknown
    """
    name = "direct pooler"
    if not direct.pooler:
        return ok(name, f"no pooler: backend pid {direct.pid}")
    if arrived:
        return ok(name, "a pooler in session mode, where a LISTEN lasts")
    if arrived is False:
        return skipped(name, "a pooler; its mode shows once NOTIFYs can be sent")
    same = (direct.started, direct.database)
    found = errors.undelivered(direct.shown, same, same, direct.pooler, LISTEN_SECONDS)
    return failed(name, found.reason, found.cause.remedy)


def check_server(pooled: Optional[Peer], direct: Peer) -> Result:
    """Whether the direct connection leads to the server and the database that NOTIFYs reach."""
    name = "direct server"
    if pooled is None:
        return skipped(name, "a primary; which one NOTIFYs reach is not known")
    if (direct.started, direct.database) == (pooled.started, pooled.database):
        return ok(name, f'the primary and the database "{direct.database}" that NOTIFYs reach')
    found = errors.undelivered(
        direct.shown,
        (direct.started, direct.database),
        (pooled.started, pooled.database),
        direct.pooler,
        LISTEN_SECONDS,
    )
    text = found.reason
    system = direct.system()
    if found.cause.name == "other server" and system is not None and system == pooled.system():
        text += " (one is a copy of the other)"
    return failed(name, text, found.cause.remedy)


def check_notify(
    settings: Settings, pooled: Optional[Peer], direct: Peer
) -> Tuple[Union[float, bool, None], Result]:
    """Whether a NOTIFY arrives; the first of the two is what ``check_pooler`` wants."""
    name = "NOTIFY"
    if pooled is None:
        return False, skipped(name, "there is no pooled connection to send it on")
    timeout = Listener.PROOF_SECONDS
    try:
        seconds = _seconds_to(direct.link, pooled.link, notify_function(), timeout)
    except ConnectionLost as exc:
        return False, failed(name, str(exc), exc.cause.remedy)
    if seconds is not None:
        text = f"arrives through {direct.shown} after {seconds * 1000:.1f} ms"
        return seconds, ok(name, text)
    found = errors.undelivered(
        direct.shown,
        (direct.started, direct.database),
        (pooled.started, pooled.database),
        direct.pooler,
        timeout,
    )
    return None, failed(name, found.reason, found.cause.remedy)


# -- TLS --------------------------------------------------------------------------------------

SSL_REQUEST = struct.pack("!ii", 8, 80877103)  # what a client of PostgreSQL's sends first


class Certificate(NamedTuple):
    subject: str  # whom it is for
    expires: datetime.datetime


def check_tls(peer: Peer, timeout: float) -> Result:
    """How the direct connection is protected, and what the server's certificate says."""
    name, info = "direct TLS", peer.info
    if not info.get("host") or info["host"].startswith(("/", "@")):
        return ok(name, "a local socket, which needs none")
    mode = info.get("sslmode") or "prefer"
    try:
        offered, certificate = _certificate(peer.link.info, timeout)
    except (OSError, ConnectionLost, ValueError) as exc:
        text = f"the certificate cannot be read: {errors.one_line(exc)} (sslmode is {mode})"
        return skipped(name, text)
    if not offered:
        return ok(name, f"not encrypted, the server offers none (sslmode is {mode})")
    if not peer.pooler:
        row = peer.link.query(
            "SELECT ssl, version, cipher FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        )
        if row and not row[0][0]:
            return ok(name, f"not encrypted, though the server offers it (sslmode is {mode})")
        mode = f"{row[0][1]}, {mode}" if row else mode
    checked = "checked" if mode.endswith(("verify-ca", "verify-full")) else "not checked"
    text = f"encrypted, certificate {checked} (sslmode {mode})"
    if certificate is None:
        return ok(name, text)
    expires = certificate.expires
    text += f"; it is for {certificate.subject or 'nobody'} and expires on {expires.date()}"
    left = expires - datetime.datetime.now(datetime.timezone.utc)
    if left < datetime.timedelta(days=EXPIRY_DAYS):
        return warning(name, text, "Renew the server's certificate.")
    return ok(name, text)


def _certificate(target: Dict[str, Any], timeout: float) -> Tuple[bool, Optional[Certificate]]:
    """Ask the server for TLS, as libpq does.

    :return: (whether it offers TLS, its certificate)
    """
    host, port = target.get("hostaddr") or target["host"], target.get("port") or 5432
    with socket.create_connection((host, int(port)), timeout) as plain:
        plain.sendall(SSL_REQUEST)
        if plain.recv(1) != b"S":
            return False, None
        # Only looked at: whether it is to be trusted is libpq's to say, by sslmode.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if target.get("sslrootcert", "system") != "system":
            # Python reads a certificate that it has verified, and no other.
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(target["sslrootcert"])
        with context.wrap_socket(plain, server_hostname=target["host"]) as secure:
            return True, _read(secure.getpeercert()) or _decode(secure.getpeercert(True))


def _read(certificate: Optional[Dict[str, Any]]) -> Optional[Certificate]:
    """What a certificate says that Python has verified, None if it has not."""
    if not certificate:
        return None
    names = [value for part in certificate["subject"] for _name, value in part]
    seconds = ssl.cert_time_to_seconds(certificate["notAfter"])
    expires = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return Certificate(", ".join(names), expires)


def _decode(encoded: bytes) -> Optional[Certificate]:
    """What any certificate says, None without the library that Odoo has from series 16 on."""
    try:
        from cryptography import x509
        from cryptography.hazmat.backends import default_backend
    except ImportError:
        return None
    certificate = x509.load_der_x509_certificate(encoded, default_backend())
    expires = getattr(certificate, "not_valid_after_utc", None) or certificate.not_valid_after
    names = [attribute.value for attribute in certificate.subject]
    return Certificate(", ".join(names), expires.replace(tzinfo=datetime.timezone.utc))


# -- how many ---------------------------------------------------------------------------------


def instance(settings: Settings, pooler: bool) -> Tuple[int, int]:
    """How many connections this configuration can open at most.

    :param pooler: whether Odoo's own address is one
    :return: (through Odoo's own address, listeners)
    """
    cron = _number("max_cron_threads", 2)
    pool = _number("db_maxconn", 64)
    workers = _number("workers", 0)
    listeners = 1 + cron
    if workers:  # every cron thread is a process then, and websockets have one
        processes = workers + listeners
        own = (workers + cron) * pool + (_number("db_maxconn_gevent", 0) or pool)
    else:
        processes, own = 1, pool
    # Each listener asks on a connection of its own where Odoo's address leads. Through a pooler
    # that of the bus keeps one more for each database that it looks at.
    own += listeners + (_kept_databases() if pooler else 0)
    own += 1 if settings.metrics_port else 0  # who serves the metrics asks, too
    return own + (processes if settings.keep_notify else 0), listeners


def _kept_databases() -> int:
    names = endpoints.named_databases()
    most = PooledPath.KEPT - 1  # beside the system database's
    return min(len(names), most) if names else most


def _number(name: str, default: int) -> int:
    try:
        return int(config.get(name))
    except (TypeError, ValueError):
        return default


def check_connections(
    settings: Settings, pooled: Optional[Peer], direct: Peer, pooler: Pooler
) -> Result:
    """Whether there is room for what this instance can open, through and past the pooler."""
    name = "connections"
    allowed, reserved, held, of_role, role_limit = direct.link.query(
        "SELECT current_setting('max_connections')::int,"
        " current_setting('superuser_reserved_connections')::int,"
        " (SELECT count(*) FROM pg_stat_activity WHERE datname IS NOT NULL),"
        " (SELECT count(*) FROM pg_stat_activity WHERE usename = current_user),"
        " (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user)"
    )[0]
    own, listeners = instance(settings, pooled is not None and pooled.pooler)
    text = (
        f"the server allows {allowed} and holds {held}; this instance opens at most {listeners}"
        f" directly and {own} through {endpoints.shown(endpoints.pooled())}"
    )
    problems = []
    if listeners > allowed - reserved - held + of_role:
        problems.append("the listeners may not find room")
    if role_limit is not None and 0 <= role_limit < listeners:
        problems.append(f"the role {direct.user} is allowed {role_limit}")
    if pooled is not None and not pooled.pooler:
        if own > allowed - reserved:
            problems.append("without a pooler that is more than the server allows")
    elif pooler.settings is not None:
        pools = pooler.settings
        clients = _of(pools, "max_client_conn")
        size, reserve = _of(pools, "default_pool_size"), _of(pools, "reserve_pool_size")
        text += f", which lets {clients} in and opens {size} + {reserve} for each database"
        if clients and own > clients:
            problems.append("the pooler lets fewer in")
    elif pooler.refusal:
        text += f" ({pooler.refusal})"
    if problems:
        remedy = errors.cause_of("too many connections").remedy
        return warning(name, f"{text}: {', '.join(problems)}", remedy)
    return ok(name, text)


def _of(pools: Dict[str, Any], name: str) -> int:
    value = pools.get(name) or ""
    return int(value) if value.isdigit() else 0
