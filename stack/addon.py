"""Single modules of the addon, without an Odoo.

Contract: after `importable()` `from bus_alt_connection import state` imports that module and what it imports itself,
and nothing else: the package's own `__init__` is not executed. A module that needs an Odoo fails, unless
`stand_in_for_odoo()` was called: then there are the names that the addon's modules read when they are imported, and
next to nothing behind them.
"""
import importlib.machinery
import sys
import types
from pathlib import Path

NAME = "bus_alt_connection"
FOLDER = Path(__file__).resolve().parent.parent / NAME


def importable():
    """Put a stand-in for the package into `sys.modules`, unless there is one."""
    if NAME not in sys.modules:
        package = types.ModuleType(NAME)
        package.__path__ = [str(FOLDER)]
        package.__spec__ = importlib.machinery.ModuleSpec(NAME, None, is_package=True)
        sys.modules[NAME] = package


def module(name, **attributes):
    """Put a module with these attributes into `sys.modules`, and into its parent, which has to be there."""
    made = sys.modules[name] = types.ModuleType(name)
    made.__path__ = []      # others may be put into it
    vars(made).update(attributes)
    parent, _, own = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], own, made)
    return made


def own_address(database):
    """As `odoo.sql_db.connection_info_for`."""
    return database, {"database": database, "host": "127.0.0.1", "port": 6432, "user": "odoo"}


def stand_in_for_odoo():
    """Put the least of an Odoo into `sys.modules`, unless there is one."""
    if "odoo" in sys.modules:
        return

    class Registry:
        registries = types.SimpleNamespace(snapshot={})

    class Worker:
        def check_limits(self):
            pass

    class WorkerCron(Worker):
        def start(self):
            pass

    class ThreadedServer:
        def cron_thread(self, number):
            pass
    module("odoo", evented=False)
    module("odoo.release", version="0.0")
    module("odoo.sql_db", connection_info_for=own_address, db_connect=None)
    module("odoo.tools", config={})
    module("odoo.modules")
    module("odoo.modules.registry", Registry=Registry)
    module("odoo.service")
    module("odoo.service.server", server=None, Worker=Worker, WorkerCron=WorkerCron, ThreadedServer=ThreadedServer)
    module("odoo.addons")
