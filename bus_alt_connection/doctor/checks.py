# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""The checks of Odoo's own address, of the listeners' address, and of the way from one to the other."""

import contextlib
import importlib
import os
import re
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from odoo.tools import config

from .. import cron, endpoints, errors
from ..errors import ConnectionLost
from ..link import Link
from ..listener import Listener
from ..pooled import PooledPath
from ..settings import CHECKED_MODES, Settings, server_wide_modules
from .probe import Probe, probe_each

LISTEN_SECONDS = 1.0  # how long a LISTEN that may be lost is waited for
# The checks of a direct connection, each with the causes for which it fails; for others the address does.
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
# Sessions that keep the NOTIFY queue from moving: in a transaction PostgreSQL delivers nothing.
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

Finding = Tuple[str, ...]  # state, text, remedy


class Doctor:
    """The checks, and what they have found so far. The public ones yield the fields of a ``Result``."""

    def __init__(self, settings: Settings, path: PooledPath) -> None:
        self.settings, self.path, self.database = settings, path, endpoints.system_database()
        self.pooled = None  # type: Any  # the Probe of Odoo's own address, None if it does not answer
        self.failed: List[str] = []  # checks of a direct connection
        self.pgbouncer: Dict[str, str] = {}  # its SHOW CONFIG, if it may be asked

    def _connect(self, name: str, find: Callable[[], endpoints.Endpoint], seconds: float) -> Any:
        """Yield what probes of each address find; return the one that is used, or None.

        :param seconds: that a NOTIFY may take
        """
        info: Dict[str, Any] = {}
        try:
            info = find()
            probes, problems = probe_each(info, self.settings, self.path, self.database, seconds)
        except ConnectionLost as exc:
            probes, problems = [], [exc]
        for probe in probes:
            yield name, "ok", f"{probe.shown} answers in {probe.milliseconds:.0f} ms, PostgreSQL {probe.version}"
        for problem in problems:
            cause, text, remedy = problem.cause, str(problem), problem.cause.remedy
            password = info.get("password") or os.environ.get("PGPASSWORD")
            if info and not password and (not info.get("host") or cause.name == "credentials"):
                remedy = ENTRYPOINT
            elif name == "pooled address" and "pgbouncer.ini" not in remedy:
                remedy = ODOOS_OWN
            if not probes:
                failing = next((check for check, causes in DIRECT.items() if cause.name in causes), "")
                if failing and name == "direct address":
                    yield name, "ok", f"{problem.endpoint} answers"
                    self.failed.append(failing)
                yield failing if name == "direct address" and failing else name, "failed", text, remedy
            elif cause.name == "standby" or text.startswith("localhost ("):
                yield name, "ok", f"{text}. Passed over"
            else:
                yield name, "warning", f"{text}. Another host is used", remedy
        return probes[0] if probes else None

    def check_pooled(self) -> Iterator[Finding]:
        """Check Odoo's own address."""
        self.pooled = yield from self._connect("pooled address", endpoints.pooled, LISTEN_SECONDS)
        checks = {"pooled mode": self._mode, "pooler": self._pooler, "NOTIFY queue": self._queue}
        if "queue_job" in server_wide_modules():
            checks["queue_job"] = self._runner
        for name, check in checks.items():
            try:
                needed = "there is no pooled connection"
                yield (name, *(check() if self.pooled or name == "queue_job" else ("skipped", needed)))
            except ConnectionLost as exc:
                # An old server lacks a function.
                yield name, "skipped" if exc.refused else "failed", str(exc), exc.cause.remedy

    def _mode(self) -> Finding:
        """Check whether it is a pooler, and whether a LISTEN through it lasts."""
        pooled = self.pooled
        if pooled.arrived is not None and not pooled.pooler:
            return "ok", "no pooler, but PostgreSQL itself"
        text = "a pooler in session mode: a LISTEN through it lasts"
        if pooled.unsent is not None:
            text = f"a LISTEN or a NOTIFY is refused ({pooled.unsent.reason})"
        elif pooled.arrived is None:
            text = "a pooler in transaction mode: a LISTEN through it is lost"
            pooled.pooler = True  # even if it reports the process id of a backend
        return "ok", f"{text}; PostgreSQL says that it is at {pooled.host} port {pooled.port}"

    def _pooler(self) -> Finding:
        """Check which pooler it is, and which settings of PgBouncer do harm."""
        name, found, remedies = self._identify(), [], []
        for setting, least, most, effect, line in PGBOUNCER:
            value = number(self.pgbouncer.get(setting))
            if value is not None and not least <= value <= most:
                found.append(f"{setting} is {value:g}, which {effect}")
                remedies.append(f"Set {line} in pgbouncer.ini.")
        ignored = self.pgbouncer.get("ignore_startup_parameters") or "options"
        version = tuple(int(part) for part in re.findall(r"\d+", name)[:3])
        if "options" not in ignored and AFFECTED[0] <= version < AFFECTED[1]:
            found.append(f"ignore_startup_parameters is {ignored}, without options: {CVE}")
            remedies.append("Install PgBouncer 1.26.1 or later, or take ignore_startup_parameters out.")
        if found:
            return "warning", f"{name}: {'; '.join(found)}", " ".join(remedies)
        return "ok", name + (": none of its settings does harm" if self.pgbouncer else "")

    def _identify(self) -> str:
        """Recognise a pooler by what it alone answers."""
        pooled, timeout = self.pooled, self.settings.connect_timeout_seconds
        # Some report the process id of the backend, and keep a LISTEN while nobody else wants it.
        if not pooled.pooler and str(pooled.port) == str(pooled.info.get("port") or os.environ.get("PGPORT") or 5432):
            return "none is to be seen"
        try:
            with contextlib.closing(Link.open(dict(pooled.info, dbname="pgbouncer"), timeout)) as console:
                self.pgbouncer = {row[0]: row[1] for row in console.query("SHOW CONFIG")}
                return console.query("SHOW VERSION")[0][0]
        except ConnectionLost as exc:
            if "not allowed" in exc.reason:
                user = pooled.info.get("user")
                return f"PgBouncer: its console may not be asked as {user} (stats_users in pgbouncer.ini allows it)"
            if "odyssey:" in exc.reason:
                return "Odyssey"
        try:
            with contextlib.closing(Link.open(pooled.info, timeout)) as link:
                version = link.query("SHOW POOL_VERSION")[0][0]
                pooled.pooler = True
                return f"pgpool-II {version.split()[0]}"
        except ConnectionLost:
            return "a pooler or a proxy that the doctor does not know"

    def _queue(self) -> Finding:
        """Check whether NOTIFYs have room, and name the sessions that keep the queue from moving."""
        usage = self.path.query(self.database, "SELECT pg_notification_queue_usage()")[0][0]
        text = f"{usage * 100:.0f} % full"
        if usage < 0.5:  # from there on PostgreSQL itself warns in its log
            return "ok", text
        holders = self.path.query(self.database, HOLDERS)
        remedy = "End the first of them that LISTENs, or all: " + " ".join(end for _holder, end in holders)
        if not holders:
            text += "; when it is full no transaction with a NOTIFY can commit"
            remedy = "Look as a superuser for sessions that wait for ClientWrite or are idle in transaction."
        return "failed", text + "".join(holder for holder, _end in holders), remedy

    def _runner(self) -> Finding:
        """Check whether the runner of queue_job has a connection on which a LISTEN lasts."""
        try:
            from .. import queue_job

            module = importlib.import_module("odoo.addons.queue_job.jobrunner.runner")
            replaced = [replacement for _owner, _name, replacement in queue_job.patches(self.settings)]
        except Exception as exc:  # whatever another addon raises
            return "skipped", f"its runner cannot be imported: {errors.one_line(exc)}"
        named = endpoints.named_databases()
        database = named[0] if named else self.path.query(self.database, DATABASES)[0][0]
        info = (replaced or [module._connection_info_for])[0](database)
        info["dbname"] = info.pop("database", database)
        info.pop("connection_factory", None)
        probes, problems = probe_each(info, self.settings, self.path, database, LISTEN_SECONDS)
        if not probes:
            return "failed", f"its runner cannot connect to {problems[-1]}", problems[-1].cause.remedy
        probe = probes[0]
        mode = f"no pooler: backend pid {probe.pid}"
        if probe.pooler:
            mode = f"a pooler in {'transaction' if probe.arrived is None else 'session'} mode"
        text = f"its runner connects to {probe.shown}, {mode}"
        if not probe.pooler or probe.arrived is not None:
            return "ok", text
        remedy = f"Set {errors.ADDRESS} to PostgreSQL itself, and no jobrunner_db_* or imdispatcher_queue_job."
        return "failed", f"{text}: its LISTEN is lost, and jobs wait", remedy

    def check_direct(self) -> Iterator[Finding]:
        """Check the listeners' address, and the way from Odoo's own to it."""
        found = self._connect("direct address", lambda: endpoints.direct(self.settings), Listener.PROOF_SECONDS)
        direct = yield from found
        if direct is None:
            skipped = [name for name in DIRECT if name not in self.failed]
            yield from ((name, "skipped", "there is no direct connection") for name in skipped)
            return
        yield "direct credentials", "ok", f"{direct.user} may log in"
        yield "direct TLS", "ok", self._protection(direct)
        reached, unsent = self.pooled or direct, direct.unsent
        lost = errors.undelivered(direct.shown, direct.identity, reached.identity, direct.pooler)
        undelivered: Finding = ("failed", lost.reason, lost.cause.remedy)
        server: Finding = ("ok", f'the primary and the database "{direct.identity[1]}" that NOTIFYs reach')
        if direct.identity != reached.identity:
            server = undelivered
        pooler = notify = undelivered
        if direct.arrived is not None:
            pooler = "ok", "a pooler in session mode, where a LISTEN lasts"
            notify = "ok", f"arrives through {direct.shown} after {direct.arrived * 1000:.1f} ms"
        elif self.pooled is None:
            server = pooler = notify = "skipped", "there is no pooled connection to send a NOTIFY on"
        elif unsent is not None:
            pooler = "skipped", "a NOTIFY cannot be sent"
            notify = "failed", str(unsent), (errors.REFUSED if unsent.refused else unsent.cause).remedy
        if not direct.pooler:
            pooler = "ok", f"no pooler: backend pid {direct.pid}"
        yield ("direct server", *server)
        yield ("direct pooler", *pooler)
        yield ("NOTIFY", *notify)
        yield ("connections", *self._room(direct))

    def _protection(self, direct: Probe) -> str:
        info, mode = direct.info, direct.info.get("sslmode") or "prefer"
        if str(info.get("host") or "/").startswith(("/", "@")):
            return "a local socket, which needs none"
        # With a root certificate libpq checks the server's in mode require, too.
        checked = mode in CHECKED_MODES and (mode != "require" or "sslrootcert" in info)
        text = f"{direct.tls}, certificate {'' if checked else 'not '}checked" if direct.tls else "not encrypted"
        return f"{'unknown behind a pooler' if direct.pooler else text} (sslmode is {mode})"

    def _room(self, direct: Probe) -> Finding:
        """Check whether there is room for what this instance opens at most, through and past the pooler."""
        options = ("workers", "max_cron_threads", "db_maxconn")
        workers, threads, pool = (int(number(config.get(option)) or 0) for option in options)
        listeners = 1 + cron.expected_listeners()
        # With workers each cron thread is a process, and websockets have one. Each has a connection to NOTIFY on,
        # each listener one to ask where NOTIFYs go, the recovery of the bus those that it keeps.
        own = (workers + threads + 1 if workers else 1) * (pool + 1) + listeners + PooledPath.KEPT
        clients, room = number(self.pgbouncer.get("max_client_conn")), direct.allowed - direct.reserved
        text = f"the server allows {direct.allowed} and holds {direct.held}; this instance opens at most {listeners}"
        text += f" directly and {own} through {endpoints.shown(endpoints.pooled())}"
        text += "" if clients is None else f", which lets {clients:g} in"
        problems = (
            (listeners > room - direct.held + direct.held_by_role, "the listeners may not find room"),
            (0 <= direct.role_limit < listeners, f"the role is allowed {direct.role_limit}"),
            (self.pooled and not self.pooled.pooler and own > room, "without a pooler that is too many"),
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
