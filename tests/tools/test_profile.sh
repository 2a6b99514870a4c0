#!/bin/bash
# profile.steps: a trace a rank that is sound JSON and adds up, and the weights of a run without it.
source "$(dirname "$0")/common.sh"

tiny_data
tiny_run

check_trace() { # FOLDER RANKS STEPS
    python3 - "$@" <<'END'
import json, sys
folder, ranks, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for rank in range(ranks):
    trace = json.load(open(f"{folder}/trace/rank-{rank}.json"))
    assert trace["rank"] == rank and trace["steps"] == steps and trace["complete"], trace.keys()
    spans = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    begin = min(e["ts"] for e in spans)
    end = max(e["ts"] + e["dur"] for e in spans)
    assert all(e["pid"] == rank and e["dur"] >= 0 for e in spans)
    # What the sums add up to is the time in which some operation ran, which the extent contains.
    sums = sum(s["ns"] for s in trace["sums"]) / 1e3
    extent = trace["tracks"][0]["extent_ns"] / 1e3
    assert 0 < sums <= (end - begin) * 1.001, (sums, end - begin)
    assert extent <= (end - begin) * 1.001, (extent, end - begin)
    names = {s["category"] for s in trace["sums"]}
    assert {"gemm forward", "gemm dgrad", "gemm wgrad", "attention forward", "attention backward",
            "aggregate forward", "aggregate dA", "key gradient", "norms", "activations", "optimizer",
            "copies"} <= names, names
    waits = {"wait plain", "wait dense"} & names
    assert (len(waits) > 0) == (ranks > 1), names
    assert any("microbatch" in e.get("args", {}).get("note", "") for e in spans)
    adamw = [s for s in trace["sums"] if s["name"] == "adamw"]
    assert adamw[0]["count"] % steps == 0, adamw
END
}

limit=60
for n in 1 2; do
    run_ranks 0 "$n" train run.yaml logging.run="plain$n"
    run_ranks 0 "$n" train run.yaml logging.run="traced$n" profile.first_step=2 profile.steps=2
    says "time of a step by operation, rank 0, mean of steps 2 to 3" "gemm forward" "trace: traced$n"
    check_trace "traced$n" "$n" 2
    cmp "plain$n/model/model.safetensors" "traced$n/model/model.safetensors" ||
        fail "recording changed the weights"
    [[ ! -e plain$n/trace ]] || fail "a trace nobody asked for"
done
run 0 "$MUDDPIPE" train run.yaml logging.run=bare logging.export=false
[[ ! -e bare/model && -s bare/metrics.jsonl ]] || fail "logging.export=false leaves a model"
# As threads, and more steps than the run has: what there was is written.
run 0 "$MUDDPIPE" train run.yaml logging.run=threads parallel.transport=threads parallel.pp=2 \
    profile.first_step=3 profile.steps=20
check_trace threads 2 2
run 1 "$MUDDPIPE" train run.yaml logging.run=never profile.first_step=9 profile.steps=1
says "profile.first_step is 9, but the run has 4 steps"
