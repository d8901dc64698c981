"""The cache: folders that are either complete or not there, whoever asks first and however a run ends.

Contract of `made(name, make, *needs)`: returns the folder `name` when it is complete. Unless an earlier run completed
it, `needs` are called, each without arguments, and then `make(folder, work, *their results)` fills `folder`; `work` is
for what is not kept. Both lie beside the others until `folder` is renamed, so that a kill leaves nothing under the
name; the next one to make anything removes what it left.

No deadlock, by construction: each name has a lock of its own, and nobody waits for a lock while they hold one. What the
making of a folder needs from the cache is therefore a need of it, and asking for it in `make` raises RuntimeError at
once, in the first test that goes there.

    <cache>/NAME/.complete      made
    <cache>/making/NAME/RANDOM  being made, or left by a process that was killed
    <cache>/locks/NAME          held by the process that makes it, whose id is in it
"""
import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

from ..base import StackError, is_full, say

FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
LITTLE = 16e6       # bytes: a disk with less than that left is the reason for whatever failed on it
PATIENCE = 10       # seconds to wait for a lock before saying so, each time twice as long as before
HELD = threading.local()


class Missing(Exception):
    """The folder is not there, and this Cache makes none."""


def cache_folder():
    if os.environ.get("BUS_ALT_CACHE"):
        return Path(os.environ["BUS_ALT_CACHE"]).expanduser().resolve()
    if os.geteuid() == 0:
        # not under root's home: the unprivileged user that PostgreSQL runs as could not read it
        return Path("/var/cache/bus-alt-connection")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "bus-alt-connection"


class Cache:
    def __init__(self, folder, makes=True):
        """`makes`: False has `made` raise Missing where it would make something."""
        self.folder = Path(folder)
        self.makes = makes

    def has(self, name):
        return (self.folder / name / ".complete").exists()

    def made(self, name, make, *needs):
        """The folder `name`; see the contract of this file. Raises StackError, with one line that says what to do."""
        if getattr(HELD, "name", None):
            raise RuntimeError(f"{name} was asked for in the making of {HELD.name}: name it as a need of that")
        if not self.has(name):
            if not self.makes:
                raise Missing(name)
            needed = [need() for need in needs]
            self.open()
            with self.explained():
                self.sweep()
                with self.locked(name):
                    if not self.has(name):
                        self.make(name, make, needed)
        return self.folder / name

    def make(self, name, make, needed):
        making = self.folder / "making" / name
        try:
            with self.explained():
                readable(making)
                # a name of its own: a program that outlives the process that was killed may still write into the last
                temporary = Path(tempfile.mkdtemp(dir=making))
                for path in (temporary, temporary / "new", temporary / "work"):
                    readable(path)
                make(temporary / "new", temporary / "work", *needed)
                (temporary / "new" / ".complete").touch()
                shutil.rmtree(self.folder / name, ignore_errors=True)
                os.rename(temporary / "new", self.folder / name)
        finally:
            try:
                remove(making)
            except BaseException:
                remove(making)      # an interrupt may come now, too
                raise

    def open(self):
        """Make the cache folder, or say why it cannot be made."""
        with self.explained():
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in (self.folder, self.folder / "locks", self.folder / "making"):
                readable(path)

    def sweep(self):
        """Remove what killed processes left: what lies in making/ and has no lock that is held."""
        for name in os.listdir(self.folder / "making"):
            with self.lock_file(name) as lock, contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(self.folder / "making" / name)

    def lock_file(self, name):
        return open(self.folder / "locks" / name, "a+")

    @contextlib.contextmanager
    def locked(self, name):
        """Hold the lock of this name. It is the open file's: threads exclude each other as processes do."""
        with self.lock_file(name) as lock:
            since, said = time.monotonic(), 0
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    waited = time.monotonic() - since
                    if waited > PATIENCE * 2 ** said:
                        lock.seek(0)
                        say(f"waiting for process {lock.read().strip() or 'unknown'}, which makes {name} "
                            f"({waited:.0f} s so far)")
                        said += 1
                    time.sleep(0.05)
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            HELD.name = name
            try:
                yield
            finally:
                HELD.name = None

    @contextlib.contextmanager
    def explained(self):
        """Have a full or a read-only disk say what to do, whichever program met it."""
        try:
            yield
        except OSError as exc:
            if exc.errno in FULL:
                raise StackError(self.full()) from exc
            if exc.errno in REFUSED:
                raise StackError(f"cannot write the cache folder {self.folder} ({exc.strerror}): set BUS_ALT_CACHE to "
                                 "a folder of yours") from exc
            raise
        except StackError as exc:
            if is_full(exc) or self.left() < LITTLE:
                raise StackError(self.full()) from exc
            raise

    def left(self):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(self.folder).free
        return LITTLE

    def full(self):
        return (f"the disk of the cache folder {self.folder} is full: free some space there (./dev demo needs 3 GB, "
                "./dev test 5 GB), or set BUS_ALT_CACHE to a folder on another disk")


def remove(folder):
    """Remove a folder into which a program that was ended may write for a moment more: tar, of a dpkg-deb."""
    deadline = time.monotonic() + PATIENCE
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            time.sleep(0.05)


def readable(folder):
    """Make the folder, for every user to read: PostgreSQL, which refuses root, runs as another one."""
    folder.mkdir(exist_ok=True)
    if folder.stat().st_uid == os.geteuid():
        folder.chmod(0o755)
