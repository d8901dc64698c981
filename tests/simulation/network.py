"""The model of the network: TCP connections between two addresses, and the names of addresses.

What is modelled: connections that are refused, reset, or forgotten by something in between; a path that is silent (what
is sent meanwhile arrives after it, as TCP sends it again) or slow; an end that TCP gives up after its keepalives; names
that do not resolve, that resolve late, or that lead elsewhere. What is not: bytes. A message arrives whole or not at
all, in order.
"""
import socket

REFUSED = "connection to server failed: Connection refused"
RESET = "could not receive data from server: Connection reset by peer"
TIMED_OUT = "could not receive data from server: Connection timed out"


class Path:
    """What all connections from one address to another have in common.

    `state`: "open", "silent" or "refuses". `latency`: seconds of one way, at least and at most.
    """

    def __init__(self):
        self.state, self.latency = "open", (0.0001, 0.001)
        self.wires, self.held, self.since = {}, [], 0.0


class Network:
    def __init__(self, kernel):
        self.kernel = kernel
        self.paths = {}         # (from, to) -> Path
        self.hosts = {}         # (address, port) -> what accepts connections there
        self.names = {}         # name -> its addresses; a name that is missing does not resolve
        self.delay = 0.0        # seconds until a name is resolved
        self.longest_delay = 0.0

    def path(self, source, destination):
        if (source, destination) not in self.paths:
            self.paths[source, destination] = Path()
        return self.paths[source, destination]

    def connect(self, source, info, client):
        """A TCP connection that begins now; `client.arrive` is called with what comes, see standins.Connection."""
        address = info.get("hostaddr") or info["host"]
        wire = Wire(self.kernel, self.path(source, address), client, self.hosts.get((address, int(info["port"]))))
        wire.to_server(wire.BEGIN)
        return wire

    def getaddrinfo(self, host, port, *_):
        if self.delay:
            self.longest_delay = max(self.delay, self.longest_delay)
            self.kernel.sleep(self.delay)
        if host not in self.names:
            raise socket.gaierror(-2, "Name or service not known")
        return [(2, 1, 6, "", (address, port)) for address in self.names[host]]

    # -- faults ----------------------------------------------------------------------------------------------------

    def silence(self, path):
        path.state, path.since = "silent", self.kernel.now
        for wire in list(path.wires):
            wire.watch()

    def refuse(self, path):
        path.state = "refuses"
        self.reset(path)

    def reset(self, path):
        """Cut all its connections: what is under way is lost, and both ends know."""
        for wire in list(path.wires):
            wire.cut()

    def forget(self, path):
        """Have something in between forget its connections: neither end is told."""
        for wire in list(path.wires):
            wire.forgotten = True
            wire.watch()

    def heal(self, path):
        """End a fault. TCP sends again what was lost, the later the longer that was."""
        silent, path.state = path.state == "silent", "open"
        held, path.held = path.held, []
        longest = min(8.0, self.kernel.now - path.since) if silent else 0.0
        pauses = {}
        for wire, inwards, message in held:
            if wire not in pauses:
                pauses[wire] = self.kernel.random.uniform(0, longest)
            self.kernel.at(pauses[wire], wire.arrive, inwards, message)


class Wire:
    """A TCP connection. `client` is at the near end, what `host.accept(wire)` returned at the far one."""

    BEGIN, END = "begin", "end"

    def __init__(self, kernel, path, client, host):
        self.kernel, self.path, self.client, self.host, self.peer = kernel, path, client, host, None
        self.open = True            # at the near end
        self.forgotten = False
        self._latest = [0.0, 0.0]   # when the last message arrives, outwards and inwards
        path.wires[self] = None

    def to_server(self, message):
        self._send(True, message)
        limit = self.client.info.get("tcp_user_timeout")
        if limit and (self.forgotten or self.path.state == "silent"):
            self.kernel.at(limit / 1000, self._give_up)

    def to_client(self, message):
        self._send(False, message)

    def _send(self, inwards, message):
        kernel, latest = self.kernel, self._latest
        least, most = self.path.latency
        when = kernel.now + least + (most - least) * kernel.random.random()
        if when < latest[inwards]:
            when = latest[inwards]
        latest[inwards] = when
        kernel.at(when - kernel.now, self.arrive, inwards, message)

    def arrive(self, inwards, message):
        if self.forgotten or self not in self.path.wires:
            return
        if self.path.state == "silent":
            self.path.held.append((self, inwards, message))
        elif not inwards:
            if message[0] == "closed":
                self.path.wires.pop(self)
                self.peer = None
            if self.open:
                self.client.arrive(message)
        elif message is self.BEGIN:
            if self.path.state == "refuses" or self.host is None or not self.host.accepting:
                self.to_client(("closed", REFUSED))
            else:
                self.peer = self.host.accept(self)
                self.to_client(("accepted",))
        elif message is self.END:
            self.path.wires.pop(self)
            if self.peer is not None:
                self.peer.hangup()
        elif self.peer is not None:
            self.peer.receive(message)

    def close(self):
        """Close the near end."""
        if self.open:
            self.open = False
            self._send(True, self.END)

    def cut(self):
        """Reset it: both ends know at once, and what is under way is lost."""
        del self.path.wires[self]
        self.forgotten = True
        if self.open:
            self.client.arrive(("closed", RESET if self.peer else REFUSED))
        if self.peer is not None:
            self.peer.hangup()

    def watch(self):
        """Have the near end's TCP give up, if it is told when, while nothing comes."""
        info = self.client.info
        if "keepalives_idle" in info:
            seconds = info["keepalives_idle"] + info["keepalives_interval"] * info["keepalives_count"]
            self.kernel.at(seconds, self._give_up, self.kernel.now)
        if getattr(self.peer, "keepalive", False):
            self.kernel.at(20.0, self._far_end_gives_up, self.kernel.now)

    def _far_end_gives_up(self, since):
        if self.peer is not None and (self.forgotten or (self.path.state == "silent" and self.path.since <= since)):
            self.peer.hangup()

    def _give_up(self, since=None):
        silent = self.path.state == "silent" and (since is None or self.path.since <= since)
        if self.open and (self.forgotten or silent) and self in self.path.wires:
            self.client.arrive(("closed", TIMED_OUT))
