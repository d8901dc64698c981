"""No thread of the addon's starts while the file `full` is in BUS_TEST_FOLDER: Python raises what it does here.

The limit that makes it raise, of the processes of a user, does not hold for root, who may run the tests.
"""
import os
import threading
from pathlib import Path

start = threading.Thread.start


def start_if_there_is_room(self):
    if self.name.startswith("bus_alt_connection.") and (Path(os.environ["BUS_TEST_FOLDER"]) / "full").exists():
        raise RuntimeError("can't start new thread")
    start(self)


threading.Thread.start = start_if_there_is_room
