"""Runs tests/inside with pytest-odoo: in an Odoo of this stack, by that Odoo's own interpreter.

Contract: passes if all of them pass there, and shows what they printed if not; skips if that interpreter has no
pytest-odoo, and says so.

Takes 3 min.
"""
import re
import subprocess
from pathlib import Path

import pytest

INSIDE = Path(__file__).parent.parent / "inside"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["settings", "listener", "routing"])
def test_inside(stack, postgres, name):
    odoo = stack.odoo(name=f"odoo-inside-{name}")
    python = odoo.source.command[0]
    probe = subprocess.run([python, "-c", "import pytest, importlib.util as u; assert u.find_spec('pytest_odoo')"],
                           env=odoo.env(), capture_output=True)
    if probe.returncode:
        pytest.skip(f"{python} has no pytest or no pytest-odoo: install them there to run tests/inside")
    config = odoo.config({"workers": 0, "max_cron_threads": 0, "db_name": "demo"})
    # a run of its own: pytest-odoo would take the outer run's xdist for its own, and make a database a worker
    env = {key: value for key, value in odoo.env({"BUS_ALT_SOCKET_DIR": postgres.socket_dir}).items()
           if not key.startswith("PYTEST_")}
    done = subprocess.run(
        [python, "-m", "pytest", "-c", INSIDE / "pytest.ini", INSIDE / f"test_{name}.py",
         "--odoo-database=demo", f"--odoo-config={config}"],
        env=env, cwd=odoo.folder, text=True, errors="replace",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600)
    if done.returncode:
        pytest.fail(f"tests/inside/test_{name}.py:\n{done.stdout}", pytrace=False)
    # "5 passed in 1.2s": a run that collects nothing must not pass
    assert re.search(r"^=+ .*\b[1-9]\d* passed", done.stdout, re.M), done.stdout
    print(done.stdout.strip().splitlines()[-1])
