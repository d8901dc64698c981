# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""The runner of OCA's queue_job, where it is loaded server-wide: it connects as the listeners do.

It LISTENs on one connection for each database, on which it has a session's advisory lock and
cursors WITH HOLD as well: a pooler in transaction mode loses all three. Contract: what
``runner._connection_info_for`` returns leads to the listeners' address, unless the runner has a
``jobrunner_db_*`` setting of its own; role and database stay Odoo's. In any case both ends give up
a silent path within seconds, the server first, so that its lock is free when the runner, which
recovers by itself, is back. Without queue_job this module is not imported.
"""

import functools
import importlib
import logging
import os
from typing import Any, Dict, List, Tuple

from psycopg2 import extensions

from .. import endpoints
from ..session import server_settings, tcp_parameters
from ..settings import Settings

_logger = logging.getLogger(__name__)

OWN = ("host", "port", "user", "password")  # of the runner's settings, jobrunner_db_*


def patches() -> List[Tuple[Any, str, Any]]:
    """Return what makes the runner's connections as above.

    :raises Exception: whatever the runner has against being imported
    """
    settings = Settings.from_odoo()
    # Odoo imports it as well, before or after this addon: the order does not matter to either.
    runner = importlib.import_module("odoo.addons.queue_job.jobrunner.runner")
    if not settings.queue_job:
        return []
    upstream = runner._connection_info_for
    redirected = settings.configured and not settings.fatal and not _has_own(runner)

    @functools.wraps(upstream)
    def _connection_info_for(db_name: str) -> Dict[str, Any]:
        info = upstream(db_name)
        if redirected:
            info.update(_direct(settings, info))
        return dict(
            info,
            connect_timeout=max(2, int(settings.connect_timeout_seconds)),
            connection_factory=functools.partial(Connection, settings.heartbeat_seconds / 4),
            **tcp_parameters(settings.heartbeat_seconds),
        )

    _logger.info(
        "The runner of queue_job connects to %s address and gives up a silent path within seconds;"
        " imdispatcher_queue_job = false leaves it alone.",
        "the listeners'" if redirected else "its own",
    )
    return [(runner, "_connection_info_for", _connection_info_for)]


def _has_own(runner: Any) -> bool:
    """Return whether the runner has a setting of its own, read as it does itself."""
    return any(
        os.environ.get(f"ODOO_QUEUE_JOB_JOBRUNNER_DB_{name.upper()}")
        or runner.queue_job_config.get("jobrunner_db_" + name)
        for name in OWN
    )


def _direct(settings: Settings, own: Dict[str, Any]) -> Dict[str, Any]:
    """Return the listeners' endpoint: libpq goes through a list of hosts, too.

    :param own: the runner's own endpoint
    :raises ConnectionLost: as ``endpoints.direct``: the runner tries again
    """
    info = endpoints.direct(settings)
    names = ["host", "port", "sslmode", "sslrootcert"]
    if info.get("user") == own.get("user"):
        names.append("password")  # another role's is of no use: the runner needs Odoo's tables
    found = {name: info[name] for name in names if name in info}
    if "," in str(info.get("host")):
        found["target_session_attrs"] = "read-write"  # the primary
    return found


class Connection(extensions.connection):
    """One of the runner's; the server gives it up when the path is silent.

    :param every: seconds, see ``server_settings``
    """

    def __init__(self, every: float, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        with self, self.cursor() as cr:
            cr.execute("SELECT pg_backend_pid()")
            if cr.fetchone()[0] == self.get_backend_pid():  # a pooler's connections have other users
                cr.execute(server_settings(every))
