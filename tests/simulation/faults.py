"""The faults, and when they happen: several at once, in bursts, and aimed at a moment.

Contract: a fault begins, and ends after its seconds; it says what it is. One that concerns the bus extends the time
until which the world is disturbed: by its own length, and by what PgBouncer and TCP need afterwards.
"""


class Fault:
    """`begin_it(life, plan)` makes it and returns (text, what ends it or None)."""

    def __init__(self, life, make, delay, seconds, aim):
        self.life, self.make, self.delay, self.seconds, self.aim = life, make, delay, seconds, aim

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
        made = self.make(life, life.plan)
        if made is None:
            return
        text, end = made
        life.counts["faults"] += 1
        seconds = self.seconds if end else 0.0
        at = f", at the moment of a {self.aim[0]}" if self.aim else ""
        life.tell("fault", f"{text}{f' for {seconds:.1f} s' if end else ''}{at}")
        life.disturb(life.kernel.now + seconds + 2.0)
        if end:
            def ending():
                end()
                life.tell("fault", f"it is over that {text}")
                retry = life.pooler.login_retry if life.pooler else 0.0
                life.disturb(life.kernel.now + min(8.0, seconds) + retry)
            life.kernel.at(seconds, ending)


def burst(life, plan):
    """Some faults that follow closely on each other."""
    from .life import EVENTS
    found = []
    for _ in range(plan.choice((1, 1, 2, 3, 5))):
        aim = (plan.choice(EVENTS), plan.choice((1, 1, 2, 5, 20))) if plan.random() < 0.5 else None
        seconds = plan.choice((0.05, 0.5, 2.0, 8.0, 20.0, 70.0)) * plan.uniform(0.5, 1.5)
        found.append(Fault(life, plan.choice(ALL), plan.uniform(0.0, plan.choice((0.1, 5.0, 20.0))), seconds, aim))
    return found


# -- the network ---------------------------------------------------------------------------------------------------

def paths(life):
    found = [("Odoo's way to server A", "odoo", "10.0.0.1"), ("Odoo's way to server B", "odoo", "10.0.0.2")]
    if life.pooler:
        found += [("Odoo's way to the pooler", "odoo", "10.0.0.5"),
                  ("the pooler's way to its server", "pooler", life.pooler.target)]
    return found


def silence(life, plan):
    name, *ends = plan.choice(paths(life))
    path = life.network.path(*ends)
    life.network.silence(path)
    return f"{name} is silent", lambda: life.network.heal(path)


def refuse(life, plan):
    name, *ends = plan.choice(paths(life))
    path = life.network.path(*ends)
    life.network.refuse(path)
    life.epoch += 1
    return f"{name} refuses", lambda: life.network.heal(path)


def reset(life, plan):
    name, *ends = plan.choice(paths(life))
    life.network.reset(life.network.path(*ends))
    life.epoch += 1
    return f"{name} resets all connections", None


def forget(life, plan):
    name, *ends = plan.choice(paths(life))
    life.network.forget(life.network.path(*ends))
    return f"{name} forgets all connections", None


def slow(life, plan):
    name, *ends = plan.choice(paths(life))
    path = life.network.path(*ends)
    path.latency = plan.choice(((0.05, 0.3), (0.4, 0.7), (1.0, 3.0)))

    def end():
        path.latency = (0.0001, 0.001)
    return f"{name} is slow", end


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
    return f"{backend} stands still", backend.resume


def unlisten(life, plan):
    for backend in life.primary.backends.values():
        backend.listens = {}
    return "the LISTENs of all sessions are removed", None


ALL = [silence, silence, refuse, reset, forget, slow, kill, kill, restart, restart, hang, hang_backend, unlisten]
