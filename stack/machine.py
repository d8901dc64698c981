"""Where the programs come from: PostgreSQL, PgBouncer, Odoo, and a Python environment to run it in.

Contract: `Machine.find(groups)` returns paths that work, or raises StackError with one line that says what to do.
Nothing is installed system-wide. What this machine lacks is downloaded once, checked, and unpacked into a cache folder:
programs and Odoo by apt (which verifies signatures and hashes), Python packages by pip (pinned, hashes from the index).
Only the standard library is imported here: this file runs before there is a virtual environment.

Environment:
  BUS_ALT_CACHE              the cache folder
  BUS_ALT_PROGRAMS=download  do not use the PostgreSQL and PgBouncer that are on this machine
  ODOO_HOME, ODOO_PYTHON     an Odoo of one's own (a source tree), and its interpreter

Odoo 19 runs on this machine's Python. Odoo 14 comes with the Python and the libraries of its own Debian release, all
but the C library: that one is this machine's, which runs programs that were built for an older one. So it needs no
root, no chroot and no container, and its processes are like any others.
"""
import contextlib
import fcntl
import glob
import hashlib
import os
import pwd
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPO = HERE.parent
# series -> the package, and the suite of Debian's that has it; the first is the one to take when nobody says
PACKAGES = {19: ("odoo-19", "unstable"), 14: ("odoo-14", "bullseye")}


class StackError(Exception):
    """An expected failure. Its text is one line that says what to do."""


class Unavailable(StackError):
    """This machine cannot have what was asked for, whatever its user does."""


def say(text):
    print(text, flush=True)


def run(command, failure, **kw):
    """Run to the end and return what it printed; when it fails, raise `failure` with its last line."""
    kw = {"stdin": subprocess.DEVNULL, "text": True, "errors": "replace", **kw}
    try:
        done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kw)
    except OSError as exc:
        raise StackError(f"{failure} ({exc})") from exc
    if done.returncode:
        lines = done.stdout.strip().splitlines() or ["it said nothing"]
        # apt and pip mark the line that matters; other programs end with it
        marked = [line for line in lines if line.startswith(("E:", "ERROR:"))]
        raise StackError(f"{failure} ({(marked or lines)[-1].strip()})")
    return done.stdout


# -- the cache ---------------------------------------------------------------------------------------------------------

def cache_folder():
    if os.environ.get("BUS_ALT_CACHE"):
        return Path(os.environ["BUS_ALT_CACHE"]).expanduser().resolve()
    if os.geteuid() == 0:
        # not under root's home: the unprivileged user that PostgreSQL runs as could not read it
        return Path("/var/cache/bus-alt-connection")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "bus-alt-connection"


class Cache:
    """Folders that are either complete or not there. One process fills it at a time, others wait."""

    def __init__(self, folder):
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise StackError(f"cannot write the cache folder {folder}: set BUS_ALT_CACHE to one you own") from exc
        self.holding = False

    @contextlib.contextmanager
    def locked(self):
        if self.holding:        # what fills one folder may need another first
            yield
            return
        with open(self.folder / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("another ./dev is filling the cache: waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            self.holding = True
            try:
                yield
            finally:
                self.holding = False

    def made(self, name, make):
        """The folder `name`, made by `make(folder)` unless an earlier run completed it."""
        folder = self.folder / name
        marker = folder / ".complete"
        if not marker.exists():
            with self.locked():
                if not marker.exists():
                    shutil.rmtree(folder, ignore_errors=True)
                    folder.mkdir(parents=True)
                    make(folder)
                    marker.touch()
        return folder


# -- Debian packages ---------------------------------------------------------------------------------------------------

class Apt:
    """apt with lists, sources and downloads of its own: the machine's stay as they are, no root needed."""

    def __init__(self, folder, sources=None, alone=False):
        """`sources`: what a sources.list says. `alone`: as if no package were on this machine."""
        self.folder = Path(folder)
        for sub in ("lists/partial", "archives/partial"):
            (self.folder / sub).mkdir(parents=True, exist_ok=True)
        options = {
            "Dir::State::Lists": self.folder / "lists",
            "Dir::Cache": self.folder,
            "Dir::Cache::Archives": self.folder / "archives",
            "Debug::NoLocking": "1",
            "APT::Sandbox::User": "",          # the sandbox user could not write to these folders
            "APT::Get::AllowUnauthenticated": "false",
            "Acquire::Languages": "none",
            "Acquire::Retries": "2",
        }
        if sources:
            (self.folder / "sources.list").write_text(sources)
            (self.folder / "no-parts").mkdir(exist_ok=True)
            options["Dir::Etc::SourceList"] = self.folder / "sources.list"
            options["Dir::Etc::SourceParts"] = self.folder / "no-parts"
            options["Acquire::Check-Valid-Until"] = "false"     # an archived suite is signed for the last time
        if alone:
            (self.folder / "status").touch()
            options["Dir::State::status"] = self.folder / "status"
        self.options = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        self.env = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}

    def call(self, tool, *args, failure, **kw):
        return run([tool, "-q", *self.options, *args], failure, env=self.env, **kw)

    def update(self, tolerant=True):
        try:
            self.call("apt-get", "update", failure="could not read Debian's package lists: check apt-get update")
        except StackError:
            # A third party's source that is down must not stop us: what is missing shows when it is asked for.
            if not tolerant:
                raise

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

    def clean(self):
        # what was unpacked is not needed again, and must not be unpacked with the next ones
        for path in (self.folder / "archives").glob("*.deb"):
            path.unlink()

    def install(self, packages, *flags):
        """Download what this machine lacks of these packages and their dependencies: paths of the .deb files."""
        self.clean()
        self.call("apt-get", "install", "--yes", "--download-only", "--no-install-recommends", *flags, *packages,
                  failure=f"could not download {', '.join(packages)}: check this machine's apt sources and network")
        return sorted((self.folder / "archives").glob("*.deb"))

    def download(self, packages):
        """Download these packages alone: paths of the .deb files."""
        self.clean()
        self.call("apt-get", "download", *packages, cwd=self.folder / "archives",
                  failure=f"could not download {', '.join(packages)}: check this machine's apt sources and network")
        return sorted((self.folder / "archives").glob("*.deb"))

    def names(self, prefix):
        return self.call("apt-cache", "pkgnames", prefix, failure="apt-cache failed").split()

    def keyring(self, target):
        """The keys that sign a Debian mirror's suites, or None where apt's own are trusted."""
        entry = target.get("Sourcesentry", "").rpartition(":")[0]
        named = re.search(r"signed-by\s*[:=]\s*(/[^\]\s]+)", Path(entry).read_text(), re.I) if entry else None
        # a machine may name the keys of its own suite only, so the keyring of all suites goes first
        for path in ("/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp",
                     named and named[1]):
            if path and os.path.exists(path):
                return path
        return None


def unpack(debs, root):
    for deb in debs:
        run(["dpkg-deb", "-x", deb, root], f"could not unpack {Path(deb).name}: is the disk full?")


def need_debian(what, error=StackError):
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise error(f"{what}, and this is not Debian: install it and put it on the PATH "
                    "(PostgreSQL and PgBouncer), set ODOO_HOME (Odoo), or use docker compose up")


# -- PostgreSQL and PgBouncer ------------------------------------------------------------------------------------------

def installed_postgres():
    """The folder of the newest PostgreSQL server's programs on this machine, or None."""
    folders = glob.glob("/usr/lib/postgresql/*/bin")
    folders.sort(key=lambda path: int(re.search(r"postgresql/(\d+)", path)[1]), reverse=True)
    if shutil.which("initdb"):
        folders.append(os.path.dirname(os.path.realpath(shutil.which("initdb"))))
    if shutil.which("pg_config"):
        folders.append(subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True).stdout.strip())
    for folder in folders:
        # pg_config alone proves nothing: it comes with the client's headers too
        if all(os.access(os.path.join(folder, name), os.X_OK) for name in ("initdb", "postgres")):
            return Path(folder)
    return None


def installed_pgbouncer():
    found = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


def programs(cache):
    """(folder of PostgreSQL's programs, PgBouncer, environment to run them with)"""
    forced = os.environ.get("BUS_ALT_PROGRAMS") == "download"
    pg_bin, pgbouncer = (None, None) if forced else (installed_postgres(), installed_pgbouncer())
    if pg_bin and pgbouncer:
        return pg_bin, pgbouncer, {}

    def make(folder):
        apt = Apt(cache.folder / "apt")
        say("reading the package lists of this machine's Debian mirror")
        apt.update()
        depends = apt.fields("postgresql").get("Depends", "")
        server = re.search(r"\bpostgresql-\d+\b", depends)
        if not server:
            raise StackError("this machine's apt sources have no PostgreSQL: add a Debian mirror to them")
        wanted = [server[0]] * (not pg_bin) + ["pgbouncer"] * (not pgbouncer)
        say(f"downloading {' and '.join(wanted)}")
        unpack(apt.install(wanted, *(["--reinstall"] if forced else [])), folder)

    need_debian("PostgreSQL or PgBouncer is missing")
    missing = "-".join(["postgresql"] * (not pg_bin) + ["pgbouncer"] * (not pgbouncer))
    root = cache.made("programs-" + missing, make)
    if not pg_bin:
        pg_bin = Path(max(glob.glob(f"{root}/usr/lib/postgresql/*/bin"), default=root))
    libraries = {os.path.dirname(path) for path in glob.glob(f"{root}/usr/lib/**/*.so.*", recursive=True)}
    libraries |= {os.path.dirname(path) for path in glob.glob(f"{root}/lib/**/*.so.*", recursive=True)}
    # the multiarch folder itself first, then what lies in folders of its own
    env = {"LD_LIBRARY_PATH": ":".join(sorted(libraries, key=lambda path: (path.count("/"), path)))}
    return pg_bin, pgbouncer or root / "usr/sbin/pgbouncer", env


# -- Python ------------------------------------------------------------------------------------------------------------

def requirement_files(groups):
    return [HERE / f"requirements-{group}.txt" for group in groups]


def pip_for(cache, python):
    """The command and the environment that run pip for a virtual environment which has none of its own."""
    env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    own = [sys.executable, "-m", "pip", "--python", python]
    if subprocess.run([*own, "--version"], capture_output=True).returncode == 0:
        return own, env

    def make(folder):
        apt = Apt(cache.folder / "apt")
        apt.update()
        say("downloading pip")
        unpack(apt.download(["python3-pip-whl", "ca-certificates"]), folder)
        certificates = sorted((folder / "usr/share/ca-certificates").rglob("*.crt"))
        (folder / "ca.pem").write_text("".join(path.read_text() for path in certificates))

    need_debian("this Python has no pip")
    root = cache.made("pip", make)
    # Debian's pip trusts the system's certificates only, which a bare machine has not got
    if not os.path.exists("/etc/ssl/certs/ca-certificates.crt"):
        env.setdefault("PIP_CERT", str(root / "ca.pem"))
    return [python, max(root.glob("usr/share/python-wheels/pip-*.whl")) / "pip"], env


def environment(cache, groups):
    """The python of a virtual environment that holds what stack/requirements-<group>.txt names."""
    # another interpreter needs another environment; another pin only another run of pip
    key = hashlib.sha256((sys.version + os.path.realpath(sys.executable)).encode()).hexdigest()[:12]
    folder = cache.made("venv-" + key, lambda folder: run(
        [sys.executable, "-m", "venv", "--without-pip", folder],
        "could not make a virtual environment: install Python 3 with its standard library"))
    python = folder / "bin" / "python"
    for group in groups:
        wanted = HERE / f"requirements-{group}.txt"
        marker = folder / f".{group}-{hashlib.sha256(wanted.read_bytes()).hexdigest()[:12]}"
        if not marker.exists():
            command, env = pip_for(cache, python)
            with cache.locked():
                say(f"installing the Python packages of stack/{wanted.name}")
                run([*command, "install", "--quiet", "--prefer-binary", "-r", wanted],
                    f"pip could not install stack/{wanted.name}: check the network and pip's settings", env=env)
                marker.touch()
    return python


# -- Odoo --------------------------------------------------------------------------------------------------------------

@dataclass
class OdooSource:
    """How to run one Odoo: `command` is the start of its command line."""
    command: list
    env: dict
    series: tuple
    addons: list = field(default_factory=list)      # addons folders that it does not find by itself
    own: bool = False                               # the user's: it may be another one in the next run


def read_series(folder):
    """(19, 0) from the odoo/release.py of a source tree, without importing Odoo."""
    text = (Path(folder) / "odoo" / "release.py").read_text()
    version = re.search(r"^version_info = \((.*?),(.*?),", text, re.M)
    # a version between the series is called 'saas~18', 3
    return tuple(int(re.search(r"\d+", part)[0]) for part in version.groups())


def given_odoo(home, python):
    home = Path(home).expanduser().resolve()
    for script, code in (("odoo-bin", "."), ("odoo.py", "."), ("usr/bin/odoo", "usr/lib/python3/dist-packages")):
        if (home / script).is_file() and (home / code / "odoo" / "release.py").is_file():
            addons = [str(home / "addons")] if (home / "addons").is_dir() else []
            return OdooSource([str(python), str(home / script)], {"PYTHONPATH": str(home / code)},
                              read_series(home / code), addons)
    raise StackError(f"ODOO_HOME={home} holds no Odoo: it should be a source tree with odoo-bin and odoo/release.py")


def suite(cache, name, alone=False):
    """Another suite of this machine's own Debian mirror, its package lists read: (its Apt, the machine's own)."""
    need_debian("ODOO_HOME is not set", Unavailable)
    own = Apt(cache.folder / "apt")
    own.update()
    debian = own.targets()
    if not debian:
        raise Unavailable("no Debian mirror among this machine's apt sources: add one, or set ODOO_HOME")
    keyring = own.keyring(debian[0])
    signed = f"[signed-by={keyring}] " if keyring else ""
    say(f"reading the package list of Debian {name}")
    apt = Apt(cache.folder / f"apt-{name}", f"deb {signed}{debian[0]['Site']} {name} main\n", alone)
    apt.update(tolerant=False)
    return apt, own


def debian_odoo(cache, python):
    """Debian's package of Odoo, unpacked beside the scripts and fonts that its static files link to."""
    wanted, release = PACKAGES[19]

    def make(folder):
        apt, own = suite(cache, release)
        names = [name for name in apt.names("odoo-") if re.fullmatch(r"odoo-\d+", name)]
        if not names:
            raise Unavailable(f"this machine's Debian mirror has no package of Odoo in {release}: set ODOO_HOME")
        package = wanted if wanted in names else max(names, key=lambda name: int(name[5:]))
        if package != wanted:
            say(f"{wanted} is gone from Debian {release}: taking {package}, which this was not tested with")
        # the links in its static folders lead to these; the font of icons is another one in unstable by now
        depends = re.findall(r"\b(?:libjs|fonts)-[\w.-]+", apt.fields(package)["Depends"])
        stable = [name for name in depends if name == "fonts-font-awesome"]
        say(f"downloading {package} and what it links to")
        unpack(apt.download([package, *(set(depends) - set(stable))]), folder)
        unpack(own.download(stable), folder)

    return given_odoo(cache.made("odoo", make), python)


def debian_odoo_whole(cache, series):
    """Debian's package of an older Odoo, with the Python and the libraries of its release: unpacked, not installed."""
    package, release = PACKAGES[series]

    def make(folder):
        try:
            apt, _ = suite(cache, release, alone=True)
        except StackError as exc:
            raise Unavailable(f"Odoo {series} cannot be had here: {exc}") from exc
        needs = apt.fields(package).get("Depends")
        if not needs:
            raise Unavailable(f"Odoo {series} cannot be had here: this machine's Debian mirror has no {package} of "
                              f"{release}")
        # not wkhtmltopdf, which nothing here prints with, nor the programs that make users and start services
        wanted = re.findall(r"\b(?:python3|libjs|fonts)-[\w.-]+", needs)
        say(f"downloading {package} and the Python of its release (150 MB)")
        # the metrics want one more than Odoo does
        debs = apt.install([*wanted, "python3-prometheus-client"])
        # a C library does not work without the loader it was built with, which lies at a fixed path
        unpack([deb for deb in debs if not deb.name.startswith(("libc6_", "libc-bin_"))], folder)
        unpack(apt.download([package]), folder)
        apt.clean()
        # Debian has this one look for its files at a fixed place
        docutils = folder / "usr/lib/python3/dist-packages/docutils/__init__.py"
        docutils.write_text(docutils.read_text().replace("'/usr/share/docutils/'", f"'{folder}/usr/share/docutils/'"))
        source = older_python(folder)
        # or else each process of each test would compile the same files again
        compiled = [folder / "usr/lib/python3/dist-packages", *folder.glob("usr/lib/python3.*")]
        run([source.command[0], "-W", "ignore", "-m", "compileall", "-q", "-j0",
             "-x", r"/odoo/addons/(?!base/|web/|bus/)|/tests?/", *compiled],
            f"the Python of {release} does not run here", env={**os.environ, **source.env})

    return older_python(cache.made(f"odoo-{series}", make))


def older_python(root):
    """The Odoo in a folder that holds the programs and libraries of a whole release."""
    source = given_odoo(root, max(root.glob("usr/bin/python3.[0-9]*")))
    libraries = [path for place in ("lib", "usr/lib") for path in sorted((root / place).glob("*-linux-gnu*"))]
    source.env.update(LD_LIBRARY_PATH=":".join(map(str, libraries)), OPENSSL_CONF=os.devnull,
                      PYTZ_TZDATADIR=str(root / "usr/share/zoneinfo"))
    return source


def find_odoo(cache, python, series=None):
    """The Odoo of one's own if there is one, else Debian's of this series."""
    home, own_python = os.environ.get("ODOO_HOME"), os.environ.get("ODOO_PYTHON")
    if home:
        source = given_odoo(home, own_python or python)
        source.own = True
        return source
    series = series or next(iter(PACKAGES))
    if series not in PACKAGES:
        raise Unavailable(f"Debian has no Odoo {series}: give a source tree with ODOO_HOME (packages: "
                          f"{', '.join(map(str, PACKAGES))})")
    return debian_odoo(cache, own_python or python) if series == 19 else debian_odoo_whole(cache, series)


# -- all of it ---------------------------------------------------------------------------------------------------------

@dataclass
class Machine:
    """What this machine runs the stack with."""
    python: Path            # has the requirement groups that were asked for
    pg_bin: Path
    pgbouncer: Path
    env: dict               # what PostgreSQL's and PgBouncer's programs need beyond the usual environment
    run_as: tuple           # (user id, group id) for those that refuse to run as root, or None
    odoo: OdooSource
    cache: Cache

    @classmethod
    def find(cls, groups=("odoo",), series=None):
        """`series`: a number of PACKAGES; ODOO_HOME goes before it."""
        cache = Cache(cache_folder())
        python = environment(cache, groups)
        pg_bin, pgbouncer, env = programs(cache)
        return cls(python, pg_bin, pgbouncer, env, unprivileged(), find_odoo(cache, python, series), cache)


def unprivileged():
    """Who runs PostgreSQL and PgBouncer, which refuse root: None means whoever we are."""
    if os.geteuid():
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return user.pw_uid, user.pw_gid
    raise StackError("neither a user postgres nor a user nobody here, and PostgreSQL refuses root: run as another user")
