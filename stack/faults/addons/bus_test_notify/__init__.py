"""Holds a transaction between its commit and the bus's NOTIFY, while the file `hold` is in BUS_TEST_FOLDER.

Its process says that it is there by a file `committed-<its id>`, and goes on when `hold` is gone: stack/faults/hold.py.
BUS_TEST_IDLE, in seconds, is how long the connection of the sending half may be idle.
"""
import contextlib
import functools
import os
import time
from pathlib import Path

from odoo.modules.module import load_openerp_module


def wait_while_held():
    folder = Path(os.environ["BUS_TEST_FOLDER"])
    if not (folder / "hold").exists():
        return
    here = folder / f"committed-{os.getpid()}"
    here.touch()
    while (folder / "hold").exists():
        time.sleep(0.005)
    with contextlib.suppress(FileNotFoundError):    # another thread's, too
        here.unlink()


def held(send):
    @functools.wraps(send)
    def send_held(self, *args, **kwargs):
        # before the bus adds its own: they run in this order
        cr = self.env.cr
        if hasattr(cr, "postcommit"):
            cr.postcommit.add(wait_while_held)
        else:       # before series 14
            cr.after("commit", wait_while_held)
        return send(self, *args, **kwargs)
    return send_held


def post_load():
    from odoo.addons.bus.models import bus
    model = getattr(bus, "BusBus", None) or bus.ImBus
    # series 17 on, 15 and 16, before
    name = next(name for name in ("_ensure_hooks", "_sendmany", "sendmany") if hasattr(model, name))
    setattr(model, name, held(getattr(model, name)))
    if os.environ.get("BUS_TEST_IDLE"):
        # series 18 loads them in any order, and there one that was only imported would not run its post_load
        load_openerp_module("bus_alt_connection")
        from odoo.addons.bus_alt_connection import notifier
        notifier.Notifier.IDLE_SECONDS = float(os.environ["BUS_TEST_IDLE"])
