"""The faults, and when they happen: several at once, in bursts, and aimed at a moment.

Contract: a fault begins, and ends after its seconds; it says what it is. One that concerns the bus extends the time
until which the world is disturbed: by its own length, and by what PgBouncer and TCP need afterwards.
"""
from .pooler import Pooler
from .postgres import Database

DIRECT = "direct"


class Fault:
    """`make(life, plan)` makes it and returns what it is and what ends it or None; and DIRECT if Odoo's own queries
    are as well as before."""

    def __init__(self, life, make, seconds=0.0, aim=None, delay=0.0, plan=None):
        self.life, self.make, self.delay, self.seconds, self.aim = life, make, delay, seconds, aim
        self.plan = plan or life.plan

    def arm(self):
        """Begin now, or at the moment that it is aimed at."""
        if self.aim is None:
            self.begin()
        else:
            self.life.armed.append([*self.aim, self])
            self.life.kernel.at(60.0, self.disarm)

    def disarm(self):
        self.life.armed[:] = [entry for entry in self.life.armed if entry[2] is not self]

    def begin(self):
        life = self.life
        if life.kernel.now - life.began > 480.0:
            return
        made = self.make(life, self.plan)
        if made is None:
            return
        text, end, *direct_only = made
        life.counts["faults"] += 1
        seconds = self.seconds if end else 0.0
        at = f", at the moment of a {self.aim[0]}" if self.aim else ""
        life.tell("fault", f"{text}{f' for {seconds:.1f} s' if end else ''}{at}")
        life.disturb(life.kernel.now + seconds + 2.0, not direct_only)
        if end:
            def ending():
                end()
                life.tell("fault", f"it is over that {text}")
                retry = life.pooler.login_retry if life.pooler else 0.0
                life.disturb(life.kernel.now + min(8.0, seconds) + retry, not direct_only)
            life.kernel.at(seconds, ending)


def burst(life, plan):
    """Some faults that follow closely on each other."""
    from .life import EVENTS
    found = []
    for _ in range(plan.choice((1, 1, 2, 3, 5))):
        aim = (plan.choice(EVENTS), plan.choice((1, 1, 2, 5, 20))) if plan.random() < 0.5 else None
        seconds = plan.choice((0.05, 0.5, 0.5, 2.0, 2.0, 8.0, 8.0, 20.0, 70.0)) * plan.uniform(0.5, 1.5)
        make, delay = plan.choice(ALL), plan.uniform(0.0, plan.choice((0.1, 5.0, 20.0)))
        found.append(Fault(life, make, seconds, aim, delay))
    return found


# -- the network ---------------------------------------------------------------------------------------------------

def choose_path(life, plan):
    """(its name, the path, [DIRECT] or [])"""
    direct = [DIRECT] if life.pooler else []
    found = [("Odoo's way to server A", "odoo", "10.0.0.1", direct),
             ("Odoo's way to server B", "odoo", "10.0.0.2", direct)]
    if life.pooler:
        found += [("Odoo's way to the pooler", "odoo", life.pooler.address, []),
                  ("the pooler's way to its server", "pooler", life.pooler.target, [])]
    name, source, destination, concerns = plan.choice(found)
    return name, life.network.path(source, destination), concerns


def silence(life, plan):
    name, path, concerns = choose_path(life, plan)
    life.network.silence(path)
    return f"{name} is silent", lambda: life.network.heal(path), *concerns


def refuse(life, plan):
    name, path, concerns = choose_path(life, plan)
    life.network.refuse(path)
    life.epoch += 1
    return f"{name} refuses", lambda: life.network.heal(path), *concerns


def reset(life, plan):
    name, path, concerns = choose_path(life, plan)
    life.network.reset(path)
    life.epoch += 1
    return f"{name} resets all connections", None, *concerns


def forget(life, plan):
    name, path, concerns = choose_path(life, plan)
    life.network.forget(path)
    return f"{name} forgets all connections", None, *concerns


def slow(life, plan):
    name, path, concerns = choose_path(life, plan)
    path.latency = plan.choice(((0.05, 0.3), (0.4, 0.7), (1.0, 3.0)))

    def end():
        path.latency = (0.0001, 0.001)
    return f"{name} is slow", end, *concerns


# -- PostgreSQL ----------------------------------------------------------------------------------------------------

def kill(life, plan):
    found = [backend for server in (life.primary, life.other) for backend in server.backends.values()]
    if not found:
        return None
    backend = plan.choice(found)
    backend.terminate("terminating connection due to administrator command")
    return f"{backend} ({backend.application}) is killed", None


def restart(life, plan):
    server, starting = life.primary, plan.choice((0.0, 0.5, 5.0))
    if not server.accepting:
        return None
    server.stop(plan.random() < 0.5)
    life.epoch += 1

    def end():
        server.start(starting)
        life.disturb(life.kernel.now + starting)
    return f"{server.name} is down", end


def hang(life, plan):
    server = life.primary
    if server.stopped or not server.accepting:
        return None
    server.stopped = True
    return f"{server.name} stands still", server.resume


def hang_backend(life, plan):
    found = [backend for backend in life.primary.backends.values() if backend.listens]
    if not found:
        return None
    backend = plan.choice(found)
    backend.stopped = True
    ours = "bus_alt_connection bus" in backend.application
    return f"{backend} stands still", backend.resume, *([DIRECT] if ours else [])


def unlisten(life, plan):
    for backend in life.primary.backends.values():
        backend.listens = {}
    return "the LISTENs of all sessions are removed", None, DIRECT


def full(life, plan):
    server = life.primary
    server.room, _before = len(server.backends), server.room

    def end():
        server.room = 100
    return f"{server.name} lets nobody else in", end


def lock_login(life, plan):
    server = life.primary
    server.login_locked = True
    return f"log-ins to {server.name} wait for a lock", server.unlock_login


def lock_table(life, plan):
    database = life.primary.databases.get(plan.choice(life.databases))
    if database is None:
        return None
    database.locked = True
    return f"another session locks bus_bus in {database.name}", lambda: life.primary.unlock(database)


def refuse_listen(life, plan):
    life.primary.unlistenable = plan.choice((1, 3))
    return f"the next LISTENs fail: {life.primary.unlistenable}", None, DIRECT


def empty_table(life, plan):
    database = life.primary.databases.get(plan.choice(life.databases))
    if database is None:
        return None
    database.rows = []
    return f"the table in {database.name} is emptied", None


def drop_database(life, plan):
    server, name = life.primary, plan.choice(life.databases)
    if name not in server.databases:
        return None
    database = server.databases.pop(name)
    server.unlock(database)
    for backend in list(server.backends.values()):
        if backend.database == name:
            backend.terminate("terminating connection due to administrator command")
    life.epoch += 1

    def end():
        server.databases.setdefault(name, Database(name))
    return f"the database {name} is dropped, to be made again", end


def promote(life, plan):
    """The primary dies, the standby is promoted, all ways lead to it; the old one comes back as its standby."""
    old, new = life.primary, life.other
    if not (old.accepting and new.accepting and new.standby):
        return None
    lost = plan.choice((0, 0, 1, 5))
    new.databases = {name: each.copy(lost) for name, each in old.databases.items()}
    jump = plan.choice((0, 32))
    for name, each in new.databases.items():
        each.last_id = max(each.last_id, old.databases[name].last_id - lost) + jump
    old.stop(fast=False)
    life.epoch += 1
    life.primary, life.other = new, old

    def end():
        new.standby = False
        old.standby = True
        old.start()
        lead_to(life, new)
    return f"{old.name} dies, {new.name} is promoted, without the latest {lost} rows of each database", end


def move(life, plan):
    """The pooled path leads to a copy from one moment to the next; the direct one follows."""
    old, new = life.primary, life.other
    if not (old.well and new.accepting and new.standby):
        return None
    lost = plan.choice((0, 3))
    new.databases = {name: each.copy(lost) for name, each in old.databases.items()}
    for name, each in new.databases.items():
        each.last_id = max(each.last_id, old.databases[name].last_id - lost)
    new.standby = False
    life.primary, life.other = new, old
    if life.pooler and plan.random() < 0.4:
        # the name leads to another pooler
        address = "10.0.0.6" if life.pooler.address == "10.0.0.5" else "10.0.0.5"
        life.pooler = Pooler(life, address, new.address, life.pooler.login_retry)
        if "pool" in life.network.names:
            life.network.names["pool"] = [address]
    lead_to(life, new, direct=plan.random() < 0.3)
    life.epoch += 1

    def end():
        lead_to(life, new)
        if plan.random() < 0.3:
            return      # the old one stays as it is
        old.standby = True
        if plan.random() < 0.5:
            old.stop()
            old.start()
    return f"Odoo's own queries go to a copy on {new.name}, without the latest {lost} rows", end


def lead_to(life, server, direct=True):
    """Have the names, and the pooler, lead to this server."""
    if life.pooler:
        life.pooler.lead_to(server.address)
    elif "pool" in life.network.names:
        life.network.names["pool"] = [server.address]
    life.addresses["pool"] = [life.pooler.address if life.pooler else server.address]
    if direct:
        life.addresses["direct"] = [server.address]
        if "direct" in life.network.names:
            life.network.names["direct"] = [server.address]


# -- the pooler ----------------------------------------------------------------------------------------------------

def restart_pooler(life, plan):
    pooler = life.pooler
    if pooler is None or not pooler.accepting:
        return None
    pooler.stop()
    life.epoch += 1
    return "the pooler is down", pooler.start


def hang_pooler(life, plan):
    pooler = life.pooler
    if pooler is None or not pooler.accepting:
        return None
    pooler.stopped = True
    return "the pooler stands still", pooler.resume


def pause_pooler(life, plan):
    pooler = life.pooler
    if pooler is None or not pooler.accepting:
        return None
    pooler.paused = True
    return "the pooler is paused", pooler.resume


def full_pooler(life, plan):
    pooler = life.pooler
    if pooler is None:
        return None
    pooler.room = len(pooler.clients)

    def end():
        pooler.room = 100
    return "the pooler lets nobody else in", end


# -- names, the machine, other people ------------------------------------------------------------------------------

def no_names(life, plan):
    life.network.names.clear()

    def end():
        life.network.names.update(life.addresses)
    return "no name can be resolved", end


def slow_names(life, plan):
    life.network.delay = plan.choice((0.5, 5.0, 10.0))

    def end():
        life.network.delay = 0.0
    return f"a name is resolved after {life.network.delay:g} s", end


def wrong_name(life, plan):
    if "direct" not in life.network.names:
        return None
    life.network.names["direct"] = [plan.choice(("10.0.0.9", life.other.address))]

    def end():
        if "direct" in life.network.names:
            life.network.names["direct"] = life.addresses["direct"]
    return f"the direct name leads to {life.network.names['direct'][0]}", end, DIRECT


def stand_still(life, plan):
    seconds = plan.choice((0.5, 7.0, 30.0))
    life.kernel.standing["odoo"] = life.kernel.now + seconds
    life.disturb(life.kernel.now + seconds)
    return f"Odoo's process stands still for {seconds:g} s", None


def no_threads(life, plan):
    life.threads_refused = plan.choice((1, 3))
    return f"the system gives the notifier no thread, {life.threads_refused} times", None


def flood(life, plan):
    """Other databases of the cluster NOTIFY."""
    count, every = plan.choice(((200, 0.0003), (100, 0.02)))
    for number in range(count):
        life.kernel.at(number * every, other_notify, life, f'[["other","channel",{number % 7}]]')
    return f"another database sends {count} NOTIFYs", None, DIRECT


MALFORMED = ("", "{", "null", "7", '"text"', '["a"', "[[[[]]]]", '[{"a": 1}]', "[null]", "{}", '["one", 1]', "[" * 3000)


def malformed(life, plan):
    payloads = [plan.choice(MALFORMED) for _ in range(plan.choice((1, 10)))]
    for number, payload in enumerate(payloads):
        life.kernel.at(number * 0.001, other_notify, life, payload)
    return f"someone sends {', '.join(repr(each[:12]) for each in payloads[:3])} on imbus", None, DIRECT


def other_notify(life, payload):
    server = life.pooled_server()
    if server.well:
        server.notify("postgres", "imbus", payload)


ALL = [silence, silence, refuse, reset, forget, slow, kill, kill, restart, restart, hang, hang_backend, unlisten, full,
       lock_login, lock_table, lock_table, refuse_listen, empty_table, drop_database, promote, promote, move, move,
       restart_pooler, hang_pooler, pause_pooler, full_pooler, no_names, slow_names, wrong_name, stand_still,
       no_threads, flood, malformed]
