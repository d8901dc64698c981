# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""Check the whole way of a notification, from the settings to its arrival.

Contract: each check has one result or more, also a check that could not be made. No check raises, waits longer than
the settings' timeouts, or changes anything: what is sent is a LISTEN and a NOTIFY on a channel with a random name.
Problems are reported in the words of the log (``errors``). Nothing that may hold a password is shown.
"""

import ast
import contextlib
import importlib
import itertools
import os
import re
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

from odoo.tools import config

import odoo.addons

from .. import cron, endpoints, errors
from ..errors import ConnectionLost
from ..link import Link
from ..listener import Listener
from ..pooled import PooledPath
from ..settings import CHECKED_MODES, CONNECTION, GONE, OTHERS, Settings, hidden, server_wide_modules
from .probe import Probe, probe_each

ADDON = "bus_alt_connection"
FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LISTEN_SECONDS = 1.0  # how long a LISTEN that may be lost is waited for
# An address -> the checks that need a connection to it.
CHECKS = {
    "pooled address": ("pooled mode", "pooler", "NOTIFY queue"),
    "direct address": ("direct credentials", "direct TLS", "direct server", "direct pooler", "NOTIFY", "connections"),
}
# The cause of a refusal -> which of these fails; for other causes the address does.
FAILS = {"tls": "direct TLS", "database": "direct server", "standby": "direct server", "full": "connections"}
FAILS.update(dict.fromkeys(("credentials", "pg_hba", "role"), "direct credentials"))
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

Finding = Tuple[str, ...]  # the fields of a Result


class Result(NamedTuple):
    name: str  # of the check
    state: str  # "ok", "warning", "failed", or "skipped" if the check could not be made
    text: str
    remedy: Optional[str] = None


def verdict(results: List[Result]) -> Tuple[int, str]:
    """Return (exit status, one line) for all results."""
    states = [result.state for result in results]
    if "failed" in states:
        return 2, f"BROKEN: {states.count('failed')} check(s) failed, see above."
    if "warning" in states:
        return 1, f"Works, with {states.count('warning')} warning(s), see above."
    return 0, "All is well."


def examine(settings: Settings) -> Iterator[Result]:
    """Make each check, in the order in which a notification goes."""
    with contextlib.closing(PooledPath(settings.connect_timeout_seconds)) as path:
        doctor = Doctor(settings, path)
        parts = check_settings(settings), check_loaded(), doctor.check_pooled(), doctor.check_direct()
        for finding in itertools.chain(*parts):
            words = [re.split(r"(\s+)", text or "") for text in finding]
            yield Result(*("".join("(not shown)" if hidden(word) else word for word in text) for text in words))


def check_settings(settings: Settings) -> Iterator[Finding]:
    """Report each setting that is set, and each that is wrong or unknown."""
    for setting in [*CONNECTION, *OTHERS]:
        source, value = settings.sources.get(setting), settings.values.get(setting)
        value = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        shown = "set, not shown" if setting == "db_password" or hidden(value) else value
        if source and not any(problem.startswith(f"{source} is ") for problem in settings.problems):
            yield "settings", "ok", f"imdispatcher_{setting} is {shown}, from {source}"
    for problem in settings.problems:
        yield "settings", "warning", problem, "Correct it, or take it out."
    known = {*("imdispatcher_" + setting for setting in [*CONNECTION, *OTHERS]), *GONE}
    for where, names in (("Odoo's configuration", config.options), ("the environment", os.environ)):
        for name in sorted(names):
            option = re.sub("^odoo_", "", name.lower())
            if option.startswith("imdispatcher_") and option not in known:
                yield "settings", "warning", f"{name} in {where} is no setting", "Is it misspelt?"
    if not settings.configured:
        yield "settings", "ok", "no imdispatcher_db_host or _port is set: the listeners use Odoo's own address"


def check_loaded() -> Iterator[Finding]:
    """Check whether the configuration of this command loads the addon, and name this copy of it."""
    modules = server_wide_modules()
    with open(os.path.join(FOLDER, "__manifest__.py")) as manifest:
        this = f"{ADDON} {ast.literal_eval(manifest.read())['version']} in {FOLDER}"
    if ADDON in modules:
        yield "server-wide", "ok", f"server_wide_modules loads {this}"
    else:
        text = f"server_wide_modules is {','.join(modules)}: Odoo does not load {this}"
        yield "server-wide", "failed", text, f"Set server_wide_modules = {','.join([*modules, ADDON])}"
    found = [os.path.join(folder, ADDON) for folder in odoo.addons.__path__]
    copies = {os.path.realpath(copy) for copy in found if os.path.isfile(os.path.join(copy, "__manifest__.py"))}
    if len(copies) > 1:
        text = f"addons_path has {len(copies)} copies of the addon: {', '.join(sorted(copies))}"
        yield "server-wide", "warning", text, "Remove all but one."


class Doctor:
    """The checks, and what they have found so far. The public ones yield the fields of a ``Result``."""

    def __init__(self, settings: Settings, path: PooledPath) -> None:
        self.settings, self.path, self.database = settings, path, endpoints.system_database()
        self.pooled = None  # type: Any  # the Probe of Odoo's own address, None if it does not answer
        self.pgbouncer: Dict[str, str] = {}  # its SHOW CONFIG, if it may be asked
        self.limits: Dict[str, int] = {}  # what of it is a number

    def _connect(self, name: str, seconds: float, find: Callable[..., endpoints.Endpoint], *args: Any) -> Any:
        """Yield what probes of each address find; return the one that is used, or None.

        :param seconds: that a NOTIFY may take
        """
        info: Dict[str, Any] = {}
        try:
            info = find(*args)
            probes, problems = probe_each(info, self.settings, self.path, self.database, seconds)
        except ConnectionLost as exc:
            probes, problems = [], [exc]
        for probe in probes:
            yield name, "ok", f"{probe.shown} answers in {probe.milliseconds:.0f} ms, PostgreSQL {probe.version}"
        failed: List[str] = []
        for problem in problems:
            cause, text, remedy = problem.cause, str(problem), problem.cause.remedy
            password = info.get("password") or os.environ.get("PGPASSWORD")
            if info and not password and (not info.get("host") or cause.name == "credentials"):
                remedy = ENTRYPOINT
            elif name == "pooled address" and "pgbouncer.ini" not in remedy:
                remedy = ODOOS_OWN
            if not probes:
                check = FAILS.get(cause.name, name)
                failed.append(check if check in CHECKS[name] else name)
                yield failed[-1], "failed", text, remedy
            elif cause.name == "standby" or text.startswith("localhost ("):
                yield name, "ok", f"{text}. Passed over"
            else:
                yield name, "warning", f"{text}. Another host is used", remedy
        if probes:
            return probes[0]
        skipped = [check for check in (name, *CHECKS[name]) if check not in failed]
        yield from ((check, "skipped", "there is no connection") for check in skipped)

    def check_pooled(self) -> Iterator[Finding]:
        """Check Odoo's own address."""
        self.pooled = yield from self._connect("pooled address", LISTEN_SECONDS, endpoints.pooled)
        if self.pooled is not None:
            yield ("pooled mode", *self._mode())
            yield ("pooler", *self._pooler())
            yield self._guard("NOTIFY queue", self._queue)
        if "queue_job" in server_wide_modules():
            yield self._guard("queue_job", self._runner)

    def _guard(self, name: str, check: Callable[[], Finding]) -> Finding:
        try:
            return (name, *check())
        except ConnectionLost as exc:
            refused = name, "skipped", str(exc)  # an old server lacks the function
            return refused if exc.refused else (name, "failed", str(exc), exc.cause.remedy)

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
        name = self._identify()
        found = [
            (f"{setting} is {self.limits[setting]}, which {effect}", f"Set {line} in pgbouncer.ini.")
            for setting, least, most, effect, line in PGBOUNCER
            if not least <= self.limits.get(setting, least) <= most
        ]
        ignored = self.pgbouncer.get("ignore_startup_parameters") or "options"
        if "options" not in ignored and AFFECTED[0] <= tuple(map(int, re.findall(r"\d+", name)[:3])) < AFFECTED[1]:
            found.append((f"ignore_startup_parameters lacks options: {CVE}", "Install PgBouncer 1.26.1 or later."))
        if found:
            return "warning", f"{name}: {'; '.join(text for text, _ in found)}", " ".join(line for _, line in found)
        return "ok", name + (": none of its settings does harm" if self.pgbouncer else "")

    def _identify(self) -> str:
        """Recognise a pooler by what it alone answers."""
        pooled = self.pooled
        # Some report the process id of the backend, and keep a LISTEN while nobody else wants it.
        if not pooled.pooler and str(pooled.port) == str(pooled.info.get("port") or os.environ.get("PGPORT") or 5432):
            return "none is to be seen"
        try:
            info = dict(pooled.info, dbname="pgbouncer")
            with contextlib.closing(Link.open(info, self.settings.connect_timeout_seconds)) as console:
                self.pgbouncer = {row[0]: str(row[1]) for row in console.query("SHOW CONFIG")}
                self.limits = {name: int(value) for name, value in self.pgbouncer.items() if value.isdecimal()}
                return console.query("SHOW VERSION")[0][0]
        except ConnectionLost as exc:
            if "not allowed" in exc.reason:
                user = pooled.info.get("user")
                return f"PgBouncer: its console may not be asked as {user} (stats_users in pgbouncer.ini allows it)"
            return "Odyssey" if "odyssey:" in exc.reason else "a pooler or a proxy that the doctor does not know"

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
            replaced = [replacement for _owner, _name, replacement in queue_job.patches()]
        except Exception as exc:  # whatever another addon raises
            return "skipped", f"its runner cannot be imported: {errors.one_line(exc)}"
        database = (endpoints.named_databases() or self.path.query(self.database, DATABASES)[0])[0]
        info = (replaced or [module._connection_info_for])[0](database)
        info["dbname"] = info.pop("database", database)
        info.pop("connection_factory", None)
        probes, problems = probe_each(info, self.settings, self.path, database, LISTEN_SECONDS)
        if not probes:
            return "failed", f"its runner cannot connect to {problems[-1]}", problems[-1].cause.remedy
        probe = probes[0]
        text = f"its runner connects to {probe.shown}"
        if not probe.pooler:
            return "ok", f"{text}, no pooler: backend pid {probe.pid}"
        if probe.arrived is not None:
            return "ok", f"{text}, a pooler in session mode"
        remedy = f"Set {errors.ADDRESS} to PostgreSQL itself, and no jobrunner_db_* or imdispatcher_queue_job."
        return "failed", f"{text}, a pooler in transaction mode: its LISTEN is lost, and jobs wait", remedy

    def check_direct(self) -> Iterator[Finding]:
        """Check the listeners' address, and the way from Odoo's own to it."""
        direct = yield from self._connect("direct address", Listener.PROOF_SECONDS, endpoints.direct, self.settings)
        if direct is None:
            return
        yield "direct credentials", "ok", f"{direct.user} may log in"
        yield "direct TLS", "ok", self._protection(direct)
        reached = self.pooled or direct
        lost = errors.undelivered(direct.shown, direct.identity, reached.identity, direct.pooler)
        undelivered: Finding = ("failed", lost.reason, lost.cause.remedy)
        right: Finding = ("ok", f'a primary, and the database "{direct.identity[1]}"')
        yield ("direct server", *(right if direct.identity == reached.identity else undelivered))
        notify = undelivered
        if direct.arrived is not None:
            notify = "ok", f"arrives through {direct.shown} after {direct.arrived * 1000:.1f} ms"
        elif self.pooled is None:
            notify = "skipped", "there is no pooled connection to send it on"
        elif direct.unsent is not None:
            cause = errors.REFUSED if direct.unsent.refused else direct.unsent.cause
            notify = "failed", str(direct.unsent), cause.remedy
        lasts = "a pooler in session mode" if direct.pooler else f"no pooler: backend pid {direct.pid}"
        yield ("direct pooler", *(notify if direct.pooler and direct.arrived is None else ("ok", lasts)))
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
        workers, threads, pool = (int(config.get(name) or 0) for name in ("workers", "max_cron_threads", "db_maxconn"))
        listeners = 1 + cron.expected_listeners()
        # With workers each cron thread is a process, and websockets have one. Each has a connection to NOTIFY on.
        own = (workers + threads + 1 if workers else 1) * (pool + 1) + listeners + PooledPath.KEPT
        text = f"the server allows {direct.allowed}; this instance opens at most {listeners} directly and {own} through"
        text += " " + endpoints.shown(endpoints.pooled())
        most = self.limits.get("max_client_conn")
        text += f", which lets {most} in" if most else ""
        if self.pooled is not None and not self.pooled.pooler:
            most = direct.allowed
        if not most or own <= most:
            return "ok", text
        return "warning", f"{text}: more than {most}", errors.cause_of("too many connections").remedy
