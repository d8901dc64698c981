"""A Debian mirror and a Python package index on this machine, with a tiny package for each that the stack asks for.

Contract: `Mirror(folder)` serves on 127.0.0.1 until `close`. `environment(cache)` has a process use nothing else: apt
and pip are the real ones, and so is all that stack/ does; only what is downloaded is small. `fail` and `hold` have the
next requests for a path fail or wait.
"""
import contextlib
import fnmatch
import hashlib
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import zipfile
from pathlib import Path

import pytest

from stack.base import HERE, run
from stack.download.cache import Cache, cache_folder
from stack.download.fetch import THINGS
from stack.download.python import pip

DEADLINE = 60       # seconds: catches a hang, measures nothing
RELEASES = ("stable", "unstable", "bullseye")
RELEASE_PY = "version_info = ({series}, 0, 0, 'final', 0, '')\n"
ODOO = {"usr/bin/odoo": "", "usr/lib/python3/dist-packages/odoo/release.py": RELEASE_PY}
# package: (what it depends on, its files)
PACKAGES = {
    "apt": ("", {}),
    "postgresql": ("postgresql-15", {}),
    "postgresql-15": ("", {"usr/lib/postgresql/15/bin/initdb": "", "usr/lib/postgresql/15/bin/postgres": ""}),
    "pgbouncer": ("", {"usr/sbin/pgbouncer": ""}),
    "haproxy": ("", {"usr/sbin/haproxy": ""}),
    "patroni": ("", {}),
    "python3-etcd": ("", {}),
    "etcd-server": ("", {"usr/bin/etcd": ""}),
    "chromium": ("", {"usr/lib/chromium/chromium": ""}),
    "fonts-roboto-unhinted": ("", {}),
    "fonts-font-awesome": ("", {}),
    "libjs-small": ("", {}),
    "python3-pip-whl": ("", {}),            # its wheel is put in when it is built
    "ca-certificates": ("", {"usr/share/ca-certificates/small.crt": "no certificate\n"}),
    "odoo-19": ("libjs-small, fonts-font-awesome", {name: text.format(series=19) for name, text in ODOO.items()}),
    "odoo-14": ("python3-docutils, libjs-small", {name: text.format(series=14) for name, text in ODOO.items()}),
    "python3-docutils": ("", {"usr/lib/python3/dist-packages/docutils/__init__.py": "_ = '/usr/share/docutils/'\n"}),
    "prometheus": ("libjs-small, fonts-font-awesome", {"usr/bin/prometheus": ""}),
    "python3-prometheus-client": ("", {}),
    "libjs-d3": ("", {}),
}

# one of the groups of Python packages and one addon of the index, for all are asked for in the same way
ALL = [name for name in THINGS if not name.startswith(("packages-", "queue-job-"))] + ["packages-browser"]
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
FOLDERS = {"chromium", "haproxy", "odoo", "odoo-14", "debian-pip", "patroni", "programs-postgresql-pgbouncer",
           "prometheus", "published-19"}


class Mirror:
    def __init__(self, folder, pip):
        """`pip`: the folder of an importable one."""
        self.folder = Path(folder)
        self.failures = []      # (pattern of a path, how, times left)
        self.held = {}          # pattern of a path -> (asked, go on), two events
        self.asked = []
        (self.folder / "pool").mkdir(parents=True)
        self.pip = self.wheel(self.folder / "pip-9-py3-none-any.whl", {
            f"pip/{path.relative_to(pip)}": path.read_bytes() for path in pip.rglob("*") if path.is_file()})
        for name in PACKAGES:
            self.package(name)
        self.lists()
        pins = [pin for file in HERE.glob("requirements-*.txt") for pin in re.findall(r"^([\w.-]+)==(\S+)",
                                                                                      file.read_text(), re.M)]
        for name, version in {*pins, ("odoo-addon-bus-alt-connection", "19.0.1.0.0")}:
            self.project(name, version)
        mirror = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args):
                super().__init__(*args, directory=str(mirror.folder))

            def do_GET(self):
                if not mirror.intercept(self):
                    super().do_GET()

            def end_headers(self):
                if self.path.endswith(".whl"):
                    self.send_header("Cache-Control", "max-age=3600")     # for pip to keep
                super().end_headers()

            def log_message(self, *_):
                pass
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
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
        """Build a package. `files`: more of them, {path: text or bytes}."""
        tree = self.folder / "tree"
        depends, own = PACKAGES[name]
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "DEBIAN/control").write_text(
            f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\n"
            + (f"Depends: {depends}\n" if depends else "") + f"Description: {name}, but tiny\n")
        for path, content in {**own, **(files or {})}.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(content if isinstance(content, bytes) else content.encode())
        if name == "python3-pip-whl":
            (tree / "usr/share/python-wheels").mkdir(parents=True)
            shutil.copy(self.pip, tree / "usr/share/python-wheels")
        if name == "python3-docutils":
            # that release's Python: it has to run, and to compile what the other packages brought
            (tree / "usr/bin").mkdir(parents=True)
            interpreter = tree / "usr/bin/python3.9"
            interpreter.write_text('#!/bin/sh\nexec env -u LD_LIBRARY_PATH "$MIRROR_PYTHON" "$@"\n')
            interpreter.chmod(0o755)
        run(["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", tree, self.folder / "pool" / f"{name}.deb"],
            "no package built")
        shutil.rmtree(tree)

    def lists(self):
        """Write the package lists of each release; all of them have all packages."""
        records = []
        for deb in sorted((self.folder / "pool").glob("*.deb")):
            data = deb.read_bytes()
            control = run(["dpkg-deb", "-f", deb], "a package without a record").strip()
            records.append(f"{control}\nFilename: pool/{deb.name}\nSize: {len(data)}\n"
                           f"SHA256: {hashlib.sha256(data).hexdigest()}\n")
        text = "\n".join(records)
        architecture = run(["dpkg", "--print-architecture"], "no dpkg").strip()
        for release in RELEASES:
            folder = self.folder / "dists" / release
            index = folder / f"main/binary-{architecture}/Packages"
            index.parent.mkdir(parents=True, exist_ok=True)
            index.write_text(text)
            (folder / "Release").write_text(
                f"Origin: Debian\nLabel: Debian\nSuite: {release}\nCodename: {release}\nArchitectures: {architecture}\n"
                "Components: main\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n"
                f" {hashlib.sha256(text.encode()).hexdigest()} {len(text)} {index.relative_to(folder)}\n")

    def project(self, name, version, files=None):
        """A wheel of this name, in the index."""
        module = re.sub(r"[-.]+", "_", name)
        info = f"{module}-{version}.dist-info"
        folder = self.folder / "simple" / re.sub(r"[-_.]+", "-", name).lower()
        folder.mkdir(parents=True, exist_ok=True)
        content = {f"{module}/__init__.py": f"version = {version!r}\n",
                   "odoo/addons/bus_alt_connection/__manifest__.py": "{}\n" if "addon" in name else "",
                   f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
                   f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
                   **(files or {})}
        content = {path: data for path, data in content.items() if data}
        content[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*content, f"{info}/RECORD"])
        wheel = self.wheel(folder / f"{module}-{version}-py3-none-any.whl", content)
        (folder / "index.html").write_text(
            f'<a href="{wheel.name}#sha256={hashlib.sha256(wheel.read_bytes()).hexdigest()}">{wheel.name}</a>\n')

    def wheel(self, path, content):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        return path

    # -- faults

    def fail(self, pattern, how="cut", times=1):
        """Have the next requests for each path like this fail: "cut" in the middle, with "wrong" bytes, or a status."""
        self.failures.append((pattern, how, {}, times))

    def hold(self, pattern):
        """Have requests for paths like this stop in the middle: (an event when one came, an event to have it go on)."""
        self.held[pattern] = threading.Event(), threading.Event()
        return self.held[pattern]

    def intercept(self, request):
        self.asked.append(request.path)
        path = self.folder / request.path.lstrip("/")
        path = path / "index.html" if path.is_dir() else path
        for pattern, how, seen, times in self.failures:
            if fnmatch.fnmatch(request.path, pattern) and path.is_file() and seen.get(request.path, 0) < times:
                seen[request.path] = seen.get(request.path, 0) + 1
                if isinstance(how, int):
                    request.send_error(how)
                else:
                    data = path.read_bytes()
                    self.begin(request, len(data))
                    request.wfile.write(data[:len(data) // 2] if how == "cut" else bytes(len(data)))
                request.close_connection = True
                return True
        for pattern, (asked, go_on) in self.held.items():
            if fnmatch.fnmatch(request.path, pattern) and path.is_file():
                data = path.read_bytes()
                self.begin(request, len(data))
                request.wfile.write(data[:len(data) // 2])
                request.wfile.flush()
                asked.set()
                go_on.wait(60)
                with contextlib.suppress(OSError):      # it may have been killed since
                    request.wfile.write(data[len(data) // 2:])
                return True
        return False

    @staticmethod
    def begin(request, length):
        request.send_response(200)
        request.send_header("Content-Length", str(length))
        request.end_headers()

    def calm(self):
        """No more faults."""
        self.failures.clear()
        for _, go_on in self.held.values():
            go_on.set()
        self.held.clear()
        self.asked.clear()

    def environment(self, cache, python=sys.executable):
        """The environment of a process that fills this cache folder from here, and uses nothing of this machine's.

        `python`: what runs where Debian bullseye's own would."""
        # apt would go to the machine's own mirror without this file, without a word
        assert all(path.stat().st_mode & 0o001 for path in (self.folder, *self.folder.parents)), "closed to other users"
        clean = {name: value for name, value in os.environ.items()
                 if not name.startswith(("PIP_", "BUS_ALT_", "ODOO_")) and not name.lower().endswith("_proxy")}
        return {**clean, "BUS_ALT_CACHE": str(cache), "BUS_ALT_PROGRAMS": "download", "APT_CONFIG":
                str(self.folder / "apt.conf"), "PIP_INDEX_URL": f"{self.url}/simple", "PIP_CONFIG_FILE": os.devnull,
                "MIRROR_PYTHON": python, "PYTHONDONTWRITEBYTECODE": "1"}

    def close(self):
        self.calm()
        self.server.shutdown()
        self.server.server_close()


def processes(folder):
    """{id: command line} of the processes that name this folder, in their environment too, or are in it."""
    found, name = {}, str(folder).encode()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            known = (path / "environ").read_bytes() + (path / "cmdline").read_bytes()
            if name in known + os.readlink(path / "cwd").encode() and int(path.name) != os.getpid():
                found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue        # it has ended
    return found


def start(python, code, *args, env, **kw):
    """A process of a group of its own that runs this code with the checkout on its path."""
    return subprocess.Popen([python, "-c", code, *args], env=env, cwd=HERE.parent, text=True, start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kw)


def finish(process, timeout=DEADLINE):
    """What it printed; it ended in time and well."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"it hangs; so far: {process.communicate()[0]}")
    assert process.returncode == 0, output
    return output


def check(folder):
    """Everything of ALL is there, and is what the mirror had."""
    complete = {path.parent.name for path in folder.glob("*/.complete")}
    assert complete >= FOLDERS
    assert not left(folder)
    assert (folder / "published-19/odoo/addons/bus_alt_connection/__manifest__.py").read_text() == "{}\n"
    assert (folder / "debian-pip/pip/__main__.py").exists() and (folder / "debian-pip/ca.pem").exists()
    greenlet, = folder.glob("packages-browser-*/greenlet/__init__.py")
    assert "version" in greenlet.read_text()
    docutils = (folder / "odoo-14/usr/lib/python3/dist-packages/docutils/__init__.py").read_text()
    assert f"'{folder}/odoo-14/usr/share/docutils/'" in docutils


def left(folder):
    """What is being made, or was left by a process that ended in the middle."""
    return os.listdir(folder / "making")


def serve():
    """A mirror, or a skip where nothing could use it: for a fixture to yield from."""
    if not all(map(os.path.exists, ("/usr/bin/apt-get", "/usr/bin/dpkg-deb"))):
        pytest.skip("NOT TESTED: apt and dpkg are not here, and the real makers use them")
    with tempfile.TemporaryDirectory(prefix="bus-alt-mirror-") as folder:
        os.chmod(folder, 0o755)     # for users without root too
        mirror = Mirror(Path(folder) / "served", any_pip())
        yield mirror
        mirror.close()


def any_pip():
    """The folder of the pip that ./dev runs."""
    command, _ = pip(Cache(cache_folder()))
    if command[1] != "-m":
        return command[1]
    return Path(json.loads(run([command[0], "-c", "import json, pip; print(json.dumps(pip.__path__[0]))"], "no pip")))
