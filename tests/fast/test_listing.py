"""`./dev test --list` names every file of tests with its promise."""
import subprocess
import sys

from tests.documents import REPO


def test_every_file_has_a_promise():
    done = subprocess.run([sys.executable, "dev", "test", "--list"], cwd=REPO, text=True, capture_output=True)
    lines = done.stdout.splitlines()
    named = {line.split()[0]: line for line in lines}
    wanted = {str(path.relative_to(REPO)) for path in REPO.glob("tests/**/test_*.py")
              if not {"inside", "addons"} & set(path.parts)}
    assert set(named) == wanted
    assert not [name for name, line in named.items() if not line.endswith(".")]
