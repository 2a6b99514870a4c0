#!/bin/bash
# A loss that is not finite ends the run on all ranks, names step and microbatch, and leaves no weights.
source "$(dirname "$0")/common.sh"
tiny_data
tiny_run

stopped() { # FOLDER RANKS
    local said
    grep -q 'error: step [0-9]*: the loss of microbatch [0-9]* is ' out ||
        grep -q 'error: step [0-9]*: the gradient norm is ' out || fail "no step or microbatch"
    said=$(grep -c 'error: step [0-9]*: the ' out)
    ((said == $2)) || fail "$said of $2 ranks say so"
    ! grep -q -e '-nan' out || fail "a sign on nan"
    [[ ! -e $1/model ]] || fail "weights were left"
    ! grep -q 'gave up' out || fail "not a quiet end"
}

for n in 1 2 4; do
    run_ranks 1 "$n" train run.yaml optimizer.lr=1e18 optimizer.warmup=0 optimizer.steps=50 \
        logging.run="lr-$n"
    stopped "lr-$n" "$n"
    [[ -s lr-$n/metrics.jsonl ]] || fail "the steps before are not in metrics.jsonl"
done
run 1 "$MUDDPIPE" train run.yaml optimizer.lr=1e18 optimizer.warmup=0 optimizer.steps=50 \
    logging.run=threads parallel.transport=threads parallel.pp=3
stopped threads 3
python3 - <<'END' || fail "the error stands before the last line of a step, or lines are missing"
text = open("out").read().splitlines()
steps = [i for i, line in enumerate(text) if line.startswith("step ") and "/50  loss" in line]
# Rank 0 prints both; the others' errors may come earlier.
errors = [i for i, line in enumerate(text) if line.startswith("[rank 0] error: step")]
assert steps[-1] < errors[0] and len(steps) == len(open("threads/metrics.jsonl").readlines())
END

# Weights with an infinity: the first step.
python3 "$(dirname "$script")/broken.py" "$golden/muddformer-tiny" broken
python3 -c 'import sys; sys.stdout.buffer.write(bytes(i * 7 % 64 for i in range(5000)))' >small.txt
for n in 1 2; do
    run_ranks 1 "$n" train broken/infinite data.train=small.txt data.seq_len=16 \
        parallel.microbatches=3 logging.run="inf-$n"
    stopped "inf-$n" "$n"
    says "step 1: the loss of microbatch 0 is "
done
run_ranks 1 2 check broken/infinite
says "step 1: the loss of microbatch 0 is "

# Skipped: nothing changes, metrics.jsonl stays JSON, and so many in a row end the run all the same.
skip=(optimizer.on_nan=skip optimizer.on_nan_most=3 data.train=small.txt data.seq_len=16 parallel.microbatches=3)
for n in 1 2; do
    run_ranks 1 "$n" train broken/infinite "${skip[@]}" logging.run="skip-$n"
    stopped "skip-$n" "$n"
    says "step 1 is skipped: loss " "step 3 is skipped" "step 4: the loss of microbatch 0 is " \
        "3 steps before it were skipped for the like (optimizer.on_nan_most)"
done
run_ranks 0 2 train broken/infinite "${skip[@]}" logging.run=skipped optimizer.steps=3
cmp skipped/model/model.safetensors broken/infinite/model.safetensors 2>/dev/null || python3 - <<'END' || fail "weights changed"
import json, struct
def load(path):
    data = open(path, "rb").read()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + length])
    return {k: data[8 + length + v["data_offsets"][0]:8 + length + v["data_offsets"][1]]
            for k, v in header.items() if k != "__metadata__"}
a, b = load("skipped/model/model.safetensors"), load("broken/infinite/model.safetensors")
assert all(a[k] == b[k] for k in b), [k for k in b if a[k] != b[k]]
END
python3 - <<'END' || fail "metrics.jsonl of skipped steps"
import json
steps = [json.loads(line) for line in open("skipped/metrics.jsonl")]
assert [step["skipped"] for step in steps] == [True] * 3 and all(step["loss"] is None for step in steps)
END
