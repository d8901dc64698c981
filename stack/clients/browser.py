"""Chromium, headless, for those who see Odoo as its users do.

Contract: `chromium(cache)` gives what Playwright's `launch` takes: the browser of this machine if it has one, else
Debian's package and the libraries it lacks here, unpacked into the cache. Raises Unavailable, with one line that says
what to install, where neither can be had. `with browser(cache) as opened:` is a running one, its profile new and empty.
"""
import contextlib
import os
import shutil
from pathlib import Path

from ..base import StackError, Unavailable
from ..download.apt import Apt, library_path, package_lists, unpack

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--disable-quic", "--no-first-run"]
# one font, so that a page looks the same on every machine that has none of its own
FONTS = "<fontconfig><dir>{root}/usr/share/fonts</dir><cachedir>{root}/fonts-cache</cachedir></fontconfig>\n"


def chromium(cache):
    """{"executable_path": ..., "env": ...}"""
    installed = os.environ.get("BUS_ALT_PROGRAMS") != "download" and shutil.which("chromium")
    if installed:
        return {"executable_path": installed, "env": dict(os.environ)}

    def make(folder, work, lists):
        apt = Apt(lists, work)
        debs = apt.install("chromium", ["chromium"], "--reinstall")
        debs += apt.download("its font", ["fonts-roboto-unhinted"])
        unpack("chromium", debs, folder)
        (folder / "fonts.conf").write_text(FONTS.format(root=cache.folder / "chromium"))

    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise Unavailable("no browser: install Chromium and put it on the PATH as chromium")
    try:
        root = cache.made("chromium", make, lambda: package_lists(cache))
    except StackError as exc:
        raise Unavailable(f"no browser: install Chromium (Debian's package chromium) on the PATH ({exc})") from exc
    env = {**os.environ, "LD_LIBRARY_PATH": library_path(root), "FONTCONFIG_FILE": str(root / "fonts.conf")}
    # the script in usr/bin runs what a machine has installed
    return {"executable_path": root / "usr/lib/chromium/chromium", "env": env}


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
