"""./dev test --list: what each file of tests promises, by rooms, and roughly how long it takes, as its docstring says.

Contract: needs nothing but Python. The first line of a docstring is the promise; "Takes 40 s" anywhere in it the time,
of one series on two cores with nothing else to do.
"""
import ast
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOMS = ["fast", "simulation", "stack", "workshop"]     # inside is run by a file of stack


def docstring(path):
    return ast.get_docstring(ast.parse(path.read_text())) or "" if path.exists() else ""


def files():
    """{room: [(name, promise, time or "")]}, what needs no server first."""
    found = {}
    for room in ROOMS:
        for path in sorted(HERE.glob(f"{room}/test_*.py")):
            text = docstring(path)
            took = re.search(r"Takes ([^.]+)", " ".join(text.split()))
            found.setdefault(room, []).append(
                (str(path.relative_to(HERE.parent)), text.partition("\n")[0], took[1] if took else ""))
    return found


def main():
    rooms = files()
    name, time = (max(len(row[index]) for rows in rooms.values() for row in rows) for index in (0, 2))
    for room, rows in rooms.items():
        print(f"\n{room}: {docstring(HERE / room / '__init__.py').partition(chr(10))[0]}")
        for path, promise, took in rows:
            print(f"  {path:{name}}  {took:{time}}  {promise}")


if __name__ == "__main__":
    main()
