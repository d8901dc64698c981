# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""``odoo bus_doctor``: find what is wrong with the bus, and change nothing.

From 19 on Odoo loads this file alone: nothing of the addon is imported before the command runs.
"""

import argparse
import json
import os
import sys
from typing import Any, List

from odoo.cli import Command
from odoo.modules import initialize_sys_path
from odoo.tools import config

COLOURS = {"ok": "32", "warning": "33", "failed": "31", "skipped": "2"}


# Before 15 the class's name is the command's.
class bus_doctor(Command):
    """Check the live bus, from its settings to a NOTIFY that arrives."""

    name = "bus_doctor"

    def run(self, args: List[str]) -> None:
        parser = argparse.ArgumentParser(
            prog=f"{os.path.basename(sys.argv[0])} bus_doctor",
            description=self.__doc__,
            epilog="All other options are those of Odoo's server: -c, --db_host, --load, ... Exit status: 0 all is"
            " well; 1 notifications arrive, but read the warnings; 2 something is broken.",
            allow_abbrev=False,
        )
        parser.add_argument("--json", action="store_true", help="write one JSON object instead")
        options, others = parser.parse_known_args(args)
        config.save = lambda *args, **kwargs: parser.error("nothing is changed here, so there is nothing to save")
        # The public function opens the server's log file, which this command leaves alone.
        config._parse_config(others)
        initialize_sys_path()

        from odoo.addons.bus_alt_connection import doctor, settings

        results = []
        for result in doctor.examine(settings.Settings.from_odoo()):
            results.append(result)
            if not options.json:
                state = f"{result.state:7}"
                if sys.stdout.isatty():
                    state = f"\x1b[{COLOURS[result.state]}m{state}\x1b[0m"
                remedy = f" -> {result.remedy}" if result.remedy else ""
                _print(f"{state}  {result.name}: {result.text}{remedy}")
        status, verdict = doctor.verdict(results)
        checks: List[Any] = [result._asdict() for result in results]
        report = json.dumps({"status": status, "verdict": verdict, "checks": checks}, indent=2)
        _print(report if options.json else verdict)
        sys.exit(status)


def _print(text: str) -> None:
    # A server's message may hold letters that this terminal lacks.
    encoding = sys.stdout.encoding or "ascii"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
