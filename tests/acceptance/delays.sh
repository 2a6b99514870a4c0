#!/bin/bash
# What each schedule loses when messages are slow, and when some are much slower: tests/acceptance/delays.sh FOLDER
#
# Trains the quickstart's model on two ranks as threads of one process, three rounds over all schedules: without a
# delay; with every message US microseconds late (2000 unless set); and with one in twenty ten times as late. Prints
# medians of tokens/s, and fails if a loss differs. Needs the quickstart's text (tools/quickstart.sh) and a host with
# nothing else to do.
set -euo pipefail
cd "$(dirname "$0")/../.."

folder=$1
us=${US:-2000}
rounds=${ROUNDS:-3}
program=${MUDDPIPE:-build/muddpipe}
schedules=(gpipe 1f1b zb-h1 interleaved zb-v)
delays=("" "$us" "$us,20,10")
common=(parallel.transport=threads parallel.pp=2 parallel.threads=1 parallel.microbatches=4
    optimizer.steps=8 data.valid= logging.sample_tokens=0)

mkdir -p "$folder"
for ((round = 1; round <= rounds; round++)); do
    for schedule in "${schedules[@]}"; do
        for d in 0 1 2; do
            run=$folder/$schedule-$d-$round
            rm -rf "$run"
            MUDDPIPE_DELAY=${delays[d]} "$program" train tools/quickstart.yaml "${common[@]}" \
                parallel.schedule="$schedule" logging.run="$run" >"$run.txt" 2>&1 || { cat "$run.txt"; exit 1; }
        done
    done
done

python3 - "$folder" "$rounds" "$us" "${schedules[@]}" <<'PY'
import json
import statistics
import sys

folder, rounds, us, schedules = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:]


def steps(schedule, delay, index):
    with open(f"{folder}/{schedule}-{delay}-{index}/metrics.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


losses = {tuple(step["loss"] for step in steps(s, d, r)) for s in schedules for d in range(3)
          for r in range(1, rounds + 1)}
if len(losses) != 1:
    sys.exit("the losses differ")
print(f"| schedule | tokens/s | every message {us} us late | and one in 20 ten times that | of that |")
print("|---|---|---|---|---|")
for s in schedules:
    speed = [statistics.median(step["tokens_per_s"] for r in range(1, rounds + 1)
                               for step in steps(s, d, r)[2:]) for d in range(3)]
    print(f"| `{s}` | {speed[0]:.0f} | {speed[1]:.0f} ({100 * (speed[1] / speed[0] - 1):+.1f} %) | "
          f"{speed[2]:.0f} ({100 * (speed[2] / speed[0] - 1):+.1f} %) | "
          f"{100 * (speed[2] / speed[1] - 1):+.1f} % |")
PY
