"""docs/capacity.rst: what a fleet's listeners cost one cluster, reckoned from the bench's figures by named rules.

Contract: a figure of the page is one of performance.csv, a constant of the addon's code, or made of these by a formula
that the page shows. `write` is called with all figures whenever `fleet` was measured.
"""
from collections import namedtuple

from .reconnect import addon_module
from .report import heading, list_table, number, title

# databases, hosts, HTTP workers and cron workers of each host, notifications a second in the whole cluster
Fleet = namedtuple("Fleet", "n m w c f")
FLEETS = [Fleet(200, 1, 4, 1, 10), Fleet(1000, 10, 8, 2, 100), Fleet(10000, 50, 8, 2, 1000)]
EXTRAPOLATED = [1000, 10000]


class Sums:
    """The formulas, for one fleet."""

    def __init__(self, fleet, figures):
        self.fleet, self.figures = fleet, figures
        listener, path = addon_module("listener").Listener, addon_module("recovery").PooledPath
        defaults = addon_module("settings").Settings({})
        self.every = defaults.heartbeat_seconds
        self.polls = [defaults.poll_seconds * times for times in listener.POLL_SHARE]
        self.poll = sum(self.polls) / 2
        self.check, self.look = (sum(span) / 2 for span in (listener.CHECK_SECONDS, listener.LOOK_SECONDS))
        self.spans = [self.every * times for times in addon_module("session").Session.BEATS]
        self.beat = sum(self.spans) / 2
        self.kept = path.KEPT
        n, m, w, c, f = fleet
        self.listeners = m * (1 + c)
        self.clients = self.listeners + m * min(n // m, self.kept) + m * (1 + w + c)
        self.beats = self.listeners / self.beat
        self.pooled = self.listeners / self.check + n / self.look
        self.degraded = n / self.poll
        self.logins = max(0, n - m * self.kept) / self.look
        self.wakeups = f * self.listeners

    def at_rest(self, who, of):
        """% of a core: what all listeners cost, and all databases."""
        metric = f"CPU of {who}"
        case = self.figures.some("fleet", metric, 3)[0]
        each = self.figures.median("fleet", metric, "addon", case) / int(case.split()[0])
        return self.listeners * self.per_listener(of) + self.fleet.n * each

    def per_listener(self, metric):
        """What one listener costs at rest, of the most that were measured."""
        case = self.figures.some("listeners", metric, 3)[-1]
        return self.figures.median("listeners", metric, "addon", case) / int(case.split()[0])


def write(path, figures):
    """The page, where all that it is made of was measured: its path in a list."""
    if not all(map(figures.metrics, ("fleet", "listeners", "sending"))):
        return []
    lines = [*heading("Capacity", "="),
             "What do the listeners of many databases cost one cluster, and what has to be set for them?", "",
             "Made by ``./dev bench --only fleet``, from its figures and those of the other parts in `performance.rst "
             "<performance.rst>`__, which names the day, the machine and the command of each. A figure has its formula "
             "beside it, or was measured.", "",
             *letters(), *connections(figures), *work(figures), *databases(figures), *herd(figures), *settings(figures),
             *beyond(figures)]
    path.write_text("\n".join(lines).rstrip() + "\n")
    return [path]


def letters():
    return ["N databases, each with browsers that are connected, on M hosts; each host has W HTTP workers, C cron "
            "workers and one process for websockets, and its share of the databases (``dbfilter``, and ``db_name`` for "
            "its cron workers). F: notifications a second in the whole cluster, of all databases. L = M × (1 + C): the "
            "listeners. Odoo has one database for all of them, ``postgres``.", ""]


def fleets(label, rows, sums):
    """A table with a column for each fleet."""
    head = [label, *(f"N {each.fleet.n}, M {each.fleet.m}, W {each.fleet.w}, C {each.fleet.c}, F {each.fleet.f}"
                     for each in sums)]
    return list_table(head, [[title, *(number(value(each)) for each in sums)] for title, value in rows])


def connections(figures):
    sums = [Sums(fleet, figures) for fleet in FLEETS]
    kept = sums[0].kept
    return [
        *heading("Connections", "-"),
        "Direct connections to PostgreSQL, which count against ``max_connections`` all the time:", "",
        *list_table(["", "to LISTEN", "to NOTIFY"], [
            ["Odoo straight to PostgreSQL", "L = M × (1 + C)", "a login for each"],
            ["Odoo behind PgBouncer alone", "none, and nothing arrives", "none; a login to the pooler for each"],
            ["the published addon", "M; cron workers are not notified", "none; a login to the pooler for each"],
            ["this addon", "L", "none; a client of the pooler for each process, for 60 s after its last"],
            ["this addon, straight to PostgreSQL", "L", "M × (W + 1 + C) at most, as long"]]),
        f"Clients of the pooler that this addon adds: one for each listener, which asks where the pooler leads (L); "
        f"one for each database of a host, {kept} at most, to look at it (M × min(N / M, {kept})); and those of the "
        "NOTIFYs. Others only have those of Odoo itself, and for each NOTIFY one that comes and goes.", "",
        *fleets("this addon", [("direct connections, L", lambda each: each.listeners),
                               ("clients of the pooler, L + M × min(N / M, "
                                f"{kept}) + M × (1 + W + C)", lambda each: each.clients)], sums)]


def work(figures):
    sums = [Sums(fleet, figures) for fleet in FLEETS]
    first = sums[0]
    foreign = [case for case in figures.some("fleet", "a notification", 3) if case.endswith(" foreign a second")]

    def nearest(fleet):
        """The case whose rate is the fleet's, or the highest that was measured."""
        return next((case for case in foreign if int(case.split()[0]) >= fleet.f), foreign[-1])
    notify = figures.some("fleet", "PostgreSQL's CPU for a NOTIFY", 3)
    each = {where: figures.median("fleet", "PostgreSQL's CPU for a NOTIFY", "addon", where) for where in notify}
    count = int(notify[0].split()[0])
    per_wakeup = each[notify[0]] / count

    def evented(setup):
        def cpu(one):
            microseconds = figures.median("fleet", "a notification", setup, nearest(one.fleet))
            return one.fleet.f * one.fleet.m * microseconds / 1e4
        measured = setup in figures.some("fleet", "a notification", 2)
        return [(f"M processes for websockets, {title(setup)}", cpu)] if measured else []
    sent = figures.some("sending", "CPU for a message", 2)
    rows = [[title(setup), *(figures.cell("sending", "CPU for a message", setup, who)
                             for who in ("PostgreSQL", "the pooler"))] for setup in sent]
    return [
        *heading("Transactions and wake-ups", "-"),
        "At rest Odoo's own listeners and the published addon's do nothing, and do not notice when they are cut off. "
        f"Of this addon each listener sends a heartbeat every {first.spans[0]:g} to {first.spans[1]:g} s on its own "
        f"connection, and asks the pooled path every {first.check:g} s on average; each database with "
        f"browsers is looked at every {first.look:g} s on average. A heartbeat or a look takes no transaction id and "
        f"wakes nobody. While a listener cannot listen, it polls: each of its databases every "
        f"{first.polls[0]:g} to {first.polls[1]:g} s. No database is asked that nobody waits for.", "",
        "A NOTIFY of Odoo's wakes every backend that listens in its database, up to PostgreSQL 18, and every process "
        "for websockets; cron workers' backends are woken and send nothing. This is the same with this addon and with "
        "Odoo straight to PostgreSQL; with the published addon only M backends listen.", "",
        *fleets("a second, this addon where nothing else is named", [
            (f"heartbeats, L / {first.beat:g}", lambda one: one.beats),
            (f"transactions through the pooler at rest, L / {first.check:g} + N / {first.look:g}",
             lambda one: one.pooled),
            (f"of them on a connection of their own, (N - M × {first.kept}) / {first.look:g}", lambda one: one.logins),
            (f"looks while all of them poll, N / {first.poll:g}", lambda one: one.degraded),
            ("wake-ups of PostgreSQL's backends by NOTIFYs, F × L; Odoo straight to PostgreSQL: the same",
             lambda one: one.wakeups),
            ("the published addon: F × M", lambda one: one.fleet.f * one.fleet.m)], sums),
        "CPU in % of a core. Of a listener at rest, with one database: as measured with "
        f"{figures.some('listeners', 'wake-ups', 3)[-1]}; of a database: as measured below, most of it is the logins "
        f"of those that are not among the {first.kept} whose connections a host keeps. More than 100 is more than a "
        "pooler has, and takes several. "
        f"Of a wake-up: {1000 * per_wakeup:.1f} µs of PostgreSQL's, measured with {count} listeners that a NOTIFY "
        f"woke. Of a process for websockets: F × what a foreign notification costs it at the rate that "
        "is next (``a notification`` in performance.rst), M of them together.", "",
        *fleets("CPU (% of a core)", [
            ("PostgreSQL at rest, L × a listener's + N × a database's",
             lambda one: one.at_rest("PostgreSQL", "PostgreSQL's CPU")),
            ("the pooler at rest, the same", lambda one: one.at_rest("the pooler", "the pooler's CPU")),
            ("PostgreSQL, NOTIFYs, F × L × a wake-up's; Odoo straight to PostgreSQL: the same",
             lambda one: one.wakeups * per_wakeup / 10),
            ("the published addon: F × M × a wake-up's", lambda one: one.fleet.f * one.fleet.m * per_wakeup / 10),
            *evented("addon"), *evented("direct"), *evented("published")], sums),
        *([] if not rows else [
            "CPU that a message of Odoo's costs, its own queries included (``./dev bench --only sending``); F × this "
            "is what sending takes:", "", *list_table(["CPU for a message (ms)", "PostgreSQL", "the pooler"], rows)])]


def databases(figures):
    """What was measured with many databases, and what the counting rule makes of it."""
    def found(metric):
        return [case for case in figures.some("fleet", metric, 3)
                if figures.median("fleet", metric, "addon", case) is not None]
    queries = "queries at the pooler"
    cases = found(queries)
    measured = int(cases[0].split()[0])
    metrics = [metric for metric in figures.metrics("fleet") if found(metric) and found(metric)[0] in cases]
    shown = list_table(["", *(case.partition(", ")[2] for case in cases)], [
        [f"{metric} ({figures.units['fleet', metric]})" if figures.units["fleet", metric] else metric,
         *(figures.cell("fleet", metric, "addon", case) for case in cases)] for metric in metrics])
    caught = "until the last database is caught up"
    rows = []
    for metric, case in [(queries, "idle"), ("CPU of the pooler", "idle"), (queries, "degraded"),
                         ("connections made at the pooler", "degraded"),
                         ("CPU of the pooler", "degraded"), ("server connections of the pooler, most", "all reconnect"),
                         (caught, "all reconnect"), (caught, "back")]:
        value = figures.median("fleet", metric, "addon", f"{measured} databases, {case}")
        unit = figures.units["fleet", metric]
        rows.append([f"{metric}, {case}" + (f" ({unit})" if unit else ""), number(value),
                     *(number(value * count / measured) for count in EXTRAPOLATED)])
    return [
        *heading(f"{measured} databases with one Odoo", "-"),
        "Real databases, each with Odoo in it, one Odoo with two HTTP workers and one cron worker, and in nine of ten "
        "databases a browser. At rest; then all listeners' connections are terminated; then they are refused, so that "
        "the addon polls; and back. A notification that nobody was told of was committed in each database before all "
        "reconnect, and before they are back.", "", *shown,
        f"The counting rule: all of this is a sum over databases, asked {addon_module('recovery').Recovery.TOGETHER} "
        f"at a time, so N databases cost N / {measured} times as much and take as long. M hosts share the databases "
        "and divide the time by M. A cron worker looks for jobs in each database once a reconnect, and by its own "
        "clock once a minute or so. A core is 100 %: where the rule gives a pooler more, it takes several, or keeps "
        "what it does not have waiting.", "",
        *list_table(["one Odoo", f"measured, {measured}", *(f"× N / {measured}, {count}" for count in EXTRAPOLATED)],
                    rows)]


def herd(figures):
    back = "99 % back"
    real, *_ = [case for case in figures.some("fleet", back, 3) if figures.median("fleet", back, "addon", case)]
    rows = [[case, *(figures.cell("fleet", metric, setup, case) for metric, setup in (
        (back, "addon"), (back, "simulated"), ("connection attempts in a second, most", "to PostgreSQL"),
        ("connection attempts in a second, most", "to the pooler"),
        ("connection attempts in a second, most", "simulated")))] for case in figures.some("fleet", back, 3)]
    used = {who: figures.cell("fleet", f"{who}'s CPU until then", "addon", real)
            for who in ("PostgreSQL", "the pooler")}
    return [
        *heading("PostgreSQL restarts under all of them", "-"),
        f"{real} of the addon's listener, without Odoo around them, each with a login of its own by SCRAM; PostgreSQL "
        f"is away for five seconds. Until 99 % were back PostgreSQL had used {used['PostgreSQL']} s of CPU and the "
        f"pooler {used['the pooler']} s. Simulated: the same waits against a server that takes as many a second as the "
        "real one did and lets a hundred wait. Attempts are of the busiest second from the moment that PostgreSQL is "
        "up; each second of them is in performance.rst.", "",
        *list_table(["", "99 % back (s), real", "simulated", "attempts to PostgreSQL, real", "to the pooler, real",
                     "simulated"], rows)]


def settings(figures):
    files = next(iter(figures.some("fleet", "open files of each listener", 3)))
    each = figures.median("fleet", "open files of each listener", "addon", files)
    sums = [Sums(fleet, figures) for fleet in FLEETS]
    one = "server connections of the pooler, most"
    case = figures.some("fleet", one, 3)[0]
    pools = figures.median("fleet", one, "addon", case)
    count = int(case.split()[0])
    alone = figures.cell("fleet", "PostgreSQL's CPU for a NOTIFY", "addon",
                         figures.some("fleet", "PostgreSQL's CPU for a NOTIFY", 3)[-1])
    backend = figures.cell("fleet", "open files of a listener's backend", "addon", files)
    return [
        *heading("What to set", "-"),
        *list_table(["setting", "at least", "because"], [
            ["PostgreSQL: ``max_connections``", "pools + L + 10",
             "pools: the server connections of the pooler. Each database that is looked at takes one at least and "
             f"keeps it for ``server_idle_timeout``: {number(pools)} with {count} databases. A database has at most "
             "``max_db_connections`` of them. 10: superusers, backups, the doctor"],
            ["PgBouncer: ``max_client_conn``", "M × (W + 1 + C) × ``db_maxconn`` + the clients above",
             "Odoo's own at most, and this addon's"],
            ["PgBouncer: ``pool_size`` of ``postgres``", f"1 + F × {alone} ms",
             f"a NOTIFY is a transaction of its own: {alone} ms of PostgreSQL's CPU where it wakes nobody"],
            ["PgBouncer: ``server_login_retry``", "1", "after a restart the default keeps everybody out for 15 s"],
            ["PgBouncer: open files (``LimitNOFILE``)", "``max_client_conn`` + pools + 100", "one for each connection"],
            ["PostgreSQL: open files", f"{backend} × ``max_connections``",
             "of a listener's backend; one with queries has ``max_files_per_process`` more at most"],
            ["Odoo: open files (``ulimit -n``)", f"browsers + {sums[0].kept} + 100 for the process for websockets",
             f"a websocket is one; a listener has {number(each)}, the databases that it looks at {sums[0].kept} at "
             "most"],
            ["Odoo: ``limit_memory_soft``", "15 MiB × databases with browsers on that host",
             "Odoo 19 keeps so many databases loaded, and loads the others anew each time"]]),
        *fleets("", [("L + 10, beside the pools", lambda each: each.listeners + 10),
                     ("clients of the pooler, beside Odoo's own", lambda each: each.clients)], sums)]


def beyond(figures):
    cpu, woken = "PostgreSQL's CPU for a NOTIFY", "wake-ups of PostgreSQL for a NOTIFY"
    rows = [[case.partition(", a NOTIFY ")[2],
             *(figures.cell("fleet", metric, "addon", case) for metric in (cpu, woken))]
            for case in figures.some("fleet", cpu, 3)]
    listeners = figures.some("fleet", cpu, 3)[0].split()[0]
    return [
        *heading("Past one cluster", "-"),
        "What grows with the product of two numbers is F × L, the wake-ups. Three ways to make it smaller, in this "
        "order:", "",
        "* *A database of its own to notify in for each group of tenants.* A NOTIFY reaches the listeners of its own "
        "database only. With G groups of equal size each has F / G notifications and L / G listeners, so the cluster "
        "has F × L / G wake-ups. Each group gets a pooler whose ``postgres`` leads to that database, and names it for "
        f"its listeners: `the snippets <managed.rst>`__. Measured with {listeners} listeners:", "",
        *list_table(["a NOTIFY", "PostgreSQL's CPU (ms)", "backends woken"], rows),
        "* *A pooler that passes on LISTEN*, PgDog, in front of each group of hosts: it listens once for all its "
        "clients, so that L is the number of poolers and the fan-out is the pooler's work. Read, not run: "
        "`managed poolers <managed.rst>`__.",
        "* *A second cluster.* When the 99 % of the table above take longer than users can wait after a restart, or "
        "``max_connections`` has to exceed some thousands, split the tenants."]
