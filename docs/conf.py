"""Sphinx's configuration of the site: the README and the pages of docs/, as they stand in the repository.

Contract: `./dev docs` builds it, and a warning is an error. The pages stay as a forge shows them: a link to `page.rst`
becomes a link to the page, one to any other file of the repository takes that file along, and one that leads nowhere is
a warning.
"""
import ast
import re
import shutil
from pathlib import Path

from docutils import nodes
from sphinx.util import logging
from sphinx.util.osutil import relative_uri

REPO = Path(__file__).parent.parent
MANIFEST = ast.literal_eval((REPO / "bus_alt_connection/__manifest__.py").read_text())
logger = logging.getLogger(__name__)

project = MANIFEST["name"]
author = MANIFEST["author"]
release = version = MANIFEST["version"]
html_title = f"{project} {release}"
html_theme = "furo"
html_copy_source = html_show_sourcelink = False
root_doc = "README"
include_patterns = ["*.rst", "docs/*.rst"]
highlight_language = "text"
# the navigation is made below, of the index
INDEX = "docs/index"
GROUP = re.compile(r"^(.+)\n-{3,}\n((?:(?!^.+\n-{3,}\n)[\s\S])*)", re.M)
PAGE = re.compile(r"<([\w./-]+)\.rst>")


def tree(caption, pages):
    return "\n".join(["", ".. toctree::", "   :hidden:", f"   :caption: {caption}", "",
                      *(f"   {page}" for page in pages), ""])


def add_navigation(app, docname, source):
    """Give the README a table of contents: each page once, in the groups of the index."""
    if docname != root_doc:
        return
    seen = {root_doc, INDEX}
    groups = {"Documentation": [INDEX]}
    for caption, text in GROUP.findall((REPO / f"{INDEX}.rst").read_text()):
        pages = [page[3:] if page.startswith("../") else f"docs/{page}" for page in PAGE.findall(text)]
        groups[caption] = [page for page in dict.fromkeys(pages) if page not in seen]
        seen.update(pages)
    groups["Inside"] = [*groups.get("Inside", []), *sorted(app.env.found_docs - seen)]
    source[0] += "\n".join(tree(caption, pages) for caption, pages in groups.items() if pages)


def lead_links(app, document, docname):
    """Lead the links to files of the repository to their pages, or to a copy."""
    folder = (REPO / docname).parent
    for link in document.findall(nodes.reference):
        target, _, anchor = link.get("refuri", "").partition("#")
        if not target or re.match(r"[a-z]+:", target):
            continue
        path = (folder / target).resolve()
        if not path.is_file() or REPO not in path.parents:
            logger.warning("no such file: %s", target, location=link)
            continue
        name = path.relative_to(REPO).as_posix()
        if name.removesuffix(".rst") in app.env.found_docs:
            uri = app.builder.get_relative_uri(docname, name.removesuffix(".rst"))
        else:
            (app.outdir / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, app.outdir / name)
            uri = relative_uri(app.builder.get_target_uri(docname), name)
        link["refuri"] = uri + ("#" + anchor if anchor else "")


def make_front(app, failure):
    """Let the address of the folder show the README."""
    if not failure:
        shutil.copyfile(app.outdir / f"{root_doc}.html", app.outdir / "index.html")


def setup(app):
    app.connect("source-read", add_navigation)
    app.connect("build-finished", make_front)
    app.connect("doctree-resolved", lead_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
