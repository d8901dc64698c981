"""Two users who talk in Discuss, each in a browser of its own: what the browser tests need.

Contract: `talk(stack, odoo, browser)` opens a new channel for both, on pages that are loaded once. `exchange` types a
message in each of them, and fails unless it stands in the other one in time. `seconds` has the times from pressing
Enter until then, in both directions; `shots` what both pages showed at the end of each exchange. `gateway` is the
address that both pages use.
"""
import contextlib
import secrets
import time

from .. import StackError
from ..servers.gateway import Gateway
from .client import Session

DATABASE = "discuss"
MODULES = ("base", "web", "bus", "mail")
LOADED = 180        # seconds; the first page waits until Odoo has compiled the web client's code and styles
SUBSCRIBED = 60
SIZE = {"width": 1000, "height": 600}     # of a page, in pixels
COMPOSER = ".o-mail-Composer-input"
MESSAGE = ".o-mail-Thread .o-mail-Message-body"
STANDS = f"text => [...document.querySelectorAll('{MESSAGE}')].some(body => body.innerText.trim() === text)"


class Person:
    """A user at a browser."""

    def __init__(self, name, session, opened, gateway, path):
        self.name = name
        self.context = opened.new_context(viewport=SIZE, base_url=gateway.url)
        self.context.add_cookies([{"name": "session_id", "value": session.http.cookies.get("session_id"),
                                   "url": gateway.url}])
        self.page = self.context.new_page()
        self.errors = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(path, timeout=LOADED * 1000)
        self.page.locator(COMPOSER).wait_for(timeout=LOADED * 1000)
        self.page.evaluate("window.loadedOnce = true")

    def on_same_page(self):
        """Whether it is still the page that was opened."""
        return self.page.evaluate("window.loadedOnce === true")

    def says(self, text):
        """Type it and send it: time.monotonic() of pressing Enter."""
        self.page.locator(COMPOSER).fill(text)
        pressed = time.monotonic()
        self.page.locator(COMPOSER).press("Enter")
        return pressed

    def sees(self, text, timeout):
        """Wait until it stands there: time.monotonic() of then."""
        from playwright.sync_api import TimeoutError
        try:
            self.page.wait_for_function(STANDS, arg=text, polling=10, timeout=timeout * 1000)
        except TimeoutError:
            raise AssertionError(f"{self.name} does not see {text!r} within {timeout} s; errors of the page: "
                                 f"{self.errors[-3:] or 'none'}") from None
        return time.monotonic()


class Talk:
    def __init__(self, people, gateway):
        self.people, self.gateway = people, gateway
        self.seconds, self.shots = {}, {}       # stage -> one for each speaker; stage -> PNG of each person's page

    def exchange(self, stage, within):
        """A message of each that the other sees within so many seconds."""
        self.seconds[stage] = []
        try:
            for speaker, hearer in (self.people, self.people[::-1]):
                pressed = speaker.says(self.text(speaker, stage))
                took = hearer.sees(self.text(speaker, stage), within) - pressed
                self.seconds[stage].append(took)
                assert took < within, f"{hearer.name} saw {stage!r} after {took:.1f} s"
        finally:
            self.shots[stage] = [person.page.screenshot() for person in self.people]
        assert all(person.on_same_page() for person in self.people), "a page was loaded again"

    @staticmethod
    def text(speaker, stage):
        return f"{speaker.name}, {stage}"

    def times(self):
        """For people: before 0.20 and 0.21 s, after ..."""
        return ", ".join(f"{stage} {' and '.join(f'{each:.2f}' for each in seconds)} s"
                         for stage, seconds in self.seconds.items())

    def save(self, folder):
        """What was shown, as files."""
        for stage, pages in self.shots.items():
            for person, shot in zip(self.people, pages, strict=True):
                (folder / f"{stage} {person.name}.png".replace(" ", "-")).write_bytes(shot)


@contextlib.contextmanager
def talk(stack, odoo, opened):
    """Two users of a running Odoo on DATABASE, in the browser `opened`."""
    if not odoo.facts.discuss_address:
        raise StackError(f"{odoo.facts} has no Discuss with an address of its own")
    admin = Session(odoo, DATABASE)
    password, login = secrets.token_urlsafe(12), f"ben-{secrets.token_hex(4)}"
    # without the tour that points at things to click
    admin.call_kw("res.users", "write", [admin.uid], {"name": "Ada", "tour_enabled": False})
    user = admin.call_kw("res.users", "create", {"name": "Ben", "login": login, "password": password})
    partner = admin.call_kw("res.users", "read", [user], ["partner_id"])[0]["partner_id"][0]
    channel = admin.call_kw("discuss.channel", "create", {"name": "lunch", "channel_type": "channel"})
    admin.call_kw("discuss.channel", "add_members", [channel], partner_ids=[partner])
    path = odoo.facts.discuss_address.format(channel)
    people = []
    with Gateway(odoo) as gateway:
        try:
            for name, session in {"Ada": admin, "Ben": Session(odoo, DATABASE, login, password)}.items():
                people.append(Person(name, session, opened, gateway, path))
            found = Talk(people, gateway)
            # who has just subscribed may ask by itself once: what follows was pushed
            found.exchange("here", within=SUBSCRIBED)
            yield found
        finally:
            for person in people:
                person.context.close()
