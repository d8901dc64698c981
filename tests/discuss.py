"""Two users who talk in Discuss, each in a browser of its own, as tests/test_browser.py and tests/screenshot.py see them.

Contract: `talk(stack, odoo, browser)` opens the same new channel for both, on pages that are loaded once. `exchange`
types a message in each of them and returns how many seconds passed from pressing Enter until it stood in the other.
"""
import contextlib
import secrets
import time

from stack.client import Session
from stack.gateway import Gateway

DATABASE = "discuss"
MODULES = ("base", "web", "bus", "mail")
CHANNEL = "general"
LOADED = 120        # seconds; the first page of a server waits until Odoo has compiled the web client's code and styles
COMPOSER = ".o-mail-Composer-input"
STANDS = """text => [...document.querySelectorAll(".o-mail-Thread .o-mail-Message-body")]
    .some(body => body.innerText.includes(text))"""


class Person:
    """A user at a browser."""

    def __init__(self, name, session, opened, gateway, path, size):
        self.name = name
        self.context = opened.new_context(viewport={"width": size[0], "height": size[1]}, base_url=gateway.url)
        self.context.add_cookies([{"name": "session_id", "value": session.http.cookies.get("session_id"),
                                   "url": gateway.url}])
        self.page = self.context.new_page()
        self.errors = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(path, timeout=LOADED * 1000)
        self.page.locator(COMPOSER).wait_for(timeout=LOADED * 1000)
        self.page.evaluate("window.loadedOnce = true")

    @property
    def same_page(self):
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
            raise AssertionError(f"{self.name} does not see {text!r} within {timeout} s; {self.errors[-3:]}") from None
        return time.monotonic()


class Talk:
    def __init__(self, people):
        self.people = people
        self.seconds = {}       # stage: how long it took, there and back

    def exchange(self, stage, within):
        """A message of each that the other sees within so many seconds."""
        for speaker, hearer in (self.people, self.people[::-1]):
            text = f"{speaker.name} {stage}"
            pressed = speaker.says(text)
            took = hearer.sees(text, within) - pressed
            self.seconds.setdefault(stage, []).append(took)
            print(f"  {text}: seen after {took:.2f} s", flush=True)
            assert took < within
        assert all(person.same_page for person in self.people), "a page was loaded again"

    def shots(self):
        """What both see now, as PNG."""
        return [person.page.screenshot() for person in self.people]


@contextlib.contextmanager
def talk(stack, odoo, opened, size=(1000, 600)):
    """Two users of a running Odoo on DATABASE, in the pages of the browser `opened`."""
    admin = Session(odoo, DATABASE)
    password, login = secrets.token_urlsafe(12), f"ben-{secrets.token_hex(4)}"
    user = admin.call_kw("res.users", "create", {"name": "Ben", "login": login, "password": password})
    partner, = admin.call_kw("res.users", "read", [user], ["partner_id"])
    channel = admin.call_kw("discuss.channel", "create", {"name": CHANNEL, "channel_type": "channel"})
    admin.call_kw("discuss.channel", "add_members", [channel], partner_ids=[partner["partner_id"][0]])
    path = odoo.facts.discuss_address.format(channel)
    with Gateway(odoo) as gateway:
        sessions = {"Ada": admin, "Ben": Session(odoo, DATABASE, login, password)}
        people = [Person(name, session, opened, gateway, path, size) for name, session in sessions.items()]
        try:
            found = Talk(people)
            # Whoever has just subscribed asks by itself once: what follows is pushed.
            found.exchange("is here", within=LOADED)
            yield found
        finally:
            for person in people:
                person.context.close()
