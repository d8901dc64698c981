"""The model of PgBouncer in transaction mode.

What is modelled: it accepts clients by itself and gives each statement a server connection of that database, from a
pool; a LISTEN stays on the server connection and what arrives there while no client has it is dropped; idle clients
survive the server's restart; after a connection to the server failed it waits (server_login_retry), and clients that
wait or come meanwhile are told so; query_wait_timeout; restart, hang, PAUSE, full, another server. What is not:
session mode, users, TLS.
"""


class Pooler:
    """`target`: the address of its server. `login_retry`, `wait_timeout`: its settings, seconds."""

    def __init__(self, world, address, target, login_retry=15.0, wait_timeout=120.0, size=20, room=100):
        self.world, self.kernel, self.address, self.target = world, world.kernel, address, target
        self.login_retry, self.wait_timeout, self.size, self.room = login_retry, wait_timeout, size, room
        self.accepting, self.stopped, self.paused = True, False, False
        self.clients, self.pools, self._held = {}, {}, []
        self.name = "the pooler"
        world.network.hosts[address, 6432] = self

    def pool(self, database):
        if database not in self.pools:
            self.pools[database] = Pool(self, database)
        return self.pools[database]

    def accept(self, wire):
        client = Client(self, wire)
        self.clients[client] = None
        self.kernel.at(0.0003, self.when_running, client.log_in)
        return client

    def when_running(self, call, *args):
        if self.stopped:
            self._held.append((call, args))
        else:
            call(*args)

    # -- faults ----------------------------------------------------------------------------------------------------

    def stop(self):
        """End it: all its connections do."""
        self.accepting, self.stopped, self.paused, self._held = False, False, False, []
        for client in list(self.clients):
            client.end("server closed the connection unexpectedly")
        for pool in self.pools.values():
            for server in list(pool.servers):
                server.wire.close()
        self.pools = {}

    def start(self):
        self.accepting = True

    def resume(self):
        """End a hang or a PAUSE."""
        self.stopped = self.paused = False
        held, self._held = self._held, []
        for call, args in held:
            call(*args)
        for pool in self.pools.values():
            pool.assign()

    def lead_to(self, address):
        """Have it lead to another server: a connection in use ends after its statement."""
        self.target = address
        for pool in self.pools.values():
            pool.failed_at = None
            for server in list(pool.servers):
                server.outdated = True
                if server.client is None:
                    pool.drop(server)
            pool.assign()


class Pool:
    """The server connections of one database, and the clients that wait for one."""

    FAILING = "server login has been failing, try again later (server_login_retry)"

    def __init__(self, pooler, database):
        self.pooler, self.database = pooler, database
        self.servers, self.waiting = {}, []
        self.failed_at = None
        self.known = False      # whether a log-in has succeeded: from then on clients are let in without one

    @property
    def retries_later(self):
        return self.failed_at is not None and self.pooler.kernel.now < self.failed_at + self.pooler.login_retry

    @property
    def failing(self):
        return self.retries_later and not self.servers

    def assign(self):
        """Give those that wait a server connection."""
        pooler = self.pooler
        while self.waiting and not pooler.paused:
            idle = next((server for server in self.servers if server.ready and server.client is None), None)
            if idle is not None:
                idle.serve(self.waiting.pop(0))
                continue
            if self.retries_later:
                for client in list(self.waiting) if self.failing else ():
                    client.end(self.FAILING)
                return
            opening = sum(not server.ready for server in self.servers)
            if not opening and len(self.servers) < pooler.size:
                server = ServerConnection(self)
                self.servers[server] = None
            return

    def drop(self, server):
        self.servers.pop(server, None)
        server.wire.close()

    def failed(self, server, text):
        """A server connection ended."""
        self.servers.pop(server, None)
        server.wire.close()
        if not server.ready:
            self.failed_at = self.pooler.kernel.now
            self.pooler.kernel.at(self.pooler.login_retry, self.assign)
        if server.client is not None:
            server.client.end(text)
        self.assign()


class ServerConnection:
    """A connection of the pooler's to its server. What PostgreSQL says goes to the client that has it."""

    def __init__(self, pool):
        self.pool, self.client, self.ready, self.outdated = pool, None, False, False
        pooler = pool.pooler
        self.info = {"host": pooler.target, "port": 5432, "dbname": pool.database}
        self.wire = pooler.world.network.connect("pooler", self.info, self)
        pooler.kernel.at(15.0, self.expire)     # server_connect_timeout

    def expire(self):
        if not self.ready and self in self.pool.servers:
            self.pool.failed(self, "")

    def serve(self, client):
        self.client = client
        if client.request is client.LOG_IN:
            self.pool.pooler.kernel.at(0.0, self.release)
            client.let_in()
        else:
            self.wire.to_server(client.request)

    def release(self):
        self.client = None
        if self.outdated:
            self.pool.drop(self)
        self.pool.assign()

    def arrive(self, message):
        self.pool.pooler.when_running(self._arrive, message)

    def _arrive(self, message):
        if self not in self.pool.servers or message[0] == "accepted":
            return
        if message[0] == "ready":
            self.ready, self.pool.known, self.pool.failed_at = True, True, None
            self.pool.assign()
        elif message[0] == "closed":
            self.pool.failed(self, message[1])
        elif self.client is not None:
            client = self.client
            client.wire.to_client(message)
            if message[0] != "notify":
                client.request = None
                self.release()


class Client:
    """A client's connection to the pooler."""

    LOG_IN = object()

    def __init__(self, pooler, wire):
        self.pooler, self.wire, self.request = pooler, wire, None

    def log_in(self):
        pooler = self.pooler
        if self not in pooler.clients:
            return
        self.pool = pooler.pool(self.wire.client.info["dbname"])
        if len(pooler.clients) > pooler.room:
            self.end("FATAL: no more connections allowed (max_client_conn)")
        elif self.pool.known:
            self.let_in()
        else:
            self.want(self.LOG_IN)

    def let_in(self):
        self.request = None
        self.wire.to_client(("ready", self.pooler.world.kernel.random.getrandbits(30)))

    def receive(self, statement):
        self.pooler.when_running(self.want, statement)

    def want(self, request):
        if self in self.pooler.clients:
            self.request = request
            self.pool.waiting.append(self)
            self.pooler.kernel.at(self.pooler.wait_timeout, self.expire, request)
            self.pool.assign()

    def expire(self, request):
        if self.request is request and self in self.pool.waiting:
            self.end("FATAL: query_wait_timeout")

    def hangup(self):
        self.pooler.when_running(self.leave)

    def leave(self):
        """Forget it. A server connection whose client leaves during a statement is closed."""
        self.pooler.clients.pop(self, None)
        pool = getattr(self, "pool", None)
        if pool is None:
            return
        if self in pool.waiting:
            pool.waiting.remove(self)
        for server in list(pool.servers):
            if server.client is self:
                server.client = None
                pool.drop(server)
                pool.assign()

    def end(self, text):
        if self in self.pooler.clients:
            self.wire.to_client(("closed", text))
            self.leave()
