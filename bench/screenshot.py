"""./dev screenshot: two users of Discuss before, during and after a lost listening connection, as one small figure.

Contract: the pages are Chromium's, unchanged; only frames and captions are drawn around them. Exits 0 when every
message was seen and the figure is written, 2 when the stack or the browser could not be had.
"""
import argparse
import io
import sys
from pathlib import Path

from stack import Stack, say
from stack.clients.browser import browser
from stack.clients.discuss import DATABASE, MODULES, talk
from stack.clients.listeners import wait_listening
from stack.command import exit_status

PAGE = 400, 496             # pixels: so narrow that Odoo shows the conversation alone, so high that all of it is seen
BAR, GAP, MARGIN = 30, 190, 12
IN_TIME = 10
CAPTIONS = {"before": "before", "during": "listening backend\nterminated", "after": "after"}
INK, FRAME, LIVE = "#374151", "#9ca3af", "#15803d"


def main(args=None):
    parser = argparse.ArgumentParser(prog="./dev screenshot", description="Make the figure of two users who talk.")
    parser.add_argument("--output", type=Path, default=Path("docs/discuss.png"), help="the file (docs/discuss.png)")
    options = parser.parse_args(args)
    return exit_status("screenshot", lambda: run(options), AssertionError)


def run(options):
    with Stack(groups=("odoo", "browser"), series=19) as stack, browser(stack.machine.cache) as opened:
        stack.database(DATABASE, MODULES)
        odoo = stack.odoo().start(DATABASE, workers=2)
        with talk(stack, odoo, opened, PAGE) as chat:
            converse(chat, stack.postgres, odoo)
            figure = draw(chat)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    # few colours do for a page of text
    figure.quantize(128).save(options.output, optimize=True)
    say(f"written: {options.output} ({options.output.stat().st_size / 1024:.0f} KB); seen after: {chat.times()}")
    return 0


def converse(chat, postgres, odoo):
    chat.exchange("before", IN_TIME)
    pid, = wait_listening(postgres, odoo, "bus")
    postgres.query("SELECT pg_terminate_backend(%s)", [pid])
    chat.exchange("during", IN_TIME)
    wait_listening(postgres, odoo, "bus")
    chat.exchange("after", IN_TIME)


def draw(chat):
    """Both pages side by side; between them what happened, beside the messages."""
    from PIL import Image, ImageDraw, ImageFont
    width, height = PAGE
    figure = Image.new("RGB", (2 * width + GAP + 2 * MARGIN, height + BAR + 2 * MARGIN), "white")
    pen, font = ImageDraw.Draw(figure), ImageFont.load_default(15)
    ada = chat.people[0]
    # of the last moment: all messages are on it
    shots = [Image.open(io.BytesIO(shot)).convert("RGB") for shot in chat.shots["after"]]
    for person, shot, left in zip(chat.people, shots, (MARGIN, MARGIN + width + GAP), strict=True):
        pen.rounded_rectangle((left - 1, MARGIN, left + width, MARGIN + BAR + height), 6, "#e5e7eb", FRAME)
        for dot in range(3):
            pen.ellipse((left + 10 + 16 * dot, MARGIN + 10, left + 20 + 16 * dot, MARGIN + 20), FRAME)
        pen.text((left + width / 2, MARGIN + BAR / 2), f"{person.name}'s browser", INK, font, anchor="mm")
        figure.paste(shot, (left, MARGIN + BAR))
    middle = MARGIN + width + GAP / 2
    for stage, caption in CAPTIONS.items():
        heights = [MARGIN + BAR + ada.height_of(chat.text(person, stage)) for person in chat.people]
        pen.multiline_text((middle, sum(heights) / 2), caption, INK, font, anchor="mm", align="center")
        for y, took, way in zip(heights, chat.seconds[stage], (1, -1), strict=True):
            arrow(pen, middle, y, way)
            pen.text((middle, y - 5 * way), f"{took:.2f} s", LIVE, font, anchor="mb" if way > 0 else "mt")
    return figure


def arrow(pen, middle, y, way):
    tip = middle + way * (GAP / 2 - 14)
    pen.line((middle - way * (GAP / 2 - 14), y, tip, y), LIVE, 2)
    pen.polygon([(tip, y), (tip - way * 9, y - 5), (tip - way * 9, y + 5)], LIVE)


if __name__ == "__main__":
    sys.exit(main())
