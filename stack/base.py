"""What every other file of the stack uses: two errors, a line of output, and a program that runs to its end.

Contract: only the standard library is imported, here and in cache, apt, python, programs, source and fetch: they run
before there is a virtual environment.
"""
import contextlib
import signal
import subprocess
import threading
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPO = HERE.parent
PROGRESS = 5            # seconds between two lines about a long download
LONGEST = 3600          # seconds that one program may take: a deadline that catches a hang, and measures nothing


class StackError(Exception):
    """An expected failure. Its text is one line that says what to do."""


class Unavailable(StackError):
    """This machine cannot have what was asked for, whatever its user does."""


def is_full(error):
    """Whether a program failed because the disk is full, in the words of apt, dpkg, pip or the system."""
    return any(words in str(error) for words in ("No space left on device", "enough free space", "Disk quota exceeded"))


def say(text):
    # one write, so that lines of several processes do not mix
    print(f"{text}\n", end="", flush=True)


def run(command, failure, seen=None, timeout=LONGEST, **kw):
    """Run to the end and return what it printed; when it fails, raise `failure` with its last line.

    `seen`: is called with each line while the program runs. `timeout`: seconds after which it is ended.
    """
    kw = {"stdin": subprocess.DEVNULL, "text": True, "errors": "replace", **kw}
    lines = []
    late = threading.Event()
    process = None

    def end():
        late.set()
        process.kill()
    deadline = threading.Timer(timeout, end)
    deadline.daemon = True
    try:
        with Starting():        # an interrupt must not come between the program and the name that it is ended by
            process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE,
                                       stderr=subprocess.STDOUT, **kw)
        if Starting.interrupted:
            raise KeyboardInterrupt
        deadline.start()
        for line in process.stdout:
            lines.append(line)
            if seen:
                seen(line)
        process.wait()
    except OSError as exc:
        raise StackError(f"{failure} ({exc})") from exc
    finally:
        deadline.cancel()
        if process:
            if process.poll() is None:
                process.kill()
                process.wait()
            process.stdout.close()
    if late.is_set():
        raise StackError(f"{failure} (it did not end in {timeout} s)")
    if process.returncode:
        said = [line.strip() for line in lines if line.strip()] or ["it said nothing"]
        # apt and pip mark the line that matters; other programs end with it
        marked = [line for line in said if line.startswith(("E:", "ERROR:"))]
        raise StackError(f"{failure} ({(marked or said)[-1]})")
    return "".join(lines)


@contextlib.contextmanager
def progress(state):
    """Say `state()` every few seconds while the block runs, if it has changed. Readable without a terminal."""
    done = threading.Event()

    def watch():
        last = None
        while not done.wait(PROGRESS):
            text = state()
            if text and text != last:
                say(text)
                last = text
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def megabytes(count):
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e6:.1f} MB"


# -- signals -----------------------------------------------------------------------------------------------------------

INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Starting:
    """While a program is being started, `interrupt_once` only takes a note, which `run` reads afterwards."""
    now = False
    interrupted = False

    def __enter__(self):
        Starting.now = True

    def __exit__(self, *exc):
        Starting.now = False


def interrupt_once(*_):
    """The handler of a process that ends when it is interrupted: once, so that nothing interrupts the cleaning."""
    for number in INTERRUPTS:
        signal.signal(number, lambda *_: None)      # Python complains where SIG_IGN meets a signal that has come
    if Starting.now:
        Starting.interrupted = True
        return
    raise KeyboardInterrupt
