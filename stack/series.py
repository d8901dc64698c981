"""What the stack and the tests need to know of a series: the only place here that asks for its number.

Contract: `Series(14).evented_port` is the value that holds since the nearest series at or below 14. A fact that is
None, or empty, is a part that the series lacks.
"""

OLDEST = 12

# fact: what it is since which series
FACTS = {
    # odoo.conf
    "evented_port": {12: "longpolling_port", 16: "gevent_port"},
    "server_wide": {12: "base,web", 19: "base,rpc,web"},     # what Odoo loads by itself, without the addon
    # each option of odoo.conf can be set in the environment
    "options_from_environment": {12: False, 19: True},
    # the command line: 19 makes databases without demo data unless asked
    "without_demo": {12: ["--without-demo=all"], 19: []},
    # the clients: stack/clients/client.py has a class of each name
    "client": {12: "LongPolling", 16: "WebSocket"},
    "websocket": {12: None, 16: "odoo.addons.bus.websocket"},
    # a websocket closes the pair of sockets by which it is woken when it ends; before, garbage collection does
    "closes_its_pair": {12: False, 19: True},
    # from Python: the method of bus.bus, and what it is given before the message
    "send": {12: "sendone", 15: "_sendone"},
    "notify_function": {12: False, 15: True},           # the environment may name the function that NOTIFYs
    "message_type": {12: None, 15: "bus_alt"},          # a message has a type since, and its channel a database
    # who listens for "cron_trigger"
    "cron_listeners": {12: None, 15: "one per cron thread or worker"},
    "runs_again": {12: {"numbercall": -1}, 18: {}},     # what a job of cron needs to run more than once
    # the cron thread queries PostgreSQL outside of any job; before, it looks at the databases that are loaded
    "cron_thread_queries": {12: False, 19: True},
    # a client that looks at the table takes so many queries: before 17 it searches, then reads
    "queries_a_look": {12: 2, 17: 1},
    # the dispatcher's class, and what of it the seam needs
    "dispatcher": {12: "odoo.addons.bus.models.bus.ImDispatch", 20: "odoo.addons.bus.bus_dispatcher.BusDispatcher"},
    "loop": {12: "loop", 20: "_listener_loop"},
    # tests/stack/addons/bus_test_twenty gives it the shape of the next one
    "shape_of_20": {12: False, 19: True, 20: False},
    # the path at which the web client opens a conversation of the module mail
    "discuss_address": {12: None, 18: "/odoo/discuss?active_id=discuss.channel_{}"},
    # what the bus parses with, where it is not Python's json
    "own_parser": {12: None, 19: "odoo.addons.bus.tools.orjson"},
    "stop_event": {12: None, 15: "stop_event"},         # tells the dispatcher's loop to end
    # Odoo's own Python needs cryptography, which reads certificates
    "cryptography": {12: False, 16: True},
    # upstream's tests of the addon bus that see a notification; those before test its assets
    "upstream_tests_of_notifications": {12: False, 16: True},
}


class Series:
    """The facts of one series, as attributes."""

    def __init__(self, number):
        self.number = number
        for fact, since in FACTS.items():
            setattr(self, fact, since[max(series for series in since if series <= max(number, OLDEST))])

    def __str__(self):
        return f"series {self.number}"
