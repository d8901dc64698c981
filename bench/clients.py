"""Cheap websocket clients, thousands of them in one thread, and a sender that costs as little as a sender can.

Contract: a `Swarm` keeps who received what and when (time.monotonic()). A client that is cut off opens its websocket
again and asks for what came after its last id, as the web client does.
"""
import asyncio
import base64
import functools
import json
import os
import struct
import threading
import time

from stack.clients.client import Session, compact, subscription
from stack.process import wait_until
from stack.servers.postgres import ODOO_USER

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
AT_ONCE = 50        # websockets that are opened at the same time
TIMEOUT = 60        # seconds that an answer is waited for


def frame(opcode, payload):
    """A client's frame; with a mask of zeros the payload stays as it is."""
    size = len(payload)
    head = bytes([0x80 | opcode, 0x80 | size]) if size < 126 else bytes([0x80 | opcode, 0xFE]) + struct.pack("!H", size)
    return head + b"\0\0\0\0" + payload


@functools.cache
def login(odoo, database):
    """A session of an Odoo that stays up; logging in is made to be slow."""
    return Session(odoo, database)


class Client(asyncio.Protocol):
    """One websocket. `received` is [(id, time)]."""

    def __init__(self, swarm, channels, last):
        self.swarm, self.channels, self.last = swarm, channels, last
        self.received = []
        self.buffer, self.upgraded, self.transport = b"", False, None
        self.pong = None        # a future of the answer to a ping
        self.closing = False

    async def open(self):
        """Return when the server has handled the subscription."""
        self.buffer, self.upgraded = b"", False
        self.pong = self.swarm.loop.create_future()
        odoo = self.swarm.odoo
        await self.swarm.loop.create_connection(lambda: self, odoo.host, self.swarm.port)
        await asyncio.wait_for(self.pong, TIMEOUT)

    def connection_made(self, transport):
        self.transport = transport
        key = base64.b64encode(os.urandom(16)).decode()
        transport.write((f"GET /websocket HTTP/1.1\r\nHost: {self.swarm.odoo.host}:{self.swarm.port}\r\n"
                         "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                         f"Sec-WebSocket-Key: {key}\r\nOrigin: {self.swarm.odoo.url}\r\n"
                         f"{self.credentials()}\r\n\r\n").encode())

    def credentials(self):
        """The header that says who this is, and in which database."""
        return f"Cookie: session_id={self.swarm.cookie}"

    def data_received(self, data):
        self.buffer += data
        if not self.upgraded:
            head, found, rest = self.buffer.partition(b"\r\n\r\n")
            if not found:
                return
            if b" 101 " not in head.split(b"\r\n")[0]:
                self.transport.close()
                return
            self.upgraded, self.buffer = True, rest
            self.transport.write(frame(TEXT, subscription(self.channels, self.last).encode()) + frame(PING, b""))
        while len(self.buffer) >= 2:
            size, head = self.buffer[1], 2
            if size >= 126:
                head = 4 if size == 126 else 10
                size = int.from_bytes(self.buffer[2:head], "big")
            if len(self.buffer) < head + size:
                return
            opcode, payload = self.buffer[0] & 15, self.buffer[head:head + size]
            self.buffer = self.buffer[head + size:]
            self.handle(opcode, payload)

    def handle(self, opcode, payload):
        at = time.monotonic()
        if opcode == TEXT:
            for entry in json.loads(payload):
                self.last = max(self.last, entry["id"])
                self.received.append((entry["id"], at))
                self.swarm.arrived += 1
        elif opcode == PONG and self.pong and not self.pong.done():
            self.pong.set_result(at)
        elif opcode == PING:
            self.transport.write(frame(PONG, payload))
        elif opcode == CLOSE:
            self.transport.close()

    def connection_lost(self, exc):
        if self.pong and not self.pong.done():
            self.pong.set_exception(ConnectionError("cut off"))
            self.pong.exception()       # seen, also where nobody waits
        if not self.closing:
            self.swarm.loop.call_later(1, lambda: self.closing or self.swarm.loop.create_task(self.again()))

    async def again(self):
        self.swarm.reopened += 1
        try:
            await self.open()
        except (OSError, TimeoutError):
            pass        # connection_lost tries again


class Swarm:
    """`count` clients of an Odoo; `channels(number)` says what a client subscribes to."""

    def __init__(self, odoo, database, count, channels, last=0, kind=Client):
        self.odoo, self.database = odoo, database
        self.port = odoo.evented_port if odoo.workers else odoo.http_port
        self.arrived = self.reopened = 0
        self.loop = asyncio.new_event_loop()
        self.clients = [kind(self, channels(number), last) for number in range(count)]
        self.thread = threading.Thread(target=self.loop.run_forever, name="swarm", daemon=True)

    @functools.cached_property
    def cookie(self):
        return login(self.odoo, self.database).http.cookies["session_id"]

    def call(self, coroutine, timeout=300):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout)

    def __enter__(self):
        self.thread.start()
        self.call(self.open_all())
        return self

    async def open_all(self):
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(client):
            async with gate:
                await client.open()
        await asyncio.gather(*map(one, self.clients))

    def __exit__(self, *exc):
        self.call(self.close_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()

    async def close_all(self):
        for client in self.clients:
            client.closing = True
            if client.transport:
                client.transport.abort()
        await asyncio.sleep(0.05)

    def wait(self, number, timeout=5):
        """Wait until every client has this id: whether they do."""
        deadline = time.monotonic() + timeout
        while any(client.last < number for client in self.clients):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.0005)      # the swarm's thread receives, this one looks
        return True

    def settle(self, timeout=5):
        """Wait until nothing has come for a moment: what a subscription serves at once is no measure."""
        before = -1

        def quiet():
            nonlocal before
            known, before = before, self.arrived
            time.sleep(0.1)     # the moment in which nothing comes
            return known == self.arrived
        wait_until(quiet, timeout, "it does not come to rest")


class Sender:
    """Inserts and notifies as Odoo does, on connections that stay open as Odoo's do."""

    def __init__(self, pooler, database):
        self.database = database
        self.rows = pooler.connect(database, user=ODOO_USER)
        self.notifies = pooler.connect("postgres", user=ODOO_USER)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.rows.close()
        self.notifies.close()

    def insert(self, channels):
        """One row for each channel, in one transaction; it is committed when this returns. Returns their ids."""
        message = compact({"type": "bench", "payload": 1})
        with self.rows.cursor() as cr:
            cr.execute("INSERT INTO bus_bus (channel, message, create_date, write_date, create_uid, write_uid)"
                       " SELECT channel, %s, now() at time zone 'UTC', now() at time zone 'UTC', 1, 1"
                       " FROM unnest(%s) channel RETURNING id", [message, [self.wire(name) for name in channels]])
            return [number for number, in cr.fetchall()]

    def notify(self, payloads):
        """One NOTIFY for each payload, in one transaction, where PostgreSQL drops those that are the same."""
        with self.notifies.cursor() as cr:
            cr.execute("SELECT pg_notify('imbus', payload) FROM unnest(%s) payload", [list(payloads)])

    def wire(self, channel):
        return compact([self.database, channel])
