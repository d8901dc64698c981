"""A name server of its own: `192-0-2-1.test` is 192.0.2.1, and `192-0-2-1.192-0-2-2.test` has both addresses.

No such name is known while the file `nameless` is in BUS_TEST_FOLDER. For what Python resolves; libpq does not ask it.
"""
import os
import socket
from pathlib import Path

getaddrinfo = socket.getaddrinfo


def resolve(host, *args, **kwargs):
    if isinstance(host, str) and host.endswith(".test"):
        if (Path(os.environ["BUS_TEST_FOLDER"]) / "nameless").exists():
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        addresses = [each.replace("-", ".") for each in host[:-len(".test")].split(".")]
        return [found for address in addresses for found in getaddrinfo(address, *args, **kwargs)]
    return getaddrinfo(host, *args, **kwargs)


socket.getaddrinfo = resolve
