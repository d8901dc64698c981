"""What cache and ./dev are tested with: a mirror of tiny packages, and a folder for every user."""
import os
import tempfile
from pathlib import Path

import pytest

from tests.workshop.mirror import serve


@pytest.fixture(scope="module")
def served():
    yield from serve()


@pytest.fixture
def mirror(served):
    """A mirror of tiny packages on this machine, without the faults of the test before."""
    yield served
    served.calm()


@pytest.fixture
def folder():
    """An empty folder that every user can get to, as pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="bus-alt-test-") as name:
        os.chmod(name, 0o755)
        yield Path(name)
