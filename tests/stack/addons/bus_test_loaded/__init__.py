"""Each process writes twice a second which modules it has loaded, into a file `loaded-<its id>` of BUS_TEST_FOLDER."""
import os
import sys
import threading
import time


def write():
    path = os.path.join(os.environ["BUS_TEST_FOLDER"], f"loaded-{os.getpid()}")
    while True:
        with open(path + ".new", "w") as file:
            file.write("\n".join(list(sys.modules)))
        os.replace(path + ".new", path)
        time.sleep(0.5)


def start():
    threading.Thread(target=write, daemon=True).start()


os.register_at_fork(after_in_child=start)       # a worker has only the thread that forked it
start()
