"""An Odoo that has changed: what BUS_TEST_MOVED names is not where Bus Alt Connection looks for it.

What Odoo itself asks for by its name in many places is hidden from Bus Alt Connection alone; the rest has another name
for everyone, or raises when it is read from its class.
"""
import os
import sys
import types

import odoo.http
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
        __getattribute__ = hiding(types.ModuleType.__getattribute__, *hidden)

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

    def __get__(self, instance, owner=None):
        if instance is None:
            raise RuntimeError("nobody looks at this")
        return self.method.__get__(instance, owner)


def raise_where_read(owner, name):
    setattr(owner, name, Raising(getattr(owner, name)))


def only_of_objects(owner, name):
    """A value that objects have and their class has not."""
    value = getattr(owner, name)

    def __getattr__(self, asked):
        if asked != name:
            raise AttributeError(asked)
        return value

    delattr(owner, name)
    owner.__getattr__ = __getattr__


def websocket():
    from odoo.addons.bus import websocket
    return websocket


MOVES = {
    # the main job
    "loop": rename_loop,
    "ImDispatch": lambda: hide(bus, ["ImDispatch"]),
    "db_connect": lambda: hide(odoo.sql_db, ["db_connect"]),
    "subscribers": hide_subscribers,
    "run, which raises": lambda: raise_where_read(bus.ImDispatch, "run"),
    # the other parts
    "Application": lambda: hide(odoo.http, ["Application", "Root"]),
    "cron_thread": lambda: hide(odoo.service.server, ["ThreadedServer"]),
    "WorkerCron": lambda: hide(odoo.service.server, ["WorkerCron"]),
    "Worker": lambda: hide(odoo.service.server, ["Worker"]),
    "check_limits, which raises": lambda: raise_where_read(odoo.service.server.Worker, "check_limits"),
    "WebsocketConnectionHandler": lambda: hide(websocket(), ["WebsocketConnectionHandler"]),
    "history": lambda: only_of_objects(websocket().Websocket, "MAX_NOTIFICATION_HISTORY_SEC"),
}
MOVES[os.environ["BUS_TEST_MOVED"]]()
