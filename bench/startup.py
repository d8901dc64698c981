"""What it costs to load the addon: time and memory."""
import os
import re
import time
from pathlib import Path

from stack import ADDON
from stack.clients.client import Session
from stack.process import DEADLINE, children, wait_until

from .report import Result
from .setups import DATABASE, http_workers, memory, start, virtual_memory

TITLE = "Start-up"
NOTE = ("Odoo is started and stopped, with the addon and without. Ready: from the start until HTTP and websockets "
        "answer. Import: what Python says of the addon's own modules (-X importtime), all of them together. Memory "
        "after a login: that of the process itself (RSS), and with what it shares with others shared out among them "
        "(PSS). Virtual memory, which is what Odoo's limit_memory_soft counts, is that of a cron worker: its "
        "listener adds a thread to it.")
SHOWN, PLOTS = ["ready", "import", "evented process, PSS", "cron worker, virtual memory"], []
NAMES = ["direct", "published", "addon"]


def run(lab, quick):
    for _ in range(1 if quick else 3):
        for name in NAMES[::2] if quick else NAMES:
            began = time.monotonic()
            odoo = start(lab.stack, name)
            try:
                yield Result("startup", "", name, "ready", "s", time.monotonic() - began)
                Session(odoo, DATABASE)
                for process, pid in (("HTTP worker", http_workers(odoo)[0]), ("evented process", odoo.evented_pid)):
                    for field in ("Rss", "Pss"):
                        yield Result("startup", "", name, f"{process}, {field.upper()}", "MiB", memory(pid, field))
            finally:
                odoo.kill()
            space, _ = of_a_cron_worker(lab.stack, name)
            yield Result("startup", "", name, "cron worker, virtual memory", "MiB", space)
            if name != "direct":
                yield Result("startup", "", name, "import", "ms", importing(lab.stack, name))


def of_a_cron_worker(stack, name):
    """(MiB of address space, threads), once it listens."""
    odoo = start(stack, name, options={"max_cron_threads": 1})
    try:
        # Debian's Odoo names its processes no more than others: the one that lowers its own priority
        def workers():
            return [pid for pid in children(odoo.pid) if priority(pid) > priority(odoo.pid)]
        wait_until(lambda: workers(), DEADLINE, "no cron worker starts")
        worker, = workers()
        if name == "addon":
            odoo.wait_log("The cron listener is listening", timeout=DEADLINE)
        else:
            odoo.wait_log(rf" {worker} .*WorkerCron.* alive", timeout=DEADLINE)
        return virtual_memory(worker), len(list(Path(f"/proc/{worker}/task").iterdir()))
    finally:
        odoo.kill()


def priority(pid):
    return os.getpriority(os.PRIO_PROCESS, pid)


def importing(stack, name):
    """Milliseconds that Python spends in the modules of the addon and in no other."""
    odoo = start(stack, name, workers=0, env={"PYTHONPROFILEIMPORTTIME": "1"})
    odoo.kill()
    # import time: own [us] | cumulative | name
    own = re.findall(rf"^import time:\s+(\d+) \|\s+\d+ \|\s+odoo\.addons\.{ADDON}\b", odoo.log_text(), re.M)
    return sum(map(int, own)) / 1000
