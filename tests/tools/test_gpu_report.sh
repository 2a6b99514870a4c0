#!/bin/bash
# tools/gpu.sh and the report of what it leaves, from runs on the host that stand in for a GPU's.
source "$(dirname "$0")/common.sh"
gpu=$MUDDPIPE_SOURCE/tools/gpu.sh
limit=200

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
cat >ctest.xml <<'XML'
<testsuite><testcase name="comm/good" status="run"><system-out>fine</system-out></testcase>
<testcase name="comm/bad" status="fail"><system-out>a line
[rank 1] error: it broke
noise</system-out></testcase>
<testcase name="comm/none" status="notrun"><system-out>skipped: no GPU
----</system-out></testcase></testsuite>
XML
{
    python3 "$MUDDPIPE_SOURCE/tools/gpu_report.py" --tests ctest.xml | sed 's/^/tests\t/'
    printf 'golden\t%s\t%s\t%s\n' "one float32" ok "logits 1e-7" "one bf16" FAILED "not finite" \
        "two float32" ok "loss 1e-8"
    printf 'bits\t%s\t%s\t%s\n' "ucx 2 stages" ok "2 of 2; same bits" "ucx 4 stages" FAILED "other bits" \
        "ipc 4 stages" refused "1 of 2; too many stages" "mpi 4 stages" refused "1 of 2; too many stages"
} >check/checks.tsv
run 1 "$gpu" report "$work"
says "1 FAILED, 1 ok, 1 skipped" "Passed: comm/good." "- FAILED: it broke (comm/bad)" \
    "- skipped: no GPU (comm/none)" "| one | logits 1e-7 | FAILED |" "| two | loss 1e-8 |  |" \
    "- FAILED: not finite (one bf16)" "| ucx | 2 of 2 | FAILED |" "| ipc |  | refused, 1 of 2 |" \
    "- refused: 1 of 2; too many stages (ipc 4 stages; mpi 4 stages)" "| gemm forward |" "| tiny | 2 | 4 x 2 x 32 |" \
    "time of a step by operation" "| one way | 32 MiB | GB/s |" "| none | 1 |" "missing.bin"
python3 - pair/runs/tiny-2/trace/all.json <<'END' || fail "all.json is not both ranks' trace"
import json, sys
events = json.load(open(sys.argv[1]))["traceEvents"]
assert {event["pid"] for event in events} == {0, 1}
END
rm -r pair/runs/none-1.out check
run 0 "$gpu" report pair

# The part `check` itself: what passes, what is off, what a transport refuses, what does not end.
python3 "$(dirname "$script")/alter.py" "$golden/muddformer-tiny" altered
mkdir build slow
first=${wires%% *}
export first
cat >build/muddpipe <<'END'
#!/bin/bash
[[ $1 != bench ]] || exec echo "$first ipc"
exec "$MUDDPIPE" "$@"
END
sed 's/^exec "/[[ "$*" != *gpipe* ]] || exec sleep 60\n&/' build/muddpipe >slow/muddpipe
chmod +x build/muddpipe slow/muddpipe
check() { # CODE BUILD CASES [NAME=VALUE...]
    run "$1" env "${@:4}" GPU_SH_DEVICE=cpu GPU_SH_CASES="$3" "$gpu" check --no-build --build "$2" \
        --out "$work/checked"
}
good="$golden/muddformer-tiny $golden/pythia-tiny"
check 0 build "$good"
says "golden cases: 4 of 4" "same bits: 6 of 12 layouts, 6 refused" "check: done"
cp checked/check/report.md out
says "| muddformer-tiny | logits " "| $first | 2 of 2 | 2 of 2 | 2 of 2 | 2 of 2 | 2 of 2 | 2 of 2 |" \
    "| ipc | refused, 0 of 2 |" "- refused: 0 of 2; transport ipc carries memory of GPUs" "cmocka"
check 1 build "$good $work/altered/grad.norm.weight"
says "FAILED  golden: grad.norm.weight float32: $work/altered/grad.norm.weight: 1 of 67 comparisons" \
    "FAILED  bits: $first 2 stages, 1f1b: 2 of 3; $work/altered/grad.norm.weight: 1 of 67" "golden cases: 5 of 6"
! grep -q 'ten steps: 2 of 3' out || fail "ten steps, which have no altered gradient, are off"
check 1 slow "$good" GPU_SH_LIMIT=10
says "FAILED  bits: $first 2 stages, gpipe: ended at its limit of 10 s" "check: FAILED"
! grep -q 'FAILED.*1f1b' out || fail "what ended is said not to have"
