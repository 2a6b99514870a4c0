#!/usr/bin/env python3
"""docs/variants.md and its pictures from the runs of tests/acceptance/variants.sh: tests/acceptance/variants.py FOLDER

A table whose runs are not all in FOLDER stays as it is.
"""
import json
import math
import os
import re
import statistics
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
NAMES = {
    "transformerpp": "Transformer++ (FFN not re-allocated)",
    "static": "static dense, one way (DenseFormer)",
    "dynamic": "dynamic dense, one way",
    "multiway-static": "multiway static",
    "multiway-dynamic": "multiway dynamic (MUDDFormer)",
    "prepostnorm": "MUDDFormer, PrePostNorm",
    "k2": "MUDDFormer, key dilation 2",
    "k4": "MUDDFormer, key dilation 4",
    "p2": "MUDDFormer, query period 2",
    "blocks-mean": "MUDDFormer, blocks of 2, mean",
    "blocks-last": "MUDDFormer, blocks of 2, last",
    "depth-attention": "attention over depth",
    "depth-blocks": "attention over depth, blocks of 2",
    "hyper-static": "hyper-connections, static, 4 streams",
    "hyper-dynamic": "hyper-connections, dynamic, 4 streams",
    "hyper-mhc": "hyper-connections, mHC, 4 streams",
}
OTHERS = ("transformerpp", "multiway-dynamic", "depth-attention", "depth-blocks", "hyper-static",
          "hyper-dynamic", "hyper-mhc")
# Marker in the page, picture, rows, and those of which other seeds are told.
TABLES = (
    ("", "variants.svg", tuple(name for name in NAMES if name not in OTHERS[2:]),
     ("transformerpp", "multiway-dynamic")),
    (" others", "variants-others.svg", OTHERS, ()),
)
COLORS = ["#000000", "#7f7f7f", "#8c564b", "#bcbd22", "#d62728", "#9467bd", "#1f77b4", "#17becf",
          "#2ca02c", "#ff7f0e", "#e377c2", "#4b0082", "#6a5acd", "#98df8a", "#006400", "#ffbb78"]


def steps_of(folder):
    with open(os.path.join(folder, "metrics.jsonl"), encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def heldout(path):
    with open(path, encoding="utf-8") as file:
        text = file.read()
    nats = re.search(r"held-out loss\s+\S+ -> (\S+) nats", text)
    parameters = re.search(r"model: (\d+) parameters", text)
    return float(nats[1]) / math.log(2), int(parameters[1])


def speed(folder, name):
    """Median tokens/s over the steps but the first two, median over rounds."""
    rounds = []
    for index in (1, 2, 3):
        run = os.path.join(folder, f"speed-{name}-{index}")
        if os.path.exists(run):
            rounds.append(statistics.median(step["tokens_per_s"] for step in steps_of(run)[2:]))
    return statistics.median(rounds) if rounds else None


def smooth(losses, width=40):
    return [statistics.fmean(losses[max(0, i - width + 1):i + 1]) for i in range(len(losses))]


def plot(curves, path):
    """Smoothed loss minus that of the first curve, which all others nearly cover."""
    width, height, left, right, top = 940, 420, 70, 330, 20
    first = 50
    base = next(iter(curves.values()))
    shown = {name: [a - b for a, b in zip(curve, base)][first:] for name, curve in curves.items()}
    low = min(min(curve) for curve in shown.values())
    high = max(max(curve) for curve in shown.values())
    count = len(base) - first

    def x(i):
        return left + (width - left - right) * i / max(count - 1, 1)

    def y(loss):
        return top + (height - top - 50) * (high - loss) / (high - low)

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
             'font-family="sans-serif" font-size="12">',
             f'<rect width="{width}" height="{height}" fill="white"/>']
    for k in range(math.ceil(low / 0.02), math.floor(high / 0.02) + 1):
        loss = 0.02 * k
        parts.append(f'<line x1="{left}" x2="{x(count - 1):.1f}" y1="{y(loss):.1f}" '
                     f'y2="{y(loss):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y(loss) + 4:.1f}" text-anchor="end">{loss:+.2f}'
                     '</text>')
    for step in range(first, first + count + 1, 50):
        at = x(min(step - first, count - 1))
        parts.append(f'<text x="{at:.1f}" y="{height - 30}" text-anchor="middle">{step}</text>')
    parts.append(f'<text x="{x(count / 2):.1f}" y="{height - 10}" text-anchor="middle">step '
                 '(training loss minus that of Transformer++, nats per byte, mean of 40 steps)'
                 '</text>')
    for index, (name, curve) in enumerate(shown.items()):
        points = " ".join(f"{x(i):.1f},{y(loss):.1f}" for i, loss in enumerate(curve))
        color = COLORS[index % len(COLORS)]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" '
                     'stroke-width="1.6"/>')
        row, at = top + 14 + 17 * index, width - right + 20
        parts.append(f'<line x1="{at}" x2="{at + 18}" y1="{row - 4}" y2="{row - 4}" '
                     f'stroke="{color}" stroke-width="3"/>')
        parts.append(f'<text x="{at + 24}" y="{row}">{NAMES[name]}</text>')
    parts.append("</svg>")
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(parts) + "\n")


def noise(folder, name):
    found = [heldout(os.path.join(folder, f"{name}-{seed}.txt"))[0] for seed in (1, 2, 3)
             if os.path.exists(os.path.join(folder, f"{name}-{seed}", "model"))]
    return found


def table(folder, marker, picture, names, seeds):
    """The generated part of the page, or None."""
    rows, curves = [], {}
    for name in names:
        run = os.path.join(folder, f"{name}-1")
        if not os.path.exists(os.path.join(run, "model")):
            print(f"no run of {name}: {picture} and its table stay as they are")
            return None
        steps = steps_of(run)
        bits, parameters = heldout(run + ".txt")
        last = steps[-1]
        rows.append((name, parameters, bits, speed(folder, name), last["bytes_plain"],
                     last["bytes_dense"]))
        curves[name] = smooth([step["loss"] for step in steps])
    plot(curves, os.path.join(ROOT, "docs", picture))
    lines = [f"{len(steps)} steps of {last['tokens']} tokens each.", "",
             "| variant | parameters | held-out, bits per byte | tokens/s | plain, MiB a step | "
             "dense, MiB a step |", "|---|---|---|---|---|---|"]
    for name, parameters, bits, fast, plain, dense in rows:
        lines.append(f"| {NAMES[name]} | {parameters:,} | {bits:.4f} | "
                     f"{f'{fast:,.0f}' if fast else ''} | {plain / 2**20:.1f} | "
                     f"{dense / 2**20:.1f} |")
    if seeds:
        lines += ["", "The same with seeds 1, 2, 3:", ""]
        lines += [f"- {NAMES[name]}: " + ", ".join(f"{bits:.4f}" for bits in noise(folder, name))
                  for name in seeds]
    begin = f"<!-- generated by tests/acceptance/variants.py{marker}: begin -->"
    return begin, "\n".join([begin, "", *lines, "", "<!-- end -->"])


def main():
    page = os.path.join(ROOT, "docs", "variants.md")
    with open(page, encoding="utf-8") as file:
        text = file.read()
    for marker, picture, names, seeds in TABLES:
        made = table(sys.argv[1], marker, picture, names, seeds)
        if made:
            text = re.sub(re.escape(made[0]) + ".*?<!-- end -->", lambda _: made[1], text,
                          flags=re.S)
    with open(page, "w", encoding="utf-8") as file:
        file.write(text)


main()
