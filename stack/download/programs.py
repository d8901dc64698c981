"""PostgreSQL, PgBouncer, HAProxy, Chromium: this machine's, or else Debian's packages, unpacked into the cache.
Patroni with etcd, Prometheus: always the latter.

Contract: what is returned is paths and the environment that the programs need. Nothing is installed, no root is needed.
BUS_ALT_PROGRAMS=download has nothing of this machine used.
"""
import glob
import os
import re
import shutil
import subprocess
from pathlib import Path

from ..base import StackError, Unavailable
from .apt import Apt, library_path, need_debian, package_lists, unpack

# one font, so that a page looks the same on every machine that has none of its own
FONTS = "<fontconfig><dir>{root}/usr/share/fonts</dir><cachedir>{root}/fonts-cache</cachedir></fontconfig>\n"
SBIN = ":/usr/sbin:/usr/local/sbin"


def forced():
    return os.environ.get("BUS_ALT_PROGRAMS") == "download"


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


def installed(program):
    found = shutil.which(program, path=os.environ.get("PATH", "") + SBIN)
    return Path(found) if found else None


def need_readable(folder):
    """PostgreSQL and PgBouncer refuse root, and run from this folder as another user then."""
    hidden = [path for path in (folder, *folder.parents) if path.is_dir() and not path.stat().st_mode & 0o001]
    if hidden and os.geteuid() == 0:
        raise StackError(f"{hidden[-1]} is closed to the user that PostgreSQL runs as in place of root: set "
                         "BUS_ALT_CACHE to a folder that everyone can read")


def programs(cache):
    """(folder of PostgreSQL's programs, PgBouncer, environment to run them with)"""
    pg_bin, pgbouncer = (None, None) if forced() else (installed_postgres(), installed("pgbouncer"))
    if pg_bin and pgbouncer:
        return pg_bin, pgbouncer, {}

    def make(folder, work, lists):
        apt = Apt(lists, work)
        server = re.search(r"\bpostgresql-\d+\b", apt.fields("postgresql").get("Depends", ""))
        if not server:
            raise StackError("this machine's apt sources have no PostgreSQL: add a Debian mirror to them")
        wanted = [server[0]] * (not pg_bin) + ["pgbouncer"] * (not pgbouncer)
        what = " and ".join(wanted)
        unpack(what, apt.install(what, wanted, *(["--reinstall"] if forced() else [])), folder)

    need_debian("PostgreSQL or PgBouncer is missing")
    need_readable(cache.folder)
    missing = "-".join(["postgresql"] * (not pg_bin) + ["pgbouncer"] * (not pgbouncer))
    root = cache.made("programs-" + missing, make, lambda: package_lists(cache))
    if not pg_bin:
        pg_bin = Path(max(glob.glob(f"{root}/usr/lib/postgresql/*/bin"), default=root))
    return pg_bin, pgbouncer or root / "usr/sbin/pgbouncer", {"LD_LIBRARY_PATH": library_path(root)}


def haproxy(cache):
    """(HAProxy, the environment it needs)"""
    found = None if forced() else installed("haproxy")
    if found:
        return found, {}

    def make(folder, work, lists):
        flags = ["--reinstall"] if forced() else []
        unpack("HAProxy", Apt(lists, work).install("HAProxy", ["haproxy"], *flags), folder)

    need_debian("HAProxy is not on this machine", Unavailable)
    root = cache.made("haproxy", make, lambda: package_lists(cache))
    return root / "usr/sbin/haproxy", {"LD_LIBRARY_PATH": library_path(root)}


def patroni(cache):
    """(the command that runs Patroni, etcd, the environment they need): always Debian's packages and Debian's Python.

    Not that of the virtual environment: Patroni runs as PostgreSQL's user, who may not be able to read it.
    """
    def make(folder, work, lists):
        wanted = ["patroni", "python3-etcd", "etcd-server"]
        apt = Apt(lists, work)
        if not all(map(apt.fields, wanted)):
            raise Unavailable(f"this machine's apt sources lack one of {', '.join(wanted)}")
        unpack("Patroni and etcd", apt.install("Patroni and etcd", wanted, "--reinstall"), folder)

    need_debian("Patroni is not on this machine", Unavailable)
    root = cache.made("patroni", make, lambda: package_lists(cache))
    own = root / "usr/bin/python3"
    return ([own if own.exists() else "/usr/bin/python3", "-m", "patroni"], root / "usr/bin/etcd",
            {"LD_LIBRARY_PATH": library_path(root), "PYTHONPATH": str(root / "usr/lib/python3/dist-packages")})


def prometheus(cache):
    """(the command that runs Prometheus, the folder of its Python library): always Debian's packages."""
    def make(folder, work, lists):
        apt = Apt(lists, work)
        pages = re.findall(r"\b(?:libjs|fonts)-[\w.+-]+", apt.fields("prometheus").get("Depends", ""))
        if not pages:
            raise Unavailable("this machine's apt sources lack prometheus")
        # what its pages link to, and what one of these needs
        wanted = ["prometheus", "python3-prometheus-client", "libjs-d3", *pages]
        unpack("Prometheus", apt.download("Prometheus", wanted), folder)

    need_debian("Prometheus is not on this machine", Unavailable)
    root = cache.made("prometheus", make, lambda: package_lists(cache))
    return ([root / "usr/bin/prometheus", f"--web.local-assets={root}/usr/share/prometheus/web"],
            root / "usr/lib/python3/dist-packages")


def chromium(cache):
    """What Playwright's `launch` takes: {"executable_path": ..., "env": ...}"""
    found = None if forced() else shutil.which("chromium")
    if found:
        return {"executable_path": found, "env": dict(os.environ)}

    def make(folder, work, lists):
        apt = Apt(lists, work)
        debs = apt.install("chromium", ["chromium"], "--reinstall")
        debs += apt.download("its font", ["fonts-roboto-unhinted"])
        unpack("chromium", debs, folder)
        (folder / "fonts.conf").write_text(FONTS.format(root=cache.folder / "chromium"))

    need_debian("no browser", Unavailable)
    try:
        root = cache.made("chromium", make, lambda: package_lists(cache))
    except StackError as exc:
        raise Unavailable(f"no browser: install Chromium (Debian's package chromium) on the PATH ({exc})") from exc
    env = {**os.environ, "LD_LIBRARY_PATH": library_path(root), "FONTCONFIG_FILE": str(root / "fonts.conf")}
    # the script in usr/bin runs what a machine has installed
    return {"executable_path": root / "usr/lib/chromium/chromium", "env": env}
