#!/bin/bash
# tools/gpu.sh and the report of what it leaves, from runs on the host that stand in for a GPU's.
source "$(dirname "$0")/common.sh"
gpu=$MUDDPIPE_SOURCE/tools/gpu.sh

run 0 "$gpu" --help
says "tools/gpu.sh check" "--prefix DIR"
run 2 "$gpu" everything
run 2 "$gpu" pair --prefix
run 2 "$gpu" report
run 2 "$gpu" report .
says "no folder of tools/gpu.sh"
run 2 env GPU_SH_DEVICE=cpu "$gpu" single --no-build --build no/such/folder --out "$work/results"
says "there is no"

# A pair with one run that went well and one that did not.
tiny_data
tiny_run
mkdir -p pair/runs check
echo "host: here" | tee pair/machine.txt >check/machine.txt
ranks 2 train run.yaml logging.run=pair/runs/tiny-2 optimizer.steps=6 profile.steps=2 "$wire" \
    >pair/runs/tiny-2.out 2>&1
ranks 1 train run.yaml logging.run=pair/runs/none-1 data.train=missing.bin \
    >pair/runs/none-1.out 2>&1 && fail "trained on nothing"
ranks 2 bench comm device=cpu --repeats 1 --json pair/bench.jsonl "$wire" >pair/bench.log 2>&1
printf 'golden\tone case\tok\tlogits 1e-7\nbits\tanother\tFAILED\tother bits\n' >check/checks.tsv
run 1 "$gpu" report "$work"
says "1 FAILED" "| another | FAILED | other bits |" "| gemm forward |" "| tiny | 2 | 4 x 2 x 32 |" \
    "time of a step by operation" "| one way | 32 MiB | GB/s |" "| none | 1 |" "missing.bin"
python3 - pair/runs/tiny-2/trace/all.json <<'END' || fail "all.json is not both ranks' trace"
import json, sys
events = json.load(open(sys.argv[1]))["traceEvents"]
assert {event["pid"] for event in events} == {0, 1}
END
rm -r pair/runs/none-1.out check
run 0 "$gpu" report pair
