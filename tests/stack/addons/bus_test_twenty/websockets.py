"""Websockets that a topic's worker gives texts to; they ask for nothing themselves and remember nothing."""
import functools

from odoo.addons.bus import websocket
from odoo.addons.bus.models import bus, ir_websocket

from .bus_dispatcher import dispatch

Websocket = websocket.Websocket


class Subscriptions:
    """Subscribes as `ir.websocket` of 19 asks for it."""

    def subscribe(self, channels, last, db, subscriber):
        dispatch.subscribe({bus.hashable(bus.channel_with_db(db, channel)) for channel in channels}, last, subscriber)


def forgetful(init):
    @functools.wraps(init)
    def __init__(self, *args, **kwargs):
        init(self, *args, **kwargs)
        for name in ("_last_notif_sent_id", "_notif_history", "_waiting_for_dispatch"):
            delattr(self, name)
    return __init__


def send(self, text):
    """From any thread; one that is closed meanwhile is left out."""
    if self.state is websocket.ConnectionState.OPEN:
        self._send_control_command(websocket.ControlCommand.DISPATCH, text)


def sending(process):
    @functools.wraps(process)
    def _process_control_command(self, command, data):
        if command is websocket.ControlCommand.DISPATCH:
            self._send(data)
        else:
            process(self, command, data)
    return _process_control_command


Websocket.__init__ = forgetful(Websocket.__init__)
Websocket.send = send
Websocket._process_control_command = sending(Websocket._process_control_command)
for name in ("subscribe", "trigger_notification_dispatching", "_dispatch_bus_notifications",
             "MAX_NOTIFICATION_HISTORY_SEC"):
    delattr(Websocket, name)
websocket.dispatch, ir_websocket.dispatch = dispatch, Subscriptions()
