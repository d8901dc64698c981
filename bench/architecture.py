"""The picture of the architecture, docs/architecture.svg: which connection goes where.

Contract: `python3 -m bench.architecture` writes the file. It needs nothing but Python, and the same source gives the
same file. The picture has a background of its own and follows a dark mode, so that it can be read on any page.
"""
from pathlib import Path
from xml.sax.saxutils import escape

FILE = Path(__file__).parent.parent / "docs" / "architecture.svg"
TITLE = "Odoo's listeners connect to PostgreSQL directly; everything else goes through the pooler"

STYLE = """
    .paper { fill: #ffffff; stroke: #d0d7de }
    .box { fill: #f6f8fa; stroke: #57606a }
    .addon { fill: #fff1e5; stroke: #bc4c00 }
    text { font: 14px sans-serif; fill: #1f2328; text-anchor: middle }
    .small { font-size: 12px }
    .pooled { stroke: #57606a; fill: none; stroke-width: 1.5 }
    .direct { stroke: #bc4c00; fill: none; stroke-width: 3 }
    .pooled-text { fill: #57606a; font-size: 12px }
    .direct-text { fill: #bc4c00; font-size: 12px; font-weight: bold }
    .pooled-head { fill: #57606a }
    .direct-head { fill: #bc4c00 }
    @media (prefers-color-scheme: dark) {
      .paper { fill: #0d1117; stroke: #30363d }
      .box { fill: #161b22; stroke: #8b949e }
      .addon { fill: #3d2310; stroke: #f0883e }
      text { fill: #e6edf3 }
      .pooled { stroke: #8b949e } .pooled-text { fill: #8b949e } .pooled-head { fill: #8b949e }
      .direct { stroke: #f0883e } .direct-text { fill: #f0883e } .direct-head { fill: #f0883e }
    }
"""


def box(x, y, width, height, *lines, kind="box", up=0):
    """A rectangle with lines of text in its middle, or above it, the first one larger."""
    yield f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>'
    top = y + height / 2 - 9 * (len(lines) - 1) + 5 - up
    for number, line in enumerate(lines):
        small = ' class="small"' if number else ""
        yield f'<text{small} x="{x + width / 2:g}" y="{top + 18 * number:g}">{escape(line)}</text>'


def arrow(kind, *points):
    """A line through these points, with a head at its end."""
    path = " L ".join(f"{x} {y}" for x, y in points)
    yield f'<path class="{kind}" d="M {path}" marker-end="url(#{kind})"/>'


def label(kind, x, y, text, anchor="middle"):
    yield f'<text class="{kind}-text" x="{x}" y="{y}" style="text-anchor: {anchor}">{escape(text)}</text>'


def parts():
    yield '<rect class="paper" x="0.5" y="0.5" width="759" height="419" rx="8"/>'
    yield from box(30, 20, 200, 40, "browsers: websockets")
    yield from box(280, 20, 200, 40, "browsers: pages")
    yield from arrow("pooled", (130, 60), (130, 96))
    yield from arrow("pooled", (380, 60), (380, 96))
    # Odoo
    for x, *lines in ((30, "evented process", "Odoo's dispatcher"), (280, "HTTP workers", "Odoo's requests"),
                      (530, "cron workers", "Odoo's scheduled actions")):
        yield from box(x, 100, 200, 84, *lines, up=12)
    for x, text in ((40, "listener"), (134, "NOTIFY"), (337, "NOTIFY"), (540, "NOTIFY"), (634, "listener")):
        yield from box(x, 164, 86, 40, text, kind="addon")
    # the pooler in between
    yield from box(130, 265, 500, 44, "PgBouncer, transaction mode")
    for x in (177, 380, 583):
        yield from arrow("pooled", (x, 204), (x, 261))
    yield from label("pooled", 390, 236, "all queries, every NOTIFY", "start")
    # PostgreSQL
    yield from box(30, 350, 700, 46, "PostgreSQL")
    yield from arrow("pooled", (380, 309), (380, 346))
    for x, side, anchor in ((83, -9, "end"), (677, 9, "start")):
        yield from arrow("direct", (x, 204), (x, 346))
        yield from label("direct", x + side, 282, "LISTEN", anchor)


def picture():
    heads = "".join(f'<marker id="{kind}" viewBox="0 0 10 10" refX="7" refY="5" markerWidth="{size}" '
                    f'markerHeight="{size}" orient="auto">'
                    f'<path class="{kind}-head" d="M 0 0 L 10 5 L 0 10 z"/></marker>'
                    for kind, size in (("pooled", 8), ("direct", 5)))
    return "\n".join([
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 420" width="760" height="420" role="img">',
        f"<title>{escape(TITLE)}</title>", f"<style>{STYLE}</style>", f"<defs>{heads}</defs>", *parts(), "</svg>", ""])


if __name__ == "__main__":
    FILE.write_text(picture())
