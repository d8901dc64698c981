"""Several evented processes on one port: the kernel gives a connection to any of them."""
import os
import socket

import odoo
from odoo.service.server import PreforkServer

COUNT = int(os.environ.get("BUS_TEST_EVENTED", 1))
spawn = PreforkServer.long_polling_spawn


def spawn_all(self):
    for _ in range(COUNT):
        spawn(self)


def get_listener(cls, address, backlog=None, family=None):
    listener = socket.create_server(address, backlog=backlog or cls.backlog, reuse_port=True)
    listener.setblocking(False)
    return listener


if COUNT > 1:
    PreforkServer.long_polling_spawn = spawn_all
    if odoo.evented:
        from gevent.server import StreamServer
        StreamServer.get_listener = classmethod(get_listener)
