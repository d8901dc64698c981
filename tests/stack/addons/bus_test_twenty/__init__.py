"""The shape of Odoo 20 on the tree of 19, which no machine here can run: what it has elsewhere is no longer here.

* The WSGI application is in `odoo.http.router` alone, the dispatcher in `odoo.addons.bus.bus_dispatcher`.
* Channels have topics, and a worker fetches for them; a websocket knows nothing of what it was sent.
* `ODOO_NOTIFY_FUNCTION` stays in `bus.models.bus`, and the dispatcher's module has none.
* Odoo listens and notifies in the database that `db_system` names.
* BUS_TEST_EVENTED evented processes share one port.
"""
from . import bus_dispatcher, evented, router, system, websockets
