#!/usr/bin/env python3
"""Curves of loss of several runs as one picture: tools/curves.py OUT.svg LABEL=RUN_FOLDER ...

Reads metrics.jsonl of each run folder (or the file itself). A thin line is the training loss, mean of the
last 20 steps; dots are held-out losses, where the run took any. Nats per token over steps."""
import json
import os
import statistics
import sys
from xml.sax.saxutils import escape

COLORS = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f"]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 900, 440, 60, 20, 20, 50
MEAN_OF = 20


def read(path):
    if os.path.isdir(path):
        path = os.path.join(path, "metrics.jsonl")
    with open(path, encoding="utf-8") as file:
        steps = [json.loads(line) for line in file]
    if not steps:
        sys.exit(f"curves: {path} has no steps")
    losses = [step["loss"] for step in steps]
    mean = [statistics.fmean(losses[max(0, i - MEAN_OF + 1):i + 1]) for i in range(len(losses))]
    return ([(step["step"], loss) for step, loss in zip(steps, mean)],
            [(step["step"], step["heldout_loss"]) for step in steps if "heldout_loss" in step])


def spacing(span, most):
    """1, 2 or 5 times a power of ten: at most `most` of them fit."""
    size = 10.0 ** -6
    while True:
        for factor in (1, 2, 5):
            if span / (size * factor) <= most:
                return size * factor
        size *= 10


def draw(curves):
    points = [point for line, dots in curves.values() for point in line + dots]
    last = max(step for step, _ in points)
    low = min(loss for _, loss in points)
    # The first steps fall from ln V: what is above the loss at a twentieth of the steps is cut off.
    high = max(loss for step, loss in points if step >= last / 20)

    def x(step):
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last

    def y(loss):
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - loss) / ((high - low) or 1)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
           'font-family="sans-serif" font-size="12">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
           f'<clipPath id="plot"><rect x="{LEFT}" y="{TOP - 4}" width="{WIDTH - LEFT - RIGHT}" '
           f'height="{HEIGHT - TOP - BOTTOM + 8}"/></clipPath>']
    size = spacing(high - low, 10)
    tick = int(low / size + 1) * size
    while tick <= high:
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" '
                   f'stroke="#ddd"/><text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" '
                   f'text-anchor="end">{tick:g}</text>')
        tick = round(tick + size, 9)
    size = int(max(1, spacing(last, 8)))
    for step in range(0, last + 1, size):
        out.append(f'<text x="{x(step):.1f}" y="{HEIGHT - 30}" text-anchor="middle">{step}</text>')
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">'
               f'step (loss in nats per token: line, training, mean of {MEAN_OF} steps; '
               'dots, held out)</text>')
    for index, (label, (line, dots)) in enumerate(curves.items()):
        color = COLORS[index % len(COLORS)]
        path = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in line)
        out.append(f'<g clip-path="url(#plot)"><polyline points="{path}" fill="none" '
                   f'stroke="{color}" stroke-width="1.2"/>')
        out += [f'<circle cx="{x(step):.1f}" cy="{y(loss):.1f}" r="3.5" fill="{color}"/>'
                for step, loss in dots]
        row = TOP + 16 + 18 * index
        out.append(f'</g><line x1="{WIDTH - 330}" x2="{WIDTH - 306}" y1="{row - 4}" '
                   f'y2="{row - 4}" stroke="{color}" stroke-width="3"/>'
                   f'<text x="{WIDTH - 300}" y="{row}">{escape(label)}</text>')
    return "\n".join(out + ["</svg>"]) + "\n"


def main():
    if len(sys.argv) < 3 or not all("=" in word for word in sys.argv[2:]):
        sys.exit(__doc__)
    curves = {}
    for word in sys.argv[2:]:
        label, path = word.split("=", 1)
        curves[label] = read(path)
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        file.write(draw(curves))


if __name__ == "__main__":
    main()
