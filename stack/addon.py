"""Single modules of the addon, without an Odoo.

Contract: after `importable()` `from bus_alt_connection import backoff` imports that module and what it imports itself,
and nothing else: the package's own `__init__` needs an Odoo and is not executed. A module that needs one fails.
"""
import importlib.machinery
import sys
import types
from pathlib import Path

NAME = "bus_alt_connection"
FOLDER = Path(__file__).resolve().parent.parent / NAME


def importable():
    """Put a stand-in for the package into `sys.modules`, unless there is one."""
    if NAME not in sys.modules:
        package = types.ModuleType(NAME)
        package.__path__ = [str(FOLDER)]
        package.__spec__ = importlib.machinery.ModuleSpec(NAME, None, is_package=True)
        sys.modules[NAME] = package
