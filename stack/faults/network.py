"""The fault kit: real parts that break as a network breaks.

`Proxy` stands between the listener and PostgreSQL and forwards, until it is told to freeze (TCP lives, nothing
passes), to refuse, to delay or to cut. `Island` is a network namespace with an address of its own whose way back can
be made a black hole: packets are dropped without a word. PostgreSQL and PgBouncer are broken by their own classes.
"""
import concurrent.futures
import ctypes
import os
import random
import select
import shutil
import socket
import subprocess
import threading
import time

from ..base import StackError

CHUNK = 65536


class Proxy:
    """Forwards TCP from a port of its own to `target`, a (host, port).

    :param listener: a listening socket, if it is not to be one of 127.0.0.1
    """

    def __init__(self, target, listener=None):
        self.target = target
        self.mode = "forward"
        self.delay = 0.0            # seconds, each way
        self.accepted = 0
        self.pairs = set()
        self.forgotten = set()      # of the pairs
        self.lock = threading.Lock()
        self.socket = listener or socket.create_server(("127.0.0.1", 0))
        self.host, self.port = self.socket.getsockname()
        self.closed = False
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while not self.closed:
            try:
                client, _ = self.socket.accept()
            except OSError:
                return
            self.accepted += 1
            if self.mode == "refuse":
                # what a port without a server does: a reset
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                client.close()
                continue
            threading.Thread(target=self.forward, args=(client,), daemon=True).start()

    def forward(self, client):
        server = None
        try:
            while self.mode == "freeze" and not self.closed:
                time.sleep(0.02)    # a frozen proxy accepts and does nothing
            server = socket.create_connection(self.target, timeout=5)
            for side in (client, server):
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.lock:
                self.pairs.add((client, server))
            self.pump(client, server)
        except OSError:
            pass    # one side is gone, so the other goes
        finally:
            with self.lock:
                self.pairs.discard((client, server))
            for side in (client, server):
                if side:
                    side.close()

    def pump(self, client, server):
        other = {client: server, server: client}
        while not self.closed:
            ready, _, _ = select.select(list(other), [], [], 0.05 if self.mode == "forward" else 0.02)
            if self.mode == "freeze" or (client, server) in self.forgotten:
                time.sleep(0.02)
                continue
            for side in ready:
                data = side.recv(CHUNK)
                if not data:
                    return
                if self.delay:
                    time.sleep(self.delay)
                other[side].sendall(data)

    def cut(self):
        """End all connections at once, as a firewall that resets."""
        with self.lock:
            for pair in self.pairs:
                for side in pair:
                    try:
                        side.shutdown(socket.SHUT_RDWR)
                    except OSError:
                        pass    # ended by itself meanwhile

    def forget(self, ports):
        """As a firewall that lost its state: what reaches the target from these ports passes nothing any more, and
        nobody says so; all others do, and so does what is opened from now on."""
        with self.lock:
            self.forgotten |= {pair for pair in self.pairs if pair[1].getsockname()[1] in ports}

    def ports(self):
        """From which the target sees what is open."""
        with self.lock:
            return [server.getsockname()[1] for _, server in self.pairs]

    def refuse(self):
        self.mode = "refuse"
        self.cut()

    def refuse_new(self):
        """Those that are connected stay so."""
        self.mode = "refuse"

    def freeze(self):
        self.mode = "freeze"

    def heal(self):
        self.mode, self.delay = "forward", 0.0

    def close(self):
        self.closed = True
        self.cut()
        self.socket.shutdown(socket.SHUT_RDWR)      # closing alone would not end a waiting accept
        self.socket.close()


class Island:
    """A host of its own: a network namespace with one address, joined to ours by a cable.

    Needs root and iproute2; `why_not` says what is missing.
    """

    CLONE_NEWNET = 0x40000000
    NETS = range(256)       # N: 10.213.N.0/30

    def __init__(self):
        self.proxy = None

    @staticmethod
    def why_not():
        """Why this machine cannot have one, or None."""
        if not shutil.which("ip"):
            return "network namespaces need the program ip (Debian: iproute2)"
        name = f"bus-alt-try-{os.getpid()}"
        tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
        if tried.returncode:
            return f"network namespaces are not to be had here: {tried.stderr.strip()}"
        subprocess.run(["ip", "netns", "del", name], check=False)
        return None

    def ip(self, *args, inside=False):
        where = ["-n", self.name] if inside else []
        subprocess.run(["ip", *where, *args], check=True, capture_output=True, text=True)

    def claim(self):
        """Make a namespace whose name claims a net that nobody uses: several runs may go on here, and one that was
        killed leaves its own behind."""
        for net in random.sample(self.NETS, len(self.NETS)):
            self.name = self.cable = f"bus-alt-{net}"
            self.ours, self.address = f"10.213.{net}.1", f"10.213.{net}.2"
            made = subprocess.run(["ip", "netns", "add", self.name], capture_output=True)
            if made.returncode:
                continue
            taken = subprocess.run(["ip", "route", "show", "root", f"10.213.{net}.0/24"], capture_output=True).stdout
            if not taken:
                return
            subprocess.run(["ip", "netns", "del", self.name], check=False)
        raise StackError("no net of 10.213.0.0/16 is free for a network namespace; see `ip netns` and `ip route`")

    def __enter__(self):
        self.claim()
        try:
            self.ip("link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", self.name)
            self.ip("addr", "add", f"{self.ours}/30", "dev", self.cable)
            self.ip("link", "set", self.cable, "up")
            self.ip("addr", "add", f"{self.address}/30", "dev", "eth0", inside=True)
            for device in ("lo", "eth0"):
                self.ip("link", "set", device, "up", inside=True)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc):
        if self.proxy:
            self.proxy.close()
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", self.cable], check=False, capture_output=True)

    def inside(self, function):
        """What `function()` returns on the island: what it opens or starts belongs there."""
        def call():     # in a thread of its own, whose namespace that is
            with open(f"/run/netns/{self.name}") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), self.CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            return function()

        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            return threads.submit(call).result()

    def serve(self, target):
        """A Proxy that listens on the island and forwards to `target` of ours."""
        self.proxy = Proxy(target, listener=self.inside(lambda: socket.create_server((self.address, 0))))
        return self.proxy

    def drop(self):
        """From now on nothing comes back from the island, and nobody says so."""
        self.ip("route", "replace", "blackhole", f"{self.ours}/32", inside=True)

    def heal(self):
        self.ip("route", "del", "blackhole", f"{self.ours}/32", inside=True)
