# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""Check the whole way of a notification, from the settings to its arrival.

Contract: each check has one result or more, also a check that could not be made. No check raises, waits longer than
the settings' timeouts, or changes anything: what is sent is a LISTEN and a NOTIFY on a channel with a random name.
Problems are reported in the words of the log (``errors``). Nothing that may hold a password is shown.
"""

import ast
import contextlib
import itertools
import os
import re
from typing import Iterator, List, NamedTuple, Optional, Tuple

from odoo.tools import config

import odoo.addons

from ..pooled import PooledPath
from ..settings import CONNECTION, GONE, OTHERS, Settings, hidden, server_wide_modules
from .checks import Doctor, Finding

ADDON = "bus_alt_connection"
FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


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
        for finding in itertools.chain(
            check_settings(settings), check_loaded(), doctor.check_pooled(), doctor.check_direct()
        ):
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
        text = "neither imdispatcher_db_host nor imdispatcher_db_port is set: the listeners use Odoo's own address"
        yield "settings", "ok", text


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
