"""Faults that an addon in Odoo itself makes sure of: what is held between its commit and its NOTIFY, and lost names.

Contract: an Odoo that loads HOLDING, with ADDONS in its addons path and the `env` of a Hold, holds each transaction
that sends on the bus after its commit and before its NOTIFY, for as long as the Hold is on.
"""
from pathlib import Path

from ..process import DEADLINE, wait_until

ADDONS = Path(__file__).parent / "addons"
HOLDING = "bus_test_notify"
NAMING = "bus_test_names"       # resolves `name_of` an address, but for the time of `nameless`


class Hold:
    """`with hold:` … `hold.wait()` … and at its end all go on."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(exist_ok=True)
        self.env = {"BUS_TEST_FOLDER": str(folder)}

    def __enter__(self):
        for left in self.folder.glob("committed-*"):    # by a process that was killed
            left.unlink()
        (self.folder / "hold").touch()
        return self

    def __exit__(self, *exc):
        self.release()

    def release(self):
        (self.folder / "hold").unlink(missing_ok=True)

    def pids(self):
        """The processes that have committed and not notified."""
        return [int(path.name.rpartition("-")[2]) for path in self.folder.glob("committed-*")]

    def wait(self, count=1):
        """Wait until there are so many."""
        wait_until(lambda: len(self.pids()) >= count, DEADLINE, lambda: f"not {count} transactions held: {self.pids()}")

    def nameless(self, yes):
        """Whether no name is known."""
        file = self.folder / "nameless"
        file.touch() if yes else file.unlink(missing_ok=True)


def name_of(*addresses):
    """The name that NAMING resolves to them, in this order."""
    return ".".join(address.replace(".", "-") for address in addresses) + ".test"
