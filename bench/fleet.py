"""Many databases, many instances and a busy neighbourhood on one cluster: what a hoster has."""
from stack import Stack

from . import capacity, foreign, herd, pure, tenants
from .report import Aim
from .setups import DATABASE

TITLE = "A fleet on one cluster"
NOTE = ("What it comes to is in `capacity.rst <capacity.rst>`__. Foreign: others' notifications, evenly spaced, at a "
        "process that serves websockets of one database. One hot channel, a burst on 50 channels: its own, as fast as "
        "PostgreSQL takes them, Odoo's queries for its clients included. 300 instances: this addon's listeners without "
        "an Odoo around them, when PostgreSQL restarts; second 1 is the first in which it answers, and a second before "
        "it has a minus. Simulated: the same waits, and a server that takes as many a second as the real one. 200 "
        "databases: with one Odoo, at rest, when all listeners' connections are terminated, while they are refused, "
        "and back; in nine of ten databases somebody is connected. Pure parts: without a server, the least of five.")
PLOTS = []
AIMS = [Aim("a notification", case, name, to, "at most", 1)
        for name, to, cases in (("addon", "direct", ("100 foreign a second", "1000 foreign a second")),
                                ("addon", "published", ("one hot channel", "a burst on 50 channels")))
        for case in cases]


def run(lab, quick):
    # of its own: nobody else's notifications are heard, and the databases go with it
    with Stack(machine=lab.stack.machine, pooler={"settings": {"max_client_conn": 5000}}) as stack:
        stack.database(DATABASE)
        for part in (pure, foreign, herd, tenants):
            yield from part.run(stack, "fleet", quick)


def page(folder, figures):
    return capacity.write(folder / "capacity.rst", figures)
