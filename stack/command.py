"""How a command of ./dev ends."""
import sys

from . import StackError
from .clients.client import OdooError


def exit_status(name, run, *more):
    """What `run()` returns; 2 and one line for an expected failure, 130 for an interrupt.

    :param more: kinds of exceptions that are expected as well
    """
    try:
        return run()
    except (StackError, OdooError, *more) as exc:
        print(f"./dev {name}: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
