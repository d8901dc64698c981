"""Many listeners in one process, without an Odoo around them: `listening.py addon|direct COUNT ODOO.CONF`.

Prints how many of them listen, and how many attempts to connect were made so far, directly and to Odoo's own address,
whenever that changes. `addon`: the addon's own. `direct`: connections that LISTEN and are waited for, which is all that
Odoo's own listeners do while nothing comes.

The only file of bench and tests/stack that uses inner names of the addon: its Listener, and who it listens for.
"""
import collections
import functools
import resource
import selectors
import sys
import time
import types

import psycopg2

from odoo.modules.module import initialize_sys_path
from odoo.tools import config

DATABASE = "demo"
AT_ONCE = 5


def addon():
    """Start one of the addon's listeners: a function that says whether it listens."""
    from odoo.addons.bus_alt_connection import state
    from odoo.addons.bus_alt_connection.dispatcher import subscribers_of
    from odoo.addons.bus_alt_connection.listener import Listener
    # a bus with one channel in one database, to which nobody is subscribed any more
    one = Listener(subscribers_of(types.SimpleNamespace(_channels_to_ws={(DATABASE, "nobody"): set()})))
    one.listen("imbus")
    one.begin()
    return lambda: one.state.phase == state.LISTENING


def counted(connect):
    """psycopg2's function, and how often it was called for each port."""
    attempts = collections.Counter()

    @functools.wraps(connect)
    def attempt(*args, **kw):
        attempts[str(kw["port"])] += 1
        return connect(*args, **kw)
    return attempt, attempts


def many(count):
    """The addon's listeners, until the process ends. A few start at the same time: what is measured is rest."""
    initialize_sys_path()
    psycopg2.connect, attempts = counted(psycopg2.connect)
    asked, before = [], None
    while True:
        listen = sum(listens() for listens in asked)
        asked += [addon() for _ in range(min(AT_ONCE - (len(asked) - listen), count - len(asked)))]
        now = listen, *(attempts[str(config[name])] for name in ("imdispatcher_db_port", "db_port"))
        if now != before:
            # one write: the log goes to the same file, and its lines came between the parts of this one
            print("{} {} {}\n".format(*now), end="", flush=True)
        before = now
        time.sleep(0.1)     # listeners of the same process are at work meanwhile


def bare(count):
    with selectors.DefaultSelector() as selector:
        for _ in range(count):
            connection = psycopg2.connect(
                host=config["imdispatcher_db_host"], port=config["imdispatcher_db_port"], dbname="postgres",
                user=config["db_user"], password=config["db_password"])
            connection.autocommit = True
            connection.cursor().execute("LISTEN imbus")
            selector.register(connection, selectors.EVENT_READ)
        print(count, count, 0, flush=True)
        while True:
            for key, _ in selector.select():
                key.fileobj.poll()
                del key.fileobj.notifies[:]


if __name__ == "__main__":
    kind, number, conf = sys.argv[1:]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    config.parse_config(["-c", conf])
    {"addon": many, "direct": bare}[kind](int(number))
