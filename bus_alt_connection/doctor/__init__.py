# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""Check the whole way of a notification, from the settings to its arrival.

Contract: each check has one result or more, also a check that could not be made. No check raises, waits longer than
the settings' timeouts, or changes anything: what is sent is a LISTEN and a NOTIFY on a channel with a random name.
Problems are reported in the words of the log (``errors``). Nothing that may hold a password is shown.
"""

import ast
import os
import re
from typing import Iterator, List, Tuple

from odoo.tools import config

import odoo.addons

from ..pooled import PooledPath
from ..settings import CONNECTION, GONE, OTHERS, Settings, hidden, server_wide_modules
from . import checks
from .checks import Result

ADDON = "bus_alt_connection"
FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


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
    path = PooledPath(settings.connect_timeout_seconds)
    try:
        for result in _examine(checks.Doctor(settings, path)):
            yield result._replace(text=_hide(result.text), remedy=result.remedy and _hide(result.remedy))
    finally:
        path.close()


def _examine(doctor: checks.Doctor) -> Iterator[Result]:
    yield from check_settings(doctor.settings)
    yield from check_loaded()
    yield from doctor.check_pooled()
    if "queue_job" in server_wide_modules():
        yield doctor.check("queue_job", doctor.runner)
    yield from doctor.check_direct()


def _hide(text: str) -> str:
    return re.sub(r"\S+", lambda word: "(not shown)" if hidden(word.group()) else word.group(), text)


def check_settings(settings: Settings) -> Iterator[Result]:
    """Report each setting that is set, and each that is wrong or unknown."""
    name = "settings"
    for setting in [*CONNECTION, *OTHERS]:
        source, value = settings.sources.get(setting), settings.values.get(setting)
        wrong = any(problem.startswith(f"{source} is ") for problem in settings.problems)
        if source and value is not None and not wrong:
            value = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            shown = "set, not shown" if setting == "db_password" or hidden(value) else value
            yield Result(name, "ok", f"imdispatcher_{setting} is {shown}, from {source}")
    for problem in settings.problems:
        yield Result(name, "warning", problem, "Correct it, or take it out.")
    known = {*("imdispatcher_" + setting for setting in [*CONNECTION, *OTHERS]), *GONE}
    found = [(option, option, "Odoo's configuration") for option in sorted(config.options)]
    found += [(re.sub("^ODOO_", "", variable).lower(), variable, "the environment") for variable in sorted(os.environ)]
    for option, written, where in found:
        if option.startswith("imdispatcher_") and option not in known:
            yield Result(name, "warning", f"{written} in {where} is no setting", "Is it misspelt?")
    if not settings.configured:
        text = "neither imdispatcher_db_host nor imdispatcher_db_port is set: the listeners use Odoo's own address"
        yield Result(name, "ok", text)


def check_loaded() -> Iterator[Result]:
    """Check whether the configuration of this command loads the addon, and name this copy of it."""
    name, modules = "server-wide", server_wide_modules()
    with open(os.path.join(FOLDER, "__manifest__.py")) as manifest:
        version = ast.literal_eval(manifest.read())["version"]
    if ADDON in modules:
        yield Result(name, "ok", f"server_wide_modules loads {ADDON} {version} from {FOLDER}")
    else:
        text = f"server_wide_modules is {','.join(modules)}: Odoo does not load {ADDON} {version} in {FOLDER}"
        yield Result(name, "failed", text, f"Set server_wide_modules = {','.join([*modules, ADDON])}")
    found = [os.path.join(folder, ADDON) for folder in odoo.addons.__path__]
    copies = {os.path.realpath(copy) for copy in found if os.path.isfile(os.path.join(copy, "__manifest__.py"))}
    if len(copies) > 1:
        text = f"addons_path has {len(copies)} copies of the addon: {', '.join(sorted(copies))}"
        yield Result(name, "warning", text, "Remove all but one.")
