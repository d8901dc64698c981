"""Poolers and servers of other Debian releases, unpacked into the cache and started with their own C library.

Contract: `released(cache, release, package)` is a folder in which every program of the package runs on this machine,
older or newer than it: a script in the program's place starts it with the loader and the libraries of its release.
Nothing is installed, no root is needed.
"""
import os
import re

from ..base import Unavailable
from .apt import library_path, made_of_release, need_debian, unpack
from .programs import need_readable


def released(cache, release, package):
    """The folder of a package and what it needs."""
    name, what = f"{package}-{release}", f"{package} of Debian {release}"

    def fill(folder, apt, needs):
        # the libraries alone, and not what makes users and starts services; LLVM is large, and compiles long queries
        libraries = set(re.findall(r"\blib(?!llvm)[\w.+-]+", needs))
        clients = re.findall(r"\bpostgresql-client-\d+", needs)
        if clients:
            libraries.add("libpq5")
        debs = apt.install(f"the libraries of {what}", sorted(libraries))
        debs += apt.download(what, [package, *clients])
        unpack(package, debs, folder)
        for program in programs(folder):
            start_with_its_own_loader(program, folder, cache.folder / name)

    need_debian(f"{package} of {release} is not on this machine", Unavailable)
    need_readable(cache.folder)
    return made_of_release(cache, name, release, package, what, fill)


def programs(folder):
    """Those that are no scripts."""
    for path in sorted([*folder.glob("usr/*bin/*"), *folder.glob("usr/lib/postgresql/*/bin/*")]):
        if path.is_file() and not path.is_symlink() and path.read_bytes()[:4] == b"\x7fELF":
            yield path


def start_with_its_own_loader(program, folder, place):
    """`place`: where the folder will be."""
    loader = next(path for root in ("lib", "usr/lib") for path in sorted(folder.glob(f"{root}/*-linux-gnu/ld-*.so*"))
                  if path.is_file())
    # beside the script: PostgreSQL's programs look for each other, and for their data, from the folder they lie in
    real = program.with_name(f"{program.name}.real")
    program.rename(real)
    paths = [str(path).replace(str(folder), str(place)) for path in (loader, library_path(folder), real)]
    program.write_text('#!/bin/sh\nexec "{}" --library-path "{}" "{}" "$@"\n'.format(*paths))
    os.chmod(program, 0o755)

