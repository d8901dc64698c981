"""./dev fresh: the demo on new Debians that have Python 3 and nothing else, as each kind of newcomer runs it.

Contract: exits 0 when the demo worked each time from an empty cache, changed no file outside of that cache and the
temporary folder, and left no process; 1 when not; 2, with one line that says what to do, when no Debian can be made
here, which takes root and debootstrap. The Debians are made from this machine's own mirror, in a temporary folder, and
removed. Four runs on each release: about 7 minutes, 1 GB of downloads and 4 GB of disk for each.
"""
import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ..base import INTERRUPTS, REPO, StackError, interrupt_once, run, say
from ..process import wait_until
from .apt import Apt, package_lists
from .cache import Cache, cache_folder

USER = "newcomer"
CHECKOUT = f"home/{USER}/checkout"
# as it is without BUS_ALT_CACHE
CACHES = {"root": "var/cache/bus-alt-connection", USER: f"home/{USER}/.cache"}
# what a newcomer would install, to run the demo with that
INSTALLED = ["postgresql", "pgbouncer", "python3-pip"]
# its mounts are its own and go with it, and so do all processes that it leaves
ISOLATED = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
CHROOT = """
mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot --userspec="$1" "$0" /usr/bin/env -i "${@:2}"
"""
CHANGING = ("proc", "dev", "sys", "tmp", "run", "var/tmp", CHECKOUT, *CACHES.values())
# what still runs when the demo has ended: this shell is the first process there
SHELL = f"""
cd /{CHECKOUT}; ./dev demo; code=$?
for process in /proc/[0-9]*; do
    id=${{process#/proc/}}
    if [ "$id" != $$ ] && [ -s "$process/cmdline" ]; then echo "LEFT: $id $(tr '\\0' ' ' < "$process/cmdline")"; fi
done
exit $code
"""


def main(args=None):
    parser = argparse.ArgumentParser(prog="./dev fresh", description="The demo on new Debians with nothing but Python.")
    parser.add_argument("--release", default="bookworm,trixie", help="Debian's releases (default: %(default)s)")
    options = parser.parse_args(args)
    if os.geteuid() or not shutil.which("debootstrap"):
        print("./dev fresh: making a Debian takes root, and the package debootstrap: install it", file=sys.stderr)
        return 2
    for number in INTERRUPTS:
        signal.signal(number, interrupt_once)
    try:
        failed = [name for release in options.release.split(",") for name in newcomers(release)]
    except StackError as exc:
        print(f"./dev fresh: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    say("all of them saw the demo" if not failed else f"FAILED: {', '.join(failed)}")
    return 1 if failed else 0


def newcomers(release):
    """Make this Debian, have each of them run the demo in it, and remove it: the names of those who failed."""
    failed = []
    folder = Path(tempfile.mkdtemp(prefix="bus-alt-fresh-"))
    try:
        debian = Debian(folder / release, release)
        for name, prepare in (("nothing but Python 3", lambda: None),
                              (f"with {', '.join(INSTALLED)}", lambda: debian.install(INSTALLED))):
            prepare()
            for user in ("root", USER):
                title = f"Debian {release}, {name}, as {'root' if user == 'root' else 'a user without root'}"
                if not debian.demo(title, user):
                    failed.append(title)
    finally:
        # after an interrupt, what still runs in it ends while it is removed
        wait_until(lambda: shutil.rmtree(folder, ignore_errors=True) or not folder.exists(), 300,
                   f"{folder} could not be removed")
    return failed


class Debian:
    def __init__(self, root, release):
        self.root = root
        targets = Apt(package_lists(Cache(cache_folder()))).targets()
        if not targets:
            raise StackError("no Debian mirror among this machine's apt sources: add one")
        began = time.monotonic()
        say(f"making a Debian {release}")
        root.parent.chmod(0o755)
        run([*ISOLATED, "--mount-proc", "debootstrap", "--variant=minbase", "--include=python3", release, root,
             targets[0]["Site"]], f"debootstrap made no Debian {release}")
        self.call("root", "useradd", "--create-home", "--shell", "/bin/bash", USER)
        shutil.copytree(REPO, root / CHECKOUT, ignore=shutil.ignore_patterns(".git", "__pycache__"))
        say(f"Debian {release} is made ({time.monotonic() - began:.0f} s)")

    def command(self, user, *command):
        """What runs this in the root, with the environment that this machine's network needs and no more."""
        home = "/root" if user == "root" else f"/home/{user}"
        env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": home, "LANG": "C.UTF-8",
               "DEBIAN_FRONTEND": "noninteractive"}
        env |= {name: value for name, value in os.environ.items()
                if name.lower().endswith("_proxy") or name in ("PIP_INDEX_URL", "PIP_TRUSTED_HOST")}
        certificates = next((os.environ[name] for name in ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
                             if os.environ.get(name)), None)
        if certificates:
            shutil.copyfile(certificates, self.root / "tmp/certificates.pem")
            (self.root / "tmp/certificates.pem").chmod(0o644)
            env["PIP_CERT"] = "/tmp/certificates.pem"
        return [*ISOLATED, "bash", "-c", CHROOT, self.root, user,
                *(f"{name}={value}" for name, value in env.items()), *command]

    def call(self, user, *command, **kw):
        return run(self.command(user, *command), f"{command[0]} failed in the new Debian", **kw)

    def install(self, packages):
        say(f"installing {', '.join(packages)} there")
        self.call("root", "apt-get", "update")
        self.call("root", "apt-get", "install", "--yes", "--no-install-recommends", *packages)

    def demo(self, title, user):
        """Run the demo from an empty cache, and say how it went: whether all was as it should be."""
        say(f"\n{title}")
        before, began = self.files(), time.monotonic()
        done = subprocess.Popen([str(part) for part in self.command(user, "bash", "-c", SHELL)], text=True,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        lines = []
        with done:
            try:
                for line in done.stdout:
                    lines.append(line)
                    say("  " + line.rstrip())
            except BaseException:
                done.kill()         # and with it everything that it started
                raise
        took = time.monotonic() - began
        shutil.rmtree(self.root / CACHES[user], ignore_errors=True)
        changed = sorted(path for path, stamp in self.files().items() if before.get(path) != stamp)
        problems = [f"exit code {done.returncode}"] * bool(done.returncode)
        problems += ["left processes"] * any(line.startswith("LEFT: ") for line in lines)
        problems += [f"changed: {', '.join(changed[:10])}"] * bool(changed)
        say(f"{title}: {'; '.join(problems) or 'worked'} ({took:.0f} s from an empty cache)")
        return not problems

    def files(self):
        """{path: when it was changed} of what nobody has a reason to touch."""
        found = {}
        for folder, folders, names in os.walk(self.root):
            here = os.path.relpath(folder, self.root)
            folders[:] = [name for name in folders if os.path.normpath(os.path.join(here, name)) not in CHANGING]
            for name in names:
                path = os.path.join(folder, name)
                found[os.path.join(here, name)] = os.lstat(path).st_mtime_ns
        return found


if __name__ == "__main__":
    sys.exit(main())
