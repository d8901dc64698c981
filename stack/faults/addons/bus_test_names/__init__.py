"""A name server of its own: `192-0-2-1.test` is 192.0.2.1, and no such name is known while the file `nameless` is in
BUS_TEST_FOLDER.

For what Python resolves; libpq does not ask it.
"""
import os
import socket
from pathlib import Path

getaddrinfo = socket.getaddrinfo


def resolve(host, *args, **kwargs):
    if isinstance(host, str) and host.endswith(".test"):
        if (Path(os.environ["BUS_TEST_FOLDER"]) / "nameless").exists():
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        host = host[:-len(".test")].replace("-", ".")
    return getaddrinfo(host, *args, **kwargs)


socket.getaddrinfo = resolve
