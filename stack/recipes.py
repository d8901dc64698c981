"""The configurations that the README and docs/ show, so that what runs is what is shown."""
import re
import textwrap

from .base import REPO

BLOCK = r"^( *)\.\. code-block::.*\n\1   :name: {}\n\s*\n((?:\1   .*\n|\s*\n)+)"


def block(name):
    """The code block of this name."""
    pages = [REPO / "README.rst", *sorted((REPO / "docs").glob("*.rst"))]
    found = [text for page in pages for _, text in re.findall(BLOCK.format(re.escape(name)), page.read_text(), re.M)]
    assert len(found) == 1, f"{len(found)} blocks are named {name}"
    return textwrap.dedent(found[0]).strip()


def changed(text, words):
    """A text with other words in the place of these, each of which has to be there."""
    for old, new in words.items():
        assert old in text, old
        text = text.replace(old, new)
    return text
