"""An Odoo that has changed: what BUS_TEST_MOVED names is not where Bus Alt Connection looks for it.

The loop is renamed, for everyone. The others cannot be: Odoo itself asks for them by their names in many places, so
they are hidden from Bus Alt Connection alone.
"""
import os
import sys
import types

import odoo.service.server
import odoo.sql_db

from odoo.addons.bus.models import bus


def hide(module, hidden):
    class Changed(types.ModuleType):
        def __getattribute__(self, name):
            asking = sys._getframe(1).f_globals["__name__"]
            if name == hidden and asking.startswith("odoo.addons.bus_alt_connection"):
                raise AttributeError(name)
            return super().__getattribute__(name)

    module.__class__ = Changed


def rename_loop():
    bus.ImDispatch.listen_for_ever = bus.ImDispatch.loop
    del bus.ImDispatch.loop
    bus.ImDispatch.run = lambda self: self.listen_for_ever()


MOVES = {
    "loop": rename_loop,
    "ImDispatch": lambda: hide(bus, "ImDispatch"),
    "db_connect": lambda: hide(odoo.sql_db, "db_connect"),
    "cron_thread": lambda: hide(odoo.service.server, "ThreadedServer"),
}
MOVES[os.environ["BUS_TEST_MOVED"]]()
