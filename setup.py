"""The package `odoo-bus-alt-connection`: the folder bus_alt_connection/ as `odoo.addons.bus_alt_connection`.

Its name for pip is not the published addon's, which `pip install --upgrade` would otherwise put in its place.

Contract: Odoo finds the addon once it is installed beside it, with no addons path and no dependencies. The version is
the manifest's. Any setuptools since Python 3.6's will do; nothing is imported from the addon, which needs an Odoo.
"""
import ast
import os
import re

import setuptools
from setuptools import setup

HERE = os.path.dirname(os.path.abspath(__file__))
ADDON = "bus_alt_connection"
PACKAGE = "odoo.addons." + ADDON
DATA = ("static", "readme", "data", "security", "views")
# What an index shows of the README has no pictures, and no links into the repository.
PICTURE = re.compile(r"^\.\. image::.*\n(?:[ ]+.*\n)*\n?", re.M)
LINK = re.compile(r"`([^`<]+?)\s+<(?!https?:)([^>]+)>`__")


def text(*path):
    with open(os.path.join(HERE, *path), "rb") as stream:
        return stream.read().decode("utf-8")


def folders():
    """The addon's folders that hold Python, as (package, folder) pairs."""
    for folder, subfolders, files in os.walk(os.path.join(HERE, ADDON)):
        subfolders[:] = sorted(name for name in subfolders if name not in ("__pycache__", "tests"))
        if "__init__.py" in files:
            path = os.path.relpath(folder, HERE)
            yield "odoo.addons." + path.replace(os.sep, "."), path.replace(os.sep, "/")


def data():
    """All files of the addon that are not Python but part of it, as paths in it."""
    for part in DATA:
        for folder, _, files in os.walk(os.path.join(HERE, ADDON, part)):
            for name in sorted(files):
                yield os.path.relpath(os.path.join(folder, name), os.path.join(HERE, ADDON)).replace(os.sep, "/")


MODERN = int(setuptools.__version__.split(".")[0]) >= 77
manifest = ast.literal_eval(text(ADDON, "__manifest__.py"))
packages = dict(folders())

setup(
    name="odoo-" + ADDON.replace("_", "-"),
    version=manifest["version"],
    description=manifest["summary"],
    long_description=LINK.sub(r"\1 (``\2``)", PICTURE.sub("", text("README.rst"))),
    long_description_content_type="text/x-rst",
    author=manifest["author"],
    # the name of the field that today's setuptools wants, which older ones do not know
    **{"license_expression" if MODERN else "license": "AGPL-3.0-or-later"},
    packages=sorted(packages),
    package_dir=packages,
    package_data={PACKAGE: sorted(data())},
    python_requires=">=3.6",
    zip_safe=False,
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Web Environment",
        "Framework :: Odoo",
        # those on which it was run, see docs/series.rst
        "Framework :: Odoo :: 12.0",
        "Framework :: Odoo :: 13.0",
        "Framework :: Odoo :: 14.0",
        "Framework :: Odoo :: 15.0",
        "Framework :: Odoo :: 16.0",
        "Framework :: Odoo :: 17.0",
        "Framework :: Odoo :: 18.0",
        "Framework :: Odoo :: 19.0",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Database",
        "Topic :: System :: Monitoring",
    ],
)
