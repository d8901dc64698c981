"""One address for a browser, as nginx gives it in a deployment: websockets to the evented process, the rest to workers.

Contract: the path of a connection's first request decides. Browsers open a connection of its own for a websocket; that
is all this is for (a browser and `./dev demo --keep`), it is no web server. `with gateway.holding():` is an outage that
no request meets: those under way end first, what comes meanwhile waits.
"""
import asyncio
import contextlib
import re
import threading
from urllib.parse import urlsplit

from ..process import free_port

DEADLINE = 30       # seconds in which requests under way end
EVENTED = re.compile(rb"^\w+ /(websocket|longpolling/)")
# answered per connection: a browser would send its long polls on the connection of something else
CLOSE = (b"\r\n", b"\r\nConnection: close\r\n")


class Gateway:
    host = "127.0.0.1"

    def __init__(self, odoo):
        self.odoo = odoo
        self.port = free_port()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="gateway", daemon=True)
        self.tasks = set()      # one a connection; asyncio alone would forget those whose browser hung up
        self.requests = set()   # those of them that are no websocket and have reached Odoo
        self.open = asyncio.Event()
        self.open.set()

    @property
    def url(self):
        return f"http://{self.host}:{self.port}"

    def __enter__(self):
        self.thread.start()
        serving = asyncio.start_server(self.serve, self.host, self.port)
        asyncio.run_coroutine_threadsafe(serving, self.loop).result(10)
        return self

    def __exit__(self, *exc):
        asyncio.run_coroutine_threadsafe(self.hang_up(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()

    @contextlib.contextmanager
    def holding(self):
        """No request reaches Odoo, none is under way. Raises TimeoutError where one does not end."""
        asyncio.run_coroutine_threadsafe(self.hold(), self.loop).result(DEADLINE)
        try:
            yield
        finally:
            self.loop.call_soon_threadsafe(self.open.set)

    async def hold(self):
        self.open.clear()
        await asyncio.gather(*self.requests, return_exceptions=True)

    async def hang_up(self):
        """End the connections that are open."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def serve(self, reader, writer):
        upstream = None
        self.tasks.add(asyncio.current_task())
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            await self.open.wait()
            if b"upgrade: websocket" not in head.lower():
                self.requests.add(asyncio.current_task())
                head = re.sub(rb"\r\nConnection:[^\r]*", b"", head, flags=re.I).replace(*CLOSE, 1)
            target = urlsplit(self.odoo.evented_url if EVENTED.match(head) else self.odoo.url)
            incoming, upstream = await asyncio.open_connection(target.hostname, target.port)
            upstream.write(head)
            await asyncio.gather(self.pump(reader, upstream), self.pump(incoming, writer))
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass        # a side hung up, or Odoo is not there, or this ends: the browser sees the connection closed
        finally:
            self.tasks.discard(asyncio.current_task())
            self.requests.discard(asyncio.current_task())
            for end in (writer, upstream):
                if end:
                    end.close()

    @staticmethod
    async def pump(source, sink):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
        sink.write_eof()
