"""Chromium, headless, for those who see Odoo as its users do.

Contract: `with browser(cache) as opened:` is a running one, its profile new and empty. Raises Unavailable, with one
line that says what to install, where there is none.
"""
import contextlib
from pathlib import Path

from ..base import Unavailable
from ..download.programs import chromium

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--disable-quic", "--no-first-run"]
@contextlib.contextmanager
def browser(cache):
    # in the virtual environment, if the group of requirements is
    from playwright.sync_api import Error, sync_playwright
    found = chromium(cache)
    with sync_playwright() as playwright:
        try:
            opened = playwright.chromium.launch(headless=True, args=FLAGS, **found)
        except Error as exc:
            raise Unavailable(f"{Path(found['executable_path'])} does not start: install Debian's package chromium "
                              f"({str(exc).strip().splitlines()[0]})") from exc
        try:
            yield opened
        finally:
            opened.close()
