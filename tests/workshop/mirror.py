"""A Debian mirror and a Python package index on this machine, with tiny packages for some of what the stack fetches.

Contract: `Mirror(folder, pip)` serves on 127.0.0.1 until `close`. `environment(cache)` has a process use nothing else:
apt and pip are the real ones, and so is all that stack/ does; only what is downloaded is small. `fail` and `hold` have
the next requests for a path fail or wait. That all of the real things can be had is what .ci/run shows.
"""
import contextlib
import fnmatch
import functools
import hashlib
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import zipfile
from pathlib import Path

import pytest

from stack.base import REPO, run
from stack.download.cache import Cache, cache_folder
from stack.download.python import PUBLISHED, pip

DEADLINE = 180      # seconds: catches a hang, measures nothing
# package: (what it depends on, its files)
PACKAGES = {
    "apt": ("", {}),
    "postgresql": ("postgresql-15", {}),
    "postgresql-15": ("", {"usr/lib/postgresql/15/bin/initdb": b"", "usr/lib/postgresql/15/bin/postgres": b""}),
    "pgbouncer": ("", {"usr/sbin/pgbouncer": b""}),
    "haproxy": ("", {"usr/sbin/haproxy": b""}),
    "python3-pip-whl": ("", {}),            # its wheel is put in when it is built
    "ca-certificates": ("", {"usr/share/ca-certificates/small.crt": b"no certificate\n"}),
}
# one of each kind: Debian's, needed and optional; Python's, a group and an addon, which both need Debian's pip
ALL = ["programs", "haproxy", "packages-orjson", "published-19"]
FOLDERS = {"programs-postgresql-pgbouncer", "haproxy", "debian-pip", "published-19"}
ORJSON = re.search(r"^orjson==(\S+)", (REPO / "stack/requirements-orjson.txt").read_text(), re.M)[1]

QUICK = "from stack.download import apt, python; apt.PAUSE = python.PAUSE = 0.2\n"
ASK = QUICK + """
import os, sys
from stack.download.cache import Cache, cache_folder
from stack.download.fetch import THINGS
for name in sys.argv[1:]:
    THINGS[name](Cache(cache_folder()))
    print("has", name, flush=True)
"""
FETCH = QUICK + """
import sys
from stack.base import StackError
from stack.download.cache import Cache, cache_folder
from stack.download.fetch import fetch
try:
    fetch(Cache(cache_folder()), sys.argv[1:])
except StackError as exc:
    sys.exit(f"error: {exc}")
except KeyboardInterrupt:
    sys.exit(130)
"""


class Handler(http.server.SimpleHTTPRequestHandler):
    mirror = None

    def do_GET(self):
        if not self.mirror.intercept(self):
            super().do_GET()

    def begin(self, length):
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *_):
        pass


class Mirror:
    def __init__(self, folder, pip):
        """`pip`: the folder of an importable one."""
        self.folder = Path(folder)
        self.failures = []      # (pattern of a path, how, {path: times seen}, times)
        self.held = {}          # pattern of a path -> (asked, go on), two events
        self.asked = []
        (self.folder / "pool").mkdir(parents=True)
        content = {f"pip/{path.relative_to(pip)}": path.read_bytes() for path in pip.rglob("*") if path.is_file()}
        self.pip = wheel(self.folder / "pip-9-py3-none-any.whl", content).read_bytes()
        for name in PACKAGES:
            self.package(name)
        self.lists()
        self.project("orjson", ORJSON)
        self.project(PUBLISHED, "19.0.1.0.0", {"odoo/addons/bus_alt_connection/__manifest__.py": b"{}\n"})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(
            type("Handler", (Handler,), {"mirror": self}), directory=str(self.folder)))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        (self.folder / "sources.list").write_text(f"deb [trusted=yes] {self.url} stable main\n")
        (self.folder / "status").touch()
        (self.folder / "apt.conf").write_text(
            f'Dir::Etc::SourceList "{self.folder}/sources.list";\nDir::Etc::SourceParts "/dev/null";\n'
            f'Dir::State::status "{self.folder}/status";\nAcquire::Retries::Delay "false";\n'
            'Acquire::http::Proxy "DIRECT";\n')

    # -- what it serves

    def package(self, name, files=None):
        """Build a package. `files`: more of them, {path: bytes}."""
        tree = self.folder / "tree"
        depends, own = PACKAGES[name]
        wheels = {"usr/share/python-wheels/pip-9-py3-none-any.whl": self.pip} if name == "python3-pip-whl" else {}
        control = (f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\n"
                   + (f"Depends: {depends}\n" if depends else "") + f"Description: {name}, but tiny\n")
        for path, content in {"DEBIAN/control": control.encode(), **own, **wheels, **(files or {})}.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(content)
        run(["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", tree, self.folder / "pool" / f"{name}.deb"],
            "no package built")
        shutil.rmtree(tree)

    def lists(self):
        """Write the package lists."""
        records = []
        for deb in sorted((self.folder / "pool").glob("*.deb")):
            control = run(["dpkg-deb", "-f", deb], "a package without a record").strip()
            records.append(f"{control}\nFilename: pool/{deb.name}\nSize: {deb.stat().st_size}\n"
                           f"SHA256: {hashlib.sha256(deb.read_bytes()).hexdigest()}\n")
        text = "\n".join(records)
        architecture = run(["dpkg", "--print-architecture"], "no dpkg").strip()
        folder = self.folder / "dists/stable"
        index = folder / f"main/binary-{architecture}/Packages"
        index.parent.mkdir(parents=True, exist_ok=True)
        index.write_text(text)
        (folder / "Release").write_text(
            f"Origin: Debian\nLabel: Debian\nSuite: stable\nCodename: stable\nArchitectures: {architecture}\n"
            "Components: main\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n"
            f" {hashlib.sha256(text.encode()).hexdigest()} {len(text)} {index.relative_to(folder)}\n")

    def project(self, name, version, files=None):
        """A wheel of this name, in the index."""
        module, folder = name.replace("-", "_"), self.folder / "simple" / name
        info = f"{module}-{version}.dist-info"
        content = {f"{module}/__init__.py": f"version = {version!r}\n".encode(),
                   f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
                   f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
                   **(files or {})}
        content[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*content, f"{info}/RECORD"]).encode()
        folder.mkdir(parents=True, exist_ok=True)
        made = wheel(folder / f"{module}-{version}-py3-none-any.whl", content)
        (folder / "index.html").write_text(
            f'<a href="{made.name}#sha256={hashlib.sha256(made.read_bytes()).hexdigest()}">{made.name}</a>\n')

    # -- faults

    def fail(self, pattern, how="cut", times=1):
        """Have the next requests for each path like this fail: "cut" in the middle, with "wrong" bytes, or a status."""
        self.failures.append((pattern, how, {}, times))

    def hold(self, pattern):
        """Have requests for paths like this stop in the middle: (an event when one came, an event to have it go on)."""
        self.held[pattern] = threading.Event(), threading.Event()
        return self.held[pattern]

    def intercept(self, request):
        """Whether a fault has answered the request."""
        self.asked.append(request.path)
        path = self.folder / request.path.lstrip("/")
        path = path / "index.html" if path.is_dir() else path
        if not path.is_file():
            return False
        data, half = path.read_bytes(), path.stat().st_size // 2
        for pattern, how, seen, times in self.failures:
            if fnmatch.fnmatch(request.path, pattern) and seen.setdefault(request.path, 0) < times:
                seen[request.path] += 1
                request.close_connection = True
                if isinstance(how, int):
                    request.send_error(how)
                else:
                    request.begin(len(data))
                    request.wfile.write(data[:half] if how == "cut" else bytes(len(data)))
                return True
        for pattern, (asked, go_on) in self.held.items():
            if fnmatch.fnmatch(request.path, pattern):
                request.begin(len(data))
                request.wfile.write(data[:half])
                request.wfile.flush()
                asked.set()
                go_on.wait(60)
                with contextlib.suppress(OSError):      # it may have been killed since
                    request.wfile.write(data[half:])
                return True
        return False

    def calm(self):
        """No more faults."""
        self.failures.clear()
        for _, go_on in self.held.values():
            go_on.set()
        self.held.clear()
        self.asked.clear()

    def environment(self, cache):
        """The environment of a process that fills this cache folder from here, and uses nothing of this machine's."""
        # apt would go to the machine's own mirror without this file, without a word
        assert all(path.stat().st_mode & 0o001 for path in (self.folder, *self.folder.parents)), "closed to other users"
        clean = {name: value for name, value in os.environ.items()
                 if not name.startswith(("PIP_", "BUS_ALT_", "ODOO_")) and not name.lower().endswith("_proxy")}
        return {**clean, "BUS_ALT_CACHE": str(cache), "BUS_ALT_PROGRAMS": "download", "APT_CONFIG":
                str(self.folder / "apt.conf"), "PIP_INDEX_URL": f"{self.url}/simple", "PIP_CONFIG_FILE": os.devnull,
                "PYTHONDONTWRITEBYTECODE": "1"}

    def close(self):
        self.calm()
        self.server.shutdown()
        self.server.server_close()


def wheel(path, content):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def start(python, code, *args, env, **kw):
    """A process of a group of its own that runs this code with the checkout on its path."""
    return subprocess.Popen([python, "-c", code, *args], env=env, cwd=REPO, text=True, start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kw)


def ended(process):
    """What it printed; it ended in time."""
    try:
        return process.communicate(timeout=DEADLINE)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"it hangs; so far: {process.communicate()[0]}")


def finish(process):
    """What it printed; it ended in time and well."""
    output = ended(process)
    assert process.returncode == 0, output
    return output


def check(folder):
    """Everything of ALL is there, and is what the mirror had."""
    assert {path.parent.name for path in folder.glob("*/.complete")} >= FOLDERS
    assert not left(folder)
    assert (folder / "published-19/odoo/addons/bus_alt_connection/__manifest__.py").read_text() == "{}\n"
    assert (folder / "debian-pip/pip/__main__.py").exists() and (folder / "debian-pip/ca.pem").exists()
    orjson, = folder.glob("packages-orjson-*/orjson/__init__.py")
    assert ORJSON in orjson.read_text()


def left(folder):
    """What is being made, or was left by a process that ended in the middle."""
    return os.listdir(folder / "making")


def serve():
    """A mirror, or a skip where nothing could use it: for a fixture to yield from."""
    if not all(map(os.path.exists, ("/usr/bin/apt-get", "/usr/bin/dpkg-deb"))):
        pytest.skip("NOT TESTED: apt and dpkg are not here, and the real makers use them")
    command, _ = pip(Cache(cache_folder()))
    code = "import json, pip; print(json.dumps(pip.__path__[0]))"
    own = json.loads(run([command[0], "-c", code], "no pip")) if command[1] == "-m" else command[1]
    with tempfile.TemporaryDirectory(prefix="bus-alt-mirror-") as folder:
        os.chmod(folder, 0o755)     # for users without root too
        mirror = Mirror(Path(folder) / "served", Path(own))
        yield mirror
        mirror.close()
