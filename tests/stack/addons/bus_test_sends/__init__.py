"""A module that sends on the bus while it is installed, and commits at once, as one that works for long does."""


def send(env, registry=None):
    if registry is not None:        # a cursor, before series 17
        from odoo import SUPERUSER_ID, api
        env = api.Environment(env, SUPERUSER_ID, {})
    bus = env["bus.bus"]
    for number in range(3):
        if hasattr(bus, "_sendone"):
            bus._sendone("bus_test_sends", "bus_test", number)
        else:
            bus.sendone("bus_test_sends", number)
        env.cr.commit()
