"""apt, with lists and downloads of its own: the machine's stay as they are, and no root is needed.

Contract: the package lists of one day are a folder of the cache, read by everyone and written by nobody once they are
there. `Apt(lists, work)` asks them, and downloads into `work`. apt verifies signatures and hashes, tries again what a
mirror fails to deliver, and `Apt` does so once more with lists read anew: the mirror may have moved on since.
"""
import datetime
import hashlib
import os
import re
import shutil
import time
from pathlib import Path

from ..base import StackError, Unavailable, is_full, megabytes, progress, run, say

PAUSE = 3       # seconds before what failed is tried again
OPTIONS = {
    "Debug::NoLocking": "1",
    "APT::Sandbox::User": "",          # the sandbox user could not write to our folders
    "APT::Get::AllowUnauthenticated": "false",
    "APT::Update::Error-Mode": "any",
    "Acquire::Languages": "none",
    "Acquire::Retries": "3",
    "Acquire::http::Timeout": "30",
    "Acquire::https::Timeout": "30",
    # nothing is written beside the lists
    "Dir::Cache::pkgcache": "",
    "Dir::Cache::srcpkgcache": "",
}


def need_debian(what, error=StackError):
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise error(f"{what}, and this is not Debian: install it and put it on the PATH "
                    "(PostgreSQL and PgBouncer), set ODOO_HOME (Odoo), or use docker compose up")


def flags(options):
    return [part for name, value in options.items() for part in ("-o", f"{name}={value}")]


class Apt:
    """apt with the lists of one folder (`package_lists`, `release_lists`), which downloads into `work`.

    `alone`: as if no package were on this machine."""

    def __init__(self, lists, work=None, alone=False):
        lists = Path(lists)
        self.work = work and Path(work)
        self.options = {**OPTIONS, "Dir::State::Lists": lists / "lists"}
        if work:
            (self.archives / "partial").mkdir(parents=True, exist_ok=True)
            self.options |= {"Dir::Cache": work, "Dir::Cache::Archives": self.archives}
        if (lists / "sources.list").exists():
            self.options |= {"Dir::Etc::SourceList": lists / "sources.list", "Dir::Etc::SourceParts": "/dev/null",
                             "Acquire::Check-Valid-Until": "false"}     # an archived suite is signed for the last time
        if alone:
            (self.work / "status").touch()
            self.options["Dir::State::status"] = self.work / "status"
        self.env = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}

    @property
    def archives(self):
        return self.work / "archives"

    def call(self, tool, *args, failure, **kw):
        return run([tool, "-q", *flags(self.options), *args], failure, env=self.env, **kw)

    def update(self, lists, failure="could not read Debian's package lists: check the network and apt-get update"):
        """Read the package lists into this folder; again, from nothing, if that fails."""
        self.options["Dir::State::Lists"] = lists
        for left in (1, 0):
            shutil.rmtree(lists, ignore_errors=True)
            (lists / "partial").mkdir(parents=True)
            try:
                self.call("apt-get", "update", failure=failure)
                return
            except StackError as exc:
                if not left or is_full(exc):
                    raise
                say(f"{exc}: trying again in {PAUSE} s")
                time.sleep(PAUSE)

    def targets(self):
        """The package indexes of Debian itself, as dicts of apt's fields, the main suite first."""
        out = self.call("apt-get", "indextargets", "Created-By: Packages",
                        failure="apt-get indextargets failed: does apt work here?")
        found = [dict(re.findall(r"^([\w-]+): (.*)$", block, re.M)) for block in out.split("\n\n")]
        found = [t for t in found if (t.get("Origin"), t.get("Label")) == ("Debian", "Debian") and t.get("Site")]
        return sorted(found, key=lambda target: "-" in target.get("Codename", ""))

    def fields(self, package):
        """The newest record of a package as a dict, or {} when there is none."""
        try:
            out = self.call("apt-cache", "show", "--no-all-versions", package, failure="")
        except StackError:
            return {}
        return dict(re.findall(r"^([\w-]+): (.*)$", out, re.M))

    def names(self, prefix):
        return self.call("apt-cache", "pkgnames", prefix, failure="apt-cache failed").split()

    def install(self, what, packages, *flags):
        """Download what this machine lacks of these packages and their dependencies: paths of the .deb files.

        `what`: their name for the user."""
        return self.fetch(what, ["install", "--yes", "--download-only", "--no-install-recommends", *flags, *packages])

    def download(self, what, packages):
        """Download these packages alone: paths of the .deb files."""
        return self.fetch(what, ["download", *packages]) if packages else []

    def fetch(self, what, command):
        # what was downloaded before is not downloaded again, and not handed out again either
        before = set(self.archives.glob("*.deb"))
        try:
            self.try_fetch(what, command)
        except StackError as exc:
            if is_full(exc):
                raise
            say(f"{exc}: reading the package lists again and trying once more in {PAUSE} s")
            time.sleep(PAUSE)
            self.update(self.work / "lists")
            self.try_fetch(what, command)
        return sorted(set(self.archives.glob("*.deb")) - before)

    def try_fetch(self, what, command):
        failure = f"could not download {what}: check this machine's apt sources and network"
        uris = self.call("apt-get", "--print-uris", *command, cwd=self.archives, failure=failure)
        total = sum(int(size) for size in re.findall(r"^'[^']+' \S+ (\d+)", uris, re.M))
        before = self.downloaded()
        say(f"downloading {what} ({megabytes(total)})")
        with progress(lambda: f"{what}: {megabytes(self.downloaded() - before)} of {megabytes(total)} downloaded"):
            self.call("apt-get", *command, cwd=self.archives, failure=failure)

    def downloaded(self):
        """Bytes in the folder of downloads."""
        return sum(size(path) for path in self.archives.rglob("*.deb*"))

    def source(self, target, release):
        """A sources.list for another release of the mirror that a target comes from, trusted as that one is."""
        path, _, number = target.get("Sourcesentry", "").rpartition(":")
        text = Path(path).read_text() if path else ""
        entry = "".join(text.splitlines()[int(number) - 1:int(number)]) if number.isdigit() else ""
        named = re.search(r"signed-by\s*[:=]\s*(/[^\]\s]+)", text, re.I)
        # a machine may name the keys of its own release only, so the keyring of all releases goes first
        keyrings = ["/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp",
                    named and named[1]]
        keyring = next((path for path in keyrings if path and os.path.exists(path)), None)
        if re.match(r"deb\s+\[[^\]]*\btrusted=yes\b", entry):
            option = "[trusted=yes] "
        else:
            option = f"[signed-by={keyring}] " if keyring else ""
        return f"deb {option}{target['Site']} {release} main\n"


def size(path):
    try:
        return path.stat().st_size
    except OSError:
        return 0        # it has just got its final name


def package_lists(cache):
    """The lists of this machine's own apt sources, as of today."""
    uris = run(["apt-get", *flags(OPTIONS), "indextargets", "--no-release-info", "--format", "$(URI)"],
               "apt-get indextargets failed: does apt work here?")

    def make(folder, work):
        say("reading the package lists of this machine's apt sources")
        apt = Apt(folder)
        try:
            apt.update(folder / "lists")
        except StackError as exc:
            # A third party's source that is down must not stop us: what is missing shows when it is asked for.
            if is_full(exc) or not apt.fields("apt"):
                raise
            say(f"going on without a part of them: {exc}")
    return todays(cache, "own", uris, make)


def release_lists(cache, release):
    """The lists of another release, from this machine's own Debian mirror."""
    own = Apt(package_lists(cache))
    targets = own.targets()
    if not targets:
        raise Unavailable("no Debian mirror among this machine's apt sources: add one, or set ODOO_HOME")
    text = own.source(targets[0], release)

    def make(folder, work):
        say(f"reading the package list of Debian {release}")
        (folder / "sources.list").write_text(text)
        Apt(folder).update(folder / "lists")
    return todays(cache, release, text, make)


def made_of_release(cache, name, release, package, what, fill):
    """The folder of that name in the cache, made of a package of another Debian release.

    `what` it is, for the error; `fill(folder, apt, needs)` makes it: `needs` is what the package depends on.
    """
    def lists():
        try:
            return release_lists(cache, release)
        except StackError as exc:
            raise Unavailable(f"{what} cannot be had here: {exc}") from exc

    def make(folder, work, lists):
        apt = Apt(lists, work, alone=True)
        needs = apt.fields(package).get("Depends")
        if not needs:
            raise Unavailable(f"{what} cannot be had here: this machine's Debian mirror has no {package} of {release}")
        fill(folder, apt, needs)

    return cache.made(name, make, lists)


def todays(cache, name, sources, make):
    """The lists of these sources of today; those of older days are removed."""
    today = datetime.date.today()
    days = [(today - datetime.timedelta(days=age)).strftime("%Y%m%d") for age in range(2)]
    name = f"lists-{name}-{hashlib.sha256(sources.encode()).hexdigest()[:8]}"
    folder = cache.made(f"{name}-{days[0]}", make)
    for old in cache.folder.glob(f"{name}-*"):
        if old.name[len(name) + 1:] not in days:        # yesterday's may be in use, around midnight
            shutil.rmtree(old, ignore_errors=True)
    return folder


def unpack(what, debs, root):
    done = []
    with progress(lambda: f"{what}: {len(done)} of {len(debs)} packages unpacked"):
        for deb in debs:
            run(["dpkg-deb", "-x", deb, root], f"could not unpack {Path(deb).name}: is the disk full?")
            done.append(deb)


def library_path(root):
    """LD_LIBRARY_PATH for the programs of an unpacked folder: the multiarch folder first, then what lies in it."""
    folders = {path.parent for place in ("lib", "usr/lib") for path in Path(root).glob(f"{place}/*-linux-gnu/**/*.so*")}
    return ":".join(sorted(map(str, folders), key=lambda path: (path.count("/"), path)))
