"""What PostgreSQL knows of the listeners, asked of the server and of nobody else; and how often the log has a line."""
import datetime
import itertools
import math
import os
import re
from pathlib import Path

from ..process import DEADLINE, children, wait_until

# The addon names its connections so that a DBA knows them. What NOTIFYs has a name of its own, which a pooler's server
# connection has as well while it carries one.
NAMED = "^bus_alt_connection ({}) .*[0-9]+$"


def direct(postgres, server, name="bus|cron"):
    """The backends of a server's listeners: rows of (pid, application_name, state, query)."""
    pids = {str(pid) for pid in (server.pid, *children(server.pid))}
    return [row for row in postgres.query(
        "SELECT pid, application_name, state, query FROM pg_stat_activity WHERE application_name ~ %s ORDER BY pid",
        [NAMED.format(name)]) if row[1].rsplit(" ", 1)[1] in pids]


def wait_listening(postgres, server, name, count=1, timeout=DEADLINE):
    """Wait until so many listeners of this name LISTEN: their backends' pids."""
    def listen():
        rows = direct(postgres, server, name)
        # its latest statement is the LISTEN, or one that it sends later on
        return len(rows) == count and all(re.search("listen|notify", row[3], re.I) for row in rows)
    wait_until(listen, timeout, lambda: f"not {count} listeners {name!r} but {direct(postgres, server, name)}")
    return [row[0] for row in direct(postgres, server, name)]


def check_once_a_minute(pattern, log, least=1):
    """The lines of an Odoo's log that have a pattern; at least so many, and not two within a minute."""
    lines = [line for line in log.splitlines() if re.search(pattern, line)]
    times = [datetime.datetime.strptime(line[:19], "%Y-%m-%d %H:%M:%S") for line in lines]
    assert len(lines) >= least, f"no line of the log has {pattern}"
    assert not [later for time, later in itertools.pairwise(times) if (later - time).total_seconds() < 59], lines
    return lines


def backends_of(postgres, pids):
    """The backends whose client is one of these processes of this machine, asked of the kernel."""
    ports = client_ports(pids, postgres.port)
    return postgres.query(
        "SELECT pid, application_name, query FROM pg_stat_activity WHERE client_port = ANY(%s)", [list(ports)])


def keepalive_in(local_ports, remote_ports):
    """Seconds until the kernel next asks whether the other side is there, on a connection between such ports."""
    found = [math.inf]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, _, timer, *_ = line.split()
        ports = [int(address.split(":")[1], 16) for address in (local, remote)]
        if ports[0] in local_ports and ports[1] in remote_ports and timer.startswith("02:"):
            found.append(int(timer[3:], 16) / os.sysconf("SC_CLK_TCK"))
    return min(found)


def client_ports(pids, server_port):
    """The local ports of the TCP connections that processes hold to a server of this machine.

    Only together are the two ports the name of a connection: the kernel gives a local port to several at the same time
    if they lead to different servers.
    """
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = str(link.readlink())
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    ports = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, *_, inode = line.split()[:10]
        if inode in inodes and int(remote.split(":")[1], 16) == server_port:
            ports.add(int(local.split(":")[1], 16))
    return ports
