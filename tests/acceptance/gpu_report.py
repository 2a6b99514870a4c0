#!/usr/bin/env python3
"""Merges what the parts of tools/gpu.sh left into one report: gpu_report.py DIR... > report.md

A DIR is the folder of a part, or one with such folders in it. Markdown on stdout, what is wrong on stderr
too; exit code 1 if a part found something wrong.

    gpu_report.py --tests DIR                what ctest left there, a line for each test
    gpu_report.py --losses METRICS METRICS   whether two runs have the same losses, by LOSSES
"""

import collections
import json
import pathlib
import re
import statistics
import sys
import xml.etree.ElementTree

PEAKS = {"H100": 989.4, "H200": 989.4, "A100": 312.0}  # dense bf16, TFLOP/s

# What a run must hold.
MEMORY = 2.0  # % that what is taken may be off what was predicted
DENSE = 1.0  # % of a step that dense traffic over NVLink may be exposed
LOSSES = 1e-4  # of a loss, that two runs in float32 may differ


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def part_folders(folder):
    found = [folder] if (folder / "machine.txt").exists() else []
    order = ["check", "single", "pair"]
    found += sorted((path.parent for path in folder.glob("*/machine.txt")),
                    key=lambda part: (order + [part.name]).index(part.name))
    return found


# ---- check ----


def pivot(rows, corner):
    """Cells by the first word of the name and the rest of it; what is not ok says so."""
    cells, columns, lines = {}, collections.OrderedDict(), collections.OrderedDict()
    for name, outcome, words in rows:
        line, _, column = name.partition(" ")
        lines.setdefault(line)
        columns.setdefault(column)
        count = re.match(r"\d+ of \d+", words)
        short = count.group(0) if count else ""
        cells[line, column] = short or words if outcome == "ok" else (
            f"{outcome}, {short}" if short else outcome)
    body = [(line, *(cells.get((line, column), "") for column in columns)) for line in lines]
    return table((corner, *columns), body) + listed(rows)


def listed(rows):
    """Outcomes that are not ok and their reasons, once for all that have the same."""
    notes = collections.OrderedDict()
    for name, outcome, words in rows:
        if outcome != "ok":
            notes.setdefault((outcome, words), []).append(name)
    return "".join(f"\n- {outcome}: {words} ({'; '.join(names)})"
                   for (outcome, words), names in notes.items()) + ("\n" if notes else "")


def tests(rows):
    good = [name for name, outcome, _ in rows if outcome == "ok"]
    return (f"Passed: {', '.join(good)}.\n" if good else "") + listed(rows)


def plain(rows):
    return table(("", "", ""), [(name, outcome, words) for name, outcome, words in rows])


CHECKS = {
    "tests": ("Tests that need a GPU", tests),
    "golden": ("Golden cases on one GPU: the error that comes nearest to its limit",
               lambda rows: pivot(rows, "case")),
    "stages": ("Golden cases in bf16, cut into stages, over ipc: the error that comes nearest to its limit",
               lambda rows: pivot(rows, "case")),
    "bits": ("Cases within their limits and with the bits of one stage, over transports",
             lambda rows: pivot(rows, "transport")),
    "twice": ("The same run twice, deterministic, with one table of algorithms: the same bits", plain),
    "sanitizer": ("compute-sanitizer", plain),
    "curve": ("Losses in float32", plain),
    "runs": ("What was not measured", plain),
    "over": ("Transports that were not measured under a model", plain),
}


def checks(folder):
    path = folder / "checks.tsv"
    if not path.exists():
        return "", False
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    text = ""
    for kind, (title, form) in CHECKS.items():
        found = [row[1:] for row in rows if row[0] == kind]
        if found:
            count = collections.Counter(outcome for _, outcome, _ in found)
            summary = ", ".join(f"{number} {outcome}" for outcome, number in sorted(count.items()))
            text += f"\n### {title}: {summary}\n\n{form(found)}"
    return text, any(row[2] == "FAILED" for row in rows)


def ctest_rows(folder):
    """What ctest left, as lines of checks.tsv without the kind. Tests that its --stop-time ended or kept
    from starting are skipped."""
    log = (folder / "ctest.log").read_text(errors="replace")
    late = log.partition("The stop time has been passed")[2]
    cut = set(re.findall(r"Test +#\d+: (\S+) .*\*\*\*Timeout", late))
    names = re.findall(r"Test +#\d+: (\S+)", (folder / "ctest-all.log").read_text(errors="replace"))
    path = folder / "ctest.xml"
    cases = xml.etree.ElementTree.parse(path).iter("testcase") if path.exists() else []
    for case in cases:
        name = case.get("name")
        if name in cut:
            continue
        names = [other for other in names if other != name]
        outcome = {"run": "ok", "fail": "FAILED"}.get(case.get("status"), "skipped")
        said = [line.strip() for line in (case.findtext("system-out") or "").splitlines()]
        sign = {"skipped": "skipped: ", "FAILED": "error: "}.get(outcome)
        words = [line.partition(sign)[2] for line in said if sign and sign in line]
        words = words or [line for line in reversed(said) if line and outcome != "ok"]
        yield name, outcome, words[0].replace("\t", " ")[:240] if words else ""
    for name in names:
        if late:
            yield name, "skipped", "no time left"
        else:
            yield name, "FAILED", "ctest did not run it"


def compare_losses(first, second):
    """The outcome and its words, for checks.tsv."""
    first, second = ([json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]
                     for path in (first, second))
    if not first or [a["step"] for a in first] != [b["step"] for b in second]:
        return "FAILED", f"{len(first)} steps and {len(second)}"
    off, step = max((abs(a["loss"] - b["loss"]) / abs(a["loss"]), a["step"])
                    for a, b in zip(first, second))
    words = f"{len(first)} steps: losses at most {off:.1e} apart (step {step}; limit {LOSSES:.0e})"
    return "ok" if off <= LOSSES else "FAILED", words


# ---- runs ----


def load_trace(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def flop_per_token(text):
    """The plan's own count of a microbatch, over its tokens."""
    work = re.search(r"in all ([0-9.]+) ([GTPM]?)FLOP", text)
    shape = re.search(r"step: \d+ microbatch\w* of (\d+) x (\d+) tokens", text)
    if not work or not shape:
        return None
    scale = {"": 1, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}[work.group(2)]
    return float(work.group(1)) * scale / (int(shape.group(1)) * int(shape.group(2)))


class Run:
    def __init__(self, folder):
        self.folder = folder
        self.name, self.ranks = folder.name.rsplit("-", 1)
        self.text = folder.with_name(folder.name + ".out").read_text(errors="replace")
        self.steps = []
        metrics = folder / "metrics.jsonl"
        if metrics.exists():
            self.steps = [json.loads(line) for line in metrics.read_text().splitlines()]
        self.traces = [
            trace
            for path in sorted(folder.glob("trace/rank-*.json"))
            for trace in [load_trace(path)]
            if trace
        ]

    def quiet_steps(self):
        """Neither warming up nor recorded: steps 7 and 8 of a run that leaves a trace are."""
        first, last = (3, 6) if self.traces else (4, len(self.steps))
        return [step for step in self.steps if first <= step["step"] <= last]

    def speed(self):
        steps = self.quiet_steps()
        return statistics.median(step["tokens_per_s"] for step in steps) if steps else None

    def step(self):
        """What a step is: "8 x 1 x 4096"."""
        shape = re.search(r"step: (\d+) microbatch\w* of (\d+) x (\d+) tokens", self.text)
        return " x ".join(shape.groups()) if shape else ""

    def precision(self):
        config = self.folder / "config.yaml"
        text = config.read_text() if config.exists() else ""
        found = [re.search(rf"^ *{key}: *\"?(\w+)", text, re.MULTILINE)
                 for key in ("precision", "recompute")]
        words = [match.group(1) for match in found if match and match.group(1) != "none"]
        return ", ".join(words)

    def transport(self):
        chosen = re.search(r"^(?:\[rank 0\] )?transport (\w+) \(", self.text, re.MULTILINE)
        return chosen.group(1) if chosen else ""

    def card(self):
        known = [step for step in self.steps if "sm_mhz_least" in step]
        if not known:
            return ""
        last = known[-1]
        return f"{last['sm_mhz_least']:.0f} MHz, {last['watts']:.0f} W, {last['throttle']}"

    def exposed(self, kind):
        """% of a step, by the transport's upper bound: a whole stall counts."""
        steps = self.quiet_steps()
        return 100 * statistics.median(step[f"exposed_{kind}"] for step in steps) if steps else 0

    def staged(self):
        """Whether tensors passed through the host."""
        return bool(re.search(r"its host: [1-9][^,]* pinned", self.text))

    def memory(self):
        """(taken, predicted, off by so many %) of each rank."""
        return re.findall(
            r"its GPU: ([^,]+) taken, ([^ ]+ \S+) predicted[^(]*\(([^)]+)%\)", self.text)

    def on_gpu(self):
        config = self.folder / "config.yaml"
        return config.exists() and bool(
            re.search(r"^device: cuda", config.read_text(), re.MULTILINE))

    def faults(self, link):
        """(what is wrong, what is only said), in words."""
        wrong, said = [], []
        if self.on_gpu() and not self.memory():
            wrong.append("does not say what memory its GPU has taken")
        for rank, (used, predicted, off) in enumerate(self.memory()):
            if abs(float(off)) > MEMORY:
                wrong.append(f"rank {rank} took {used}, {off} % off the {predicted} predicted "
                             f"(limit {MEMORY:g} %)")
        dense = self.exposed("dense")
        if dense > DENSE and self.on_gpu() and not self.staged():
            words = f"{dense:.2f} % of a step is exposed dense traffic (limit {DENSE:g} %"
            if link.startswith("NV"):
                wrong.append(words + ")")
            else:
                said.append(words + f" over NVLink; here the GPUs are joined by: {link})")
        return wrong, said


def run_row(run, peak):
    speed, flop = run.speed(), flop_per_token(run.text)
    if speed is None:
        wrong = re.search(r"error: .*", run.text)
        return (run.name, run.ranks, run.step(), run.precision(), "FAILED", "", "", "", "", "",
                wrong.group(0) if wrong else "")
    work = speed * flop / 1e12 / int(run.ranks) if flop else None
    steps = run.quiet_steps()
    return (
        run.name,
        run.ranks,
        run.step(),
        run.precision(),
        f"{speed:.0f}",
        f"{work:.0f}" + (f" ({100 * work / peak:.1f} %)" if peak else "") if work else "",
        f"{100 * statistics.median(step['bubble'] for step in steps):.1f} %",
        f"{run.exposed('plain'):.2f} %",
        f"{run.exposed('dense'):.2f} %" + (" (through the host)" if run.staged() else ""),
        "; ".join(f"{used} of {predicted} ({off}%)" for used, predicted, off in run.memory()),
        run.card(),
    )


def operations(run):
    """ms of a step by category, a column for each rank's compute stream."""
    categories, columns = collections.OrderedDict(), []
    for trace in run.traces:
        track = trace["tracks"][0]
        column = collections.Counter()
        for entry in trace["sums"]:
            if entry["track"] == track["track"]:
                column[entry["category"]] += entry["ns"] / 1e6 / trace["steps"]
                categories.setdefault(entry["category"])
        column["(not recorded)"] = track["extent_ns"] / 1e6 / trace["steps"] - sum(column.values())
        columns.append(column)
    order = sorted(categories, key=lambda name: -sum(column[name] for column in columns))
    rows = []
    for name in order + ["(not recorded)"]:
        whole = sum(sum(column.values()) for column in columns)
        share = 100 * sum(column[name] for column in columns) / whole if whole else 0
        rows.append((name, *(f"{column[name]:.2f}" for column in columns), f"{share:.1f} %"))
    head = ("ms of a step", *(f"rank {trace['rank']}" for trace in run.traces), "share")
    return table(head, rows)


def leads(run):
    rows = []
    for trace in run.traces:
        for track in trace["tracks"]:
            step, fed = 1e6 * trace["steps"], track["fed"]
            rows.append((
                trace["rank"],
                track["track"],
                f"{(track['extent_ns'] - track['idle_ns']) / step:.2f}",
                f"{track['idle_ns'] / step:.2f}" if fed else "",
                f"{track['starved_ns'] / step:.3f}" if fed else "",
                f"{track['lead_median_ns'] / 1e6:.2f}" if fed else "",
                f"{track['lead_least_ns'] / 1e6:.3f}" if fed else "",
                f"{trace['error_ns'] / 1e3:.1f}",
            ))
    head = ("rank", "stream", "at work, ms a step", "without work", "... as the host came late",
            "host ahead by (median)", "(least)", "times wrong by at most, us")
    return table(head, rows)


def find_runs(folder, kind):
    return [
        Run(path.with_suffix(""))
        for path in sorted(folder.glob(f"{kind}/*.out"), key=lambda path: path.stat().st_mtime)
    ]


def run_table(found, machine, first):
    """The runs, and what is to be said of them; whether anything is wrong."""
    peak = next((value for name, value in PEAKS.items() if name in machine), None)
    link = re.search(r"^link: (.*)", machine, re.MULTILINE)
    head = (first, "ranks", "step", "precision, recomputed", "tokens/s",
            "TFLOP/s a GPU" + (f" (of {peak:.0f})" if peak else ""), "bubble", "plain exposed",
            "dense exposed", "memory taken of predicted", "clock, power, held back by")
    text, wrong = table(head, [run_row(run, peak) for run in found]), False
    for run in found:
        faults, said = run.faults(link.group(1) if link else "unknown")
        if run.speed() is None:
            wrong = True
        for sign, lines in (("FAILED", faults), ("warning", said)):
            for line in lines:
                text += f"\n- {sign}: {run.name} on {run.ranks}: {line}\n"
                print(f"{sign}  {run.name} on {run.ranks}: {line}", file=sys.stderr)
        wrong = wrong or bool(faults)
    return text, wrong


def runs(folder, machine):
    found = find_runs(folder, "runs")
    if not found:
        return "", False
    text = "\n### Training\n\n"
    text += ("Medians of steps 3 to 6; a step is microbatches x sequences x tokens. FLOP: the plan's "
             "count, without what is formed again. Exposed: waits for other stages' tensors, each "
             "counted whole.\n\n")
    rows, wrong = run_table(found, machine, "model")
    text += rows
    for run in found:
        if run.traces:
            text += f"\n#### {run.name} on {run.ranks}: time of a step by operation"
            text += f"{', transport ' + run.transport() if run.transport() else ''}\n\n"
            text += operations(run) + ("\n" + leads(run) if run.traces[0]["device"] else "")
    return text, wrong


def transports(folder, machine):
    found = find_runs(folder, "over")
    if not found:
        return "", False
    model = re.search(r"^model: (.*)", found[0].text, re.MULTILINE)
    text = "\n### One model over each transport, one run after the other\n\n"
    text += f"{model.group(1)}. Medians from step 4 on; nothing is recorded.\n\n" if model else ""
    rows, wrong = run_table(found, machine, "transport")
    return text + rows, wrong


# ---- communication, operations ----


def bench(folder):
    path = folder / "bench.jsonl"
    if not path.exists():
        return ""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    transports = list(collections.OrderedDict.fromkeys(row["transport"] for row in rows))
    cells, order = {}, collections.OrderedDict()
    for row in rows:
        test = row["test"]
        if "wanted_gb_s" in row:
            test = f"products beside {row['wanted_gb_s']} GB/s each way"
        size = f"{row['bytes'] >> 20} MiB" if row["bytes"] >= 1 << 20 else (
            f"{row['bytes'] >> 10} KiB" if row["bytes"] else "")
        key = (test, size, row["unit"])
        order.setdefault(key)
        cells[key, row["transport"]] = (
            f"{row['median']:.2f} ({row['least']:.2f} - {row['most']:.2f})")
    text = "\n### Messages between two ranks: medians (least - most)\n\n"
    text += table(("test", "", "", *transports),
                  [(*key, *(cells.get((key, name), "") for name in transports)) for key in order])
    refused = [line for line in (folder / "bench.log").read_text().splitlines()
               if "cannot be used here" in line] if (folder / "bench.log").exists() else []
    return text + "".join(f"\n{line}\n" for line in refused)


def kernels(folder):
    path = folder / "kernels.log"
    if not path.exists():
        return ""
    lines = [line for line in path.read_text().splitlines()
             if not line.startswith(("[", "exit code "))]
    return "\n### Operations\n\n```\n" + "\n".join(lines).strip() + "\n```\n"


def merge_traces(folder):
    """One file with all ranks of a run, which Perfetto shows below each other."""
    for run in sorted(folder.glob("runs/*/trace")):
        traces = [load_trace(path) for path in sorted(run.glob("rank-*.json"))]
        if len(traces) > 1 and all(traces):
            events = [event for trace in traces for event in trace["traceEvents"]]
            with open(run / "all.json", "w", encoding="utf-8") as out:
                json.dump({"traceEvents": events}, out)


def main(arguments):
    if len(arguments) == 2 and arguments[0] == "--tests":
        for row in ctest_rows(pathlib.Path(arguments[1])):
            print("\t".join(row))
        return 0
    if len(arguments) == 3 and arguments[0] == "--losses":
        print("\t".join(compare_losses(*arguments[1:])))
        return 0
    folders = [part for path in arguments for part in part_folders(pathlib.Path(path))]
    if not folders:
        print("gpu_report: no folder of tools/gpu.sh among the arguments", file=sys.stderr)
        return 2
    wrong = False
    print("# muddpipe on GPUs")
    for folder in folders:
        machine = (folder / "machine.txt").read_text()
        print(f"\n## {folder.name}\n\n```\n{machine.strip()}\n```")
        merge_traces(folder)
        for text, failed in (checks(folder), runs(folder, machine), transports(folder, machine)):
            print(text, end="")
            wrong = wrong or failed
        print(kernels(folder) + bench(folder), end="")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
