"""A job of Odoo's cron that is triggered, and how long it takes to run."""
import contextlib
import time

from ..process import DEADLINE, wait_until
from .client import OdooError

# Seconds from a trigger to its job: some tenths; upstream's slow clock takes up to 60. It can only be too long.
QUICK = 15.0


@contextlib.contextmanager
def a_job(server, bus):
    """A function that triggers a job and returns how long it took to run, in seconds."""
    client, sender = bus(server)
    session = sender.session
    with scheduled(sender, "2100-01-01 00:00:00") as job:
        action = session.call_kw("ir.actions.server", "create", {
            "name": "Trigger it", "model_id": session.any_model(), "state": "code",
            "code": f"env['ir.cron'].browse({job})._trigger()"})

        def run():
            before = time.monotonic()
            session.call_kw("ir.actions.server", "run", [action])
            arrived = client.next()
            assert arrived and arrived.payload == "ran", f"triggered, and not run: {arrived}"
            return time.monotonic() - before

        yield run


@contextlib.contextmanager
def scheduled(sender, nextcall):
    """A job that sends "ran", at this time and each month after it; its id."""
    session = sender.session
    job = session.call_kw("ir.cron", "create", {
        "name": "Say so on the bus", "model_id": session.any_model(), "state": "code", "active": True,
        "interval_number": 1, "interval_type": "months", "nextcall": nextcall, **sender.facts.runs_again,
        "code": sender.orm_code(repr(sender.channel), "'ran'")})

    def remove():
        try:
            return session.call_kw("ir.cron", "unlink", [job])
        except OdooError as exc:        # its notification comes before Odoo is through with the job
            assert "currently being executed" in str(exc), exc
            return False

    yield job
    wait_until(remove, DEADLINE, "the job does not end")
