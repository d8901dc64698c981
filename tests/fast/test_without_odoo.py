"""Modules of the addon that need no Odoo are imported without one."""
import subprocess
import sys

from stack.addon import FOLDER


def test_the_package_itself_is_not_executed():
    assert not [name for name in sys.modules if name == "odoo" or name.startswith("odoo.")]
    assert "post_load" not in vars(sys.modules["bus_alt_connection"])


def test_a_module_that_needs_an_odoo_says_so():
    code = "from stack.addon import importable; importable(); import bus_alt_connection.dispatcher"
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER.parent, capture_output=True, text=True)
    assert done.returncode and "No module named 'odoo'" in done.stderr
