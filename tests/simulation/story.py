"""What happened in a life, in words, at most a screen."""

LINES, WIDTH = 42, 150
ALWAYS = ("world", "fault", "state", "log", "end", "broken")


def tell(life):
    """The lines of a life's story: its faults, states and log, and what concerns who lacks something."""
    chosen = [(time, text) for time, kind, text, subjects in life.history
              if kind in ALWAYS or any(subject in life.subjects for subject in subjects)]
    head, tail = chosen[:2], chosen[2:]
    left_out = len(tail) - (LINES - 2)
    lines = [line(*each) for each in head]
    if left_out > 0:
        lines.append(f"{'':9}... {left_out} lines of this kind")
    lines += [line(*each) for each in tail[max(0, left_out):]]
    return [f"seed {life.seed}: {life.broken or 'all held'}", *lines]


def line(time, text):
    text = " ".join(text.split())
    return f"{time:8.3f} {text if len(text) <= WIDTH else text[:WIDTH - 3] + '...'}"
