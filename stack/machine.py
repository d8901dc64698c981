"""What this machine runs the stack with: PostgreSQL, PgBouncer, Odoo, and a Python environment.

Contract: `Machine.find(groups)` returns paths that work, or raises StackError with one line that says what to do.
Nothing is installed system-wide. What this machine lacks is downloaded once, checked, and unpacked into a cache folder:
programs and Odoo by apt (which verifies signatures and hashes), Python packages by pip (pinned, hashes from the index).

    cache      folders that are complete or not there      programs  PostgreSQL, PgBouncer, HAProxy, Patroni, Prometheus
    apt        Debian's packages                           python    pip and what it installs
    source     which Odoo runs                             fetch     all that a command needs, at the same time
    releases   poolers and servers of other releases of Debian

Environment:
  BUS_ALT_CACHE              the cache folder
  BUS_ALT_PROGRAMS=download  do not use the PostgreSQL, PgBouncer, HAProxy, Chromium and pip that are on this machine
  ODOO_HOME, ODOO_PYTHON     an Odoo of one's own (a source tree), and its interpreter
"""
import contextlib
import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from .base import REPO, StackError, Unavailable, run, say
from .download.cache import Cache, cache_folder
from .download.programs import programs
from .download.python import environment
from .download.source import PACKAGES, OdooSource, find_odoo

__all__ = ["PACKAGES", "REPO", "Machine", "StackError", "Unavailable", "run", "say"]


@dataclass
class Machine:
    """What this machine runs the stack with."""
    python: Path            # has the requirement groups that were asked for
    pg_bin: Path
    pgbouncer: Path
    env: dict               # what PostgreSQL's and PgBouncer's programs need beyond the usual environment
    run_as: tuple           # (user id, group id) for those that refuse to run as root, or None
    odoo: OdooSource
    cache: Cache

    @classmethod
    def find(cls, groups=("odoo",), series=None):
        """`series`: a number of PACKAGES; ODOO_HOME goes before it."""
        cache = Cache(cache_folder())
        python = environment(cache, groups)
        pg_bin, pgbouncer, env = programs(cache)
        return cls(python, pg_bin, pgbouncer, env, unprivileged(), find_odoo(cache, python, series), cache)


def unprivileged():
    """Who runs PostgreSQL and PgBouncer, which refuse root: None means whoever we are."""
    if os.geteuid():
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return user.pw_uid, user.pw_gid
    raise StackError("neither a user postgres nor a user nobody here, and PostgreSQL refuses root: run as another user")
