"""An Odoo that has changed: what BUS_TEST_MOVED names is not where Bus Alt Connection looks for it.

The loop is renamed, for everyone, and reading a worker's `check_limits` from its class raises. The others cannot be:
Odoo itself asks for them by their names in many places, so they are hidden from Bus Alt Connection alone. The table of
subscribers is each dispatcher's own, the others are a module's.
"""
import os
import sys
import types

import odoo.service.server
import odoo.sql_db

from odoo.addons.bus.models import bus


def hiding(get, *hidden):
    """`__getattribute__` without these."""
    def __getattribute__(self, name):
        asking = sys._getframe(1).f_globals["__name__"]
        if name in hidden and asking.startswith("odoo.addons.bus_alt_connection"):
            raise AttributeError(name)
        return get(self, name)
    return __getattribute__


def hide(module, hidden):
    class Changed(types.ModuleType):
        __getattribute__ = hiding(types.ModuleType.__getattribute__, hidden)

    module.__class__ = Changed


def hide_subscribers():
    bus.ImDispatch.__getattribute__ = hiding(object.__getattribute__, "_channels_to_ws", "channels")


def rename_loop():
    bus.ImDispatch.listen_for_ever = bus.ImDispatch.loop
    del bus.ImDispatch.loop
    bus.ImDispatch.run = lambda self: self.listen_for_ever()


class Raising:
    """A method that works on an object and raises when it is read from the class."""

    def __init__(self, method):
        self.method = method

    def __get__(self, worker, owner=None):
        if worker is None:
            raise RuntimeError("nobody looks at this")
        return self.method.__get__(worker, owner)


def raise_where_read():
    odoo.service.server.Worker.check_limits = Raising(odoo.service.server.Worker.check_limits)


MOVES = {
    "loop": rename_loop,
    "ImDispatch": lambda: hide(bus, "ImDispatch"),
    "db_connect": lambda: hide(odoo.sql_db, "db_connect"),
    "cron_thread": lambda: hide(odoo.service.server, "ThreadedServer"),
    "subscribers": hide_subscribers,
    "check_limits": raise_where_read,
}
MOVES[os.environ["BUS_TEST_MOVED"]]()
