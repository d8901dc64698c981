# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""The checks of Odoo's own address, of the listeners' address, and of the way from one to the other."""

import contextlib
import importlib
import os
import re
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

import odoo.service.server
from odoo.tools import config

from .. import cron, endpoints, errors
from ..errors import ConnectionLost
from ..link import Link
from ..listener import Listener
from ..pooled import PooledPath
from ..settings import CHECKED_MODES, Settings
from .probe import Probe, probe_each

# The checks that need an address, in order, and the causes for which one of them fails and not the address.
POOLED = ("pooled mode", "pooler", "NOTIFY queue")
DIRECT = {
    "direct credentials": ("credentials", "pg_hba", "role"),
    "direct TLS": ("tls",),
    "direct server": ("database", "standby"),
    "direct pooler": (),
    "NOTIFY": (),
    "connections": ("full",),
}
ODOOS_OWN = "This is Odoo's own connection: check db_host, db_port, db_user and db_password."
ENTRYPOINT = (
    "No password is configured. Odoo's container image passes db_host and db_password as arguments: run the command"
    " through its entrypoint, docker compose run --rm odoo odoo bus_doctor."
)
# Settings of PgBouncer: the least and the most that does no harm, what others do, the line to set.
PGBOUNCER = (
    ("server_login_retry", 0, 2, "refuses clients for so long after PostgreSQL was away", "server_login_retry = 1"),
    ("query_wait_timeout", 10, 1e9, "ends clients at each peak, or with 0 never", "query_wait_timeout = 120"),
)
# A client that has not logged in can make these versions spin, the second excluded.
CVE, AFFECTED = "CVE-2026-107349", ((1, 20), (1, 26, 1))
QUEUE_USAGE = 0.5  # from here on PostgreSQL itself warns in its log
# Sessions that keep the NOTIFY queue from moving, and the statement that ends each. In a transaction PostgreSQL
# delivers nothing.
HOLDERS = """
SELECT format('; pid %s (%s, as %s) %s for %s s%s', pid, coalesce(nullif(application_name, ''), 'no name'), usename,
        CASE WHEN wait_event = 'ClientWrite' THEN 'does not read what it is sent' ELSE 'is idle in transaction' END,
        round(extract(epoch FROM clock_timestamp() - state_change)),
        ' (age of its oldest snapshot: ' || age(backend_xmin) || ' transactions)'),
    format('SELECT pg_terminate_backend(%s);', pid)
FROM pg_stat_activity
WHERE pid <> pg_backend_pid() AND (wait_event = 'ClientWrite' OR state LIKE 'idle in transaction%')
ORDER BY age(backend_xmin) DESC NULLS LAST, state_change LIMIT 5
"""
# Where db_name names none, the runner of queue_job looks at all of Odoo's role.
DATABASES = "SELECT min(datname) FROM pg_database WHERE pg_get_userbyid(datdba) = current_user AND datallowconn"

Finding = Tuple[str, ...]  # a state, a text, and a remedy if there is one


class Result(NamedTuple):
    name: str  # of the check
    state: str  # "ok", "warning", "failed", or "skipped" if the check could not be made
    text: str
    remedy: Optional[str] = None


class Doctor:
    """The checks, and what they have found so far.

    :param path: sends the NOTIFYs
    """

    def __init__(self, settings: Settings, path: PooledPath) -> None:
        self.settings, self.path = settings, path
        self.pooled = None  # type: Any  # the Probe of Odoo's own address that is used
        self.pgbouncer: Dict[str, str] = {}  # its SHOW CONFIG, if it may be asked

    def check(self, name: str, check: Callable[[], Finding]) -> Result:
        """Return what a check finds, also if it loses its connection."""
        try:
            return Result(name, *check())
        except ConnectionLost as exc:
            if exc.refused:  # an old server lacks a function
                return Result(name, "skipped", f"the server does not say: {exc.reason}")
            return Result(name, "failed", str(exc), exc.cause.remedy)

    def _connect(self, name: str, find: Callable[[], endpoints.Endpoint], seconds: float) -> Tuple[Any, List[Result]]:
        """Probe each address of an endpoint.

        :param seconds: that a NOTIFY may take
        :return: the Probe that is used, None if there is none
        """
        info, results = {}, []  # type: Dict[str, Any], List[Result]
        try:
            info = find()
            probes = probe_each(info, self.settings, self.path, endpoints.system_database(), seconds)
        except ConnectionLost as exc:
            probes = [Probe(info, exc)]
        used = None if probes[0].lost else probes[0]
        for probe in probes:
            if probe.lost is None:
                text = f"{probe.shown} answers in {probe.milliseconds:.0f} ms, PostgreSQL {probe.version}"
                results.append(Result(name, "ok", text))
                continue
            cause, text, failing = probe.lost.cause, str(probe.lost), name
            remedy = cause.remedy
            if name == "pooled address":
                remedy = remedy if "pgbouncer.ini" in remedy else ODOOS_OWN
            elif used is None:
                failing = next((check for check, causes in DIRECT.items() if cause.name in causes), name)
            if info and not info.get("password") and (not info.get("host") or cause.name == "credentials"):
                remedy = ENTRYPOINT
            if cause.name == "standby" and used is not None or text.startswith("localhost ("):
                results.append(Result(name, "ok", f"{text}. Passed over"))
            elif used is not None:
                results.append(Result(name, "warning", f"{text}. Another host is used", remedy))
            else:
                results.append(Result(failing, "failed", text, remedy))
                if failing != name:
                    results.append(Result(name, "ok", f"{probe.shown} answers"))
        return used, results

    # -- Odoo's own address ----------------------------------------------------------------------------------------

    def check_pooled(self) -> Iterator[Result]:
        """Check Odoo's own address."""
        self.pooled, results = self._connect("pooled address", endpoints.pooled, 1.0)
        yield from results
        if self.pooled is None:
            yield from (Result(name, "skipped", "there is no pooled connection") for name in POOLED)
        else:
            yield Result("pooled mode", "ok", self._mode())
            yield Result("pooler", *self._pooler())
            yield self.check("NOTIFY queue", self._queue)

    def _mode(self) -> str:
        """Return whether it is a pooler, and whether a LISTEN through it lasts."""
        pooled = self.pooled
        if pooled.arrived is not None and not pooled.pooler:
            return "no pooler, but PostgreSQL itself"
        text = "a pooler in session mode: a LISTEN through it lasts"
        if pooled.unsent is not None:
            text = f"a NOTIFY or a LISTEN is refused ({pooled.unsent.reason})"
        elif pooled.arrived is None:
            text = "a pooler in transaction mode: a LISTEN through it is lost"
            pooled.pooler = True  # even if it reports the process id of a backend
        return f"{text}; PostgreSQL says that it is at {pooled.host} port {pooled.port}"

    def _pooler(self) -> Finding:
        """Check which pooler it is, and which settings of PgBouncer do harm."""
        name, found, remedies = self._identify(), [], []
        for setting, least, most, effect, line in PGBOUNCER:
            value = number(self.pgbouncer.get(setting))
            if value is not None and not least <= value <= most:
                found.append(f"{setting} is {value:g}, which {effect}")
                remedies.append(f"Set {line} in pgbouncer.ini.")
        ignored = self.pgbouncer.get("ignore_startup_parameters") or ""
        version = tuple(int(part) for part in re.findall(r"\d+", name)[:3])
        if ignored and "options" not in ignored and AFFECTED[0] <= version < AFFECTED[1]:
            found.append(f"ignore_startup_parameters is {ignored}, without options: {CVE}")
            remedies.append("Install PgBouncer 1.26.1 or later, or take ignore_startup_parameters out.")
        if found:
            return "warning", f"{name}: {'; '.join(found)}", " ".join(remedies)
        return "ok", name + (": none of its settings does harm" if self.pgbouncer else "")

    def _identify(self) -> str:
        """Recognise a pooler by what it alone answers."""
        pooled, unknown = self.pooled, "a pooler that the doctor does not know"
        if pooled.pooler:
            version, refusal = self._ask("SHOW VERSION", "pgbouncer")
            if version:
                self.pgbouncer = {row[0]: row[1] for row in self._ask("SHOW CONFIG", "pgbouncer")[0]}
                return version[0][0]
            if "not allowed" in refusal:
                user = pooled.info.get("user")
                return f"PgBouncer: its console may not be asked as {user} (stats_users in pgbouncer.ini allows it)"
            if "odyssey:" in refusal:
                return "Odyssey"
        version, _refusal = self._ask("SHOW POOL_VERSION")
        if version:
            pooled.pooler = True
            return f"pgpool-II {version[0][0].split()[0]}"
        # Some report the process id of the backend, and keep a LISTEN while nobody else wants it.
        if pooled.pooler or str(pooled.port) == str(pooled.info.get("port") or os.environ.get("PGPORT") or 5432):
            return unknown if pooled.pooler else "none is to be seen"
        return f"{unknown}, or a proxy (PostgreSQL has another port)"

    def _ask(self, statement: str, database: Optional[str] = None) -> Tuple[List[tuple], str]:
        """Return (the answer, why there is none) of Odoo's own address."""
        try:
            target = endpoints.resolve(endpoints.pooled(database))[0]
            with contextlib.closing(Link.open(target, self.settings.connect_timeout_seconds)) as link:
                return link.query(statement), ""
        except ConnectionLost as exc:
            return [], exc.reason

    def _queue(self) -> Finding:
        """Check whether NOTIFYs have room, and name the sessions that keep the queue from moving."""
        database = endpoints.system_database()
        usage = self.path.query(database, "SELECT pg_notification_queue_usage()")[0][0]
        text = f"{usage * 100:.0f} % full"
        if usage < QUEUE_USAGE:
            return "ok", text
        holders = self.path.query(database, HOLDERS)
        if not holders:
            remedy = "Look as a superuser for sessions that wait for ClientWrite or are idle in transaction."
            return "failed", f"{text}; when it is full no transaction with a NOTIFY can commit", remedy
        remedy = "End the first of them that LISTENs, or all: " + " ".join(end for _holder, end in holders)
        return "failed", text + "".join(holder for holder, _end in holders), remedy

    def runner(self) -> Finding:
        """Check whether the runner of queue_job has a connection on which a LISTEN lasts."""
        try:
            from .. import queue_job

            module = importlib.import_module("odoo.addons.queue_job.jobrunner.runner")
            replaced = [replacement for _owner, _name, replacement in queue_job.patches(self.settings)]
        except Exception as exc:  # whatever another addon raises
            return "skipped", f"its runner cannot be imported: {errors.one_line(exc)}"
        named, system = endpoints.named_databases(), endpoints.system_database()
        database = named[0] if named else self.path.query(system, DATABASES)[0][0]
        info = (replaced or [module._connection_info_for])[0](database)
        info["dbname"] = info.pop("database", database)
        info.pop("connection_factory", None)
        probe = probe_each(info, self.settings, self.path, database, 1.0)[0]
        if probe.lost is not None:
            return "failed", f"its runner cannot connect to {probe.lost}", probe.lost.cause.remedy
        text = f"its runner connects to {probe.shown}"
        if not probe.pooler:
            return "ok", f"{text}, no pooler: backend pid {probe.pid}"
        if probe.arrived is not None:
            return "ok", f"{text}, a pooler in session mode"
        remedy = f"Set {errors.ADDRESS} to PostgreSQL itself, and no jobrunner_db_* or imdispatcher_queue_job."
        return "failed", f"{text}, a pooler in transaction mode: its LISTEN is lost, and jobs wait", remedy

    # -- the direct address ----------------------------------------------------------------------------------------

    def check_direct(self) -> Iterator[Result]:
        """Check the listeners' address, and the way from Odoo's own to it."""
        address, seconds = lambda: endpoints.direct(self.settings), Listener.PROOF_SECONDS
        direct, results = self._connect("direct address", address, seconds)
        yield from results
        if direct is None:
            found = [result.name for result in results]
            yield from (Result(name, "skipped", "there is no direct connection") for name in DIRECT if name not in found)
            return
        yield Result("direct credentials", "ok", f"{direct.user} may log in")
        yield Result("direct TLS", "ok", self._protection(direct))
        yield from self._check_way(direct)
        yield Result("connections", *self._room(direct))

    def _protection(self, direct: Probe) -> str:
        info, mode = direct.info, direct.info.get("sslmode") or "prefer"
        if str(info.get("host") or "/").startswith(("/", "@")):
            return "a local socket, which needs none"
        if direct.pooler:
            return f"sslmode is {mode}; PostgreSQL does not see what is in front of a pooler"
        if not direct.tls:
            return f"not encrypted (sslmode is {mode})"
        # With a root certificate libpq checks the server's in mode require, too.
        checked = mode in CHECKED_MODES and (mode != "require" or "sslrootcert" in info)
        return f"{direct.tls}, certificate {'' if checked else 'not '}checked (sslmode is {mode})"

    def _check_way(self, direct: Probe) -> Iterator[Result]:
        reached, unsent = self.pooled or direct, direct.unsent
        found = errors.undelivered(direct.shown, direct.identity, reached.identity, direct.pooler)
        undelivered = "failed", found.reason, found.cause.remedy
        server = "ok", f'the primary and the database "{direct.identity[1]}" that NOTIFYs reach'
        if self.pooled is None:
            server = "skipped", "a primary; which one NOTIFYs reach is not known"
        yield Result("direct server", *(server if direct.identity == reached.identity else undelivered))
        if direct.arrived is not None:
            pooler = "a pooler in session mode, where a LISTEN lasts"
            notify = "ok", f"arrives through {direct.shown} after {direct.arrived * 1000:.1f} ms"
        elif self.pooled is None:
            pooler = notify = "skipped", "there is no pooled connection to send it on"
        elif unsent is not None:
            notify = "failed", str(unsent), (errors.REFUSED if unsent.refused else unsent.cause).remedy
        else:
            pooler = notify = undelivered
        if not direct.pooler:
            pooler = "ok", f"no pooler: backend pid {direct.pid}"
        yield Result("direct pooler", *pooler)
        yield Result("NOTIFY", *notify)

    def _room(self, direct: Probe) -> Tuple[str, ...]:
        """Check whether there is room for what this instance opens at most, through and past the pooler."""
        workers, threads, pool = (int(number(config.get(o)) or 0) for o in ("workers", "max_cron_threads", "db_maxconn"))
        listeners = 1 + cron.expected_listeners(odoo.service.server)
        # With workers each cron thread is a process, and websockets have one. A process has one connection to NOTIFY
        # on, a listener one to ask where NOTIFYs go, the recovery of the bus those that it keeps.
        own = (workers + threads + 1 if workers else 1) * (pool + 1) + listeners + PooledPath.KEPT
        clients, room = number(self.pgbouncer.get("max_client_conn")), direct.allowed - direct.reserved
        text = f"the server allows {direct.allowed} and holds {direct.held}; this instance opens at most {listeners}"
        text += f" directly and {own} through {endpoints.shown(endpoints.pooled())}"
        text += "" if clients is None else f", which lets {clients:g} in"
        problems = (
            (listeners > room - direct.held + direct.held_by_role, "the listeners may not find room"),
            (0 <= direct.role_limit < listeners, f"the role is allowed {direct.role_limit}"),
            (self.pooled and not self.pooled.pooler and own > room, "without a pooler the server allows fewer"),
            (clients is not None and own > clients, "the pooler lets fewer in"),
        )
        found = ", ".join(problem for wrong, problem in problems if wrong)
        remedy = errors.cause_of("too many connections").remedy
        return ("warning", f"{text}: {found}", remedy) if found else ("ok", text)


def number(value: Any) -> Optional[float]:
    """Return a setting as a number, None if it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
