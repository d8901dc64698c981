"""./dev test --list: what each file of tests promises, and roughly how long it takes, as its docstring says.

Contract: needs nothing but Python. The first line of a docstring is the promise; "Takes 40 s" anywhere in it the time,
of one series on two cores with nothing else to do.
"""
import ast
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOMS = ["fast", "simulation", "stack", "workshop"]     # inside is run by a file of stack


def files():
    """[(name, promise, time or "")] of every file of tests, by rooms, those that need no server first."""
    found = []
    for path in [path for room in ROOMS for path in sorted(HERE.glob(f"{room}/test_*.py"))]:
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        took = re.search(r"Takes ([^.]+)", " ".join(text.split()))
        found.append((str(path.relative_to(HERE.parent)), text.partition("\n")[0], took[1] if took else ""))
    return found


def main():
    rows = files()
    name, time = (max(len(row[index]) for row in rows) for index in (0, 2))
    for path, promise, took in rows:
        print(f"{path:{name}}  {took:{time}}  {promise}")


if __name__ == "__main__":
    main()
