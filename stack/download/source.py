"""Which Odoo runs: a source tree of one's own, or Debian's package of a series, unpacked into the cache.

Odoo 19 runs on this machine's Python. Odoo 14 comes with the Python and the libraries of its own Debian release, all
but the C library: that one is this machine's, which runs programs that were built for an older one. So it needs no
root, no chroot and no container, and its processes are like any others.
"""
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from ..base import StackError, Unavailable, run, say
from .apt import Apt, made_of_release, need_debian, package_lists, release_lists, unpack

# series -> the package, and the suite of Debian's that has it; the first is the one to take when nobody says
PACKAGES = {19: ("odoo-19", "unstable"), 14: ("odoo-14", "bullseye")}


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


def debian_odoo(cache, python):
    """Debian's package of Odoo, unpacked beside the scripts and fonts that its static files link to."""
    wanted, release = PACKAGES[19]

    def make(folder, work, own, lists):
        apt = Apt(lists, work)
        names = [name for name in apt.names("odoo-") if re.fullmatch(r"odoo-\d+", name)]
        if not names:
            raise Unavailable(f"this machine's Debian mirror has no package of Odoo in {release}: set ODOO_HOME")
        package = wanted if wanted in names else max(names, key=lambda name: int(name[5:]))
        if package != wanted:
            say(f"{wanted} is gone from Debian {release}: taking {package}, which this was not tested with")
        # the links in its static folders lead to these; the font of icons is another one in unstable by now
        depends = set(re.findall(r"\b(?:libjs|fonts)-[\w.-]+", apt.fields(package)["Depends"]))
        stable = depends & {"fonts-font-awesome"}
        debs = apt.download(f"{package} and what it links to", sorted({package} | depends - stable))
        debs += Apt(own, work).download("its font of icons", sorted(stable))
        unpack(package, debs, folder)

    need_debian("ODOO_HOME is not set", Unavailable)
    root = cache.made("odoo", make, lambda: package_lists(cache), lambda: release_lists(cache, release))
    return given_odoo(root, python)


def debian_odoo_whole(cache, series):
    """Debian's package of an older Odoo, with the Python and the libraries of its release: unpacked, not installed."""
    package, release = PACKAGES[series]
    name = f"odoo-{series}"

    def fill(folder, apt, needs):
        # not wkhtmltopdf, which nothing here prints with, nor the programs that make users and start services
        wanted = re.findall(r"\b(?:python3|libjs|fonts)-[\w.-]+", needs)
        # the metrics want one more than Odoo does
        debs = apt.install(f"the Python of Debian {release}", [*wanted, "python3-prometheus-client"])
        debs += apt.download(package, [package])
        # a C library does not work without the loader it was built with, which lies at a fixed path
        unpack(package, [deb for deb in debs if not deb.name.startswith(("libc6_", "libc-bin_"))], folder)
        # Debian has this one look for its files at a fixed place
        docutils = folder / "usr/lib/python3/dist-packages/docutils/__init__.py"
        docutils.write_text(docutils.read_text().replace(
            "'/usr/share/docutils/'", f"'{cache.folder / name}/usr/share/docutils/'"))
        source = older_python(folder)
        # or else each process of each test would compile the same files again; in one process (no -j), for those that
        # compileall starts outlive it when it is ended
        say(f"compiling {package}")
        compiled = [folder / "usr/lib/python3/dist-packages", *folder.glob("usr/lib/python3.*")]
        run([source.command[0], "-W", "ignore", "-m", "compileall", "-q",
             "-x", r"/odoo/addons/(?!base/|web/|bus/)|/tests?/", *compiled],
            f"the Python of {release} does not run here", env={**os.environ, **source.env})

    need_debian("ODOO_HOME is not set", Unavailable)
    return older_python(made_of_release(cache, name, release, package, f"Odoo {series}", fill))


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
