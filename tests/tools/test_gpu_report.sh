#!/bin/bash
# The report of what tools/gpu.sh leaves and what it finds wrong there, from runs on the host that stand
# in for a GPU's.
source "$(dirname "$0")/common.sh"
gpu=$MUDDPIPE_SOURCE/tools/gpu.sh
report=$MUDDPIPE_SOURCE/tests/acceptance/gpu_report.py

run 0 "$gpu" --help
says "tools/gpu.sh check" "--prefix DIR" "--limit S"
run 2 "$gpu" everything
run 2 "$gpu" pair --prefix
run 2 "$gpu" check --limit soon
run 2 "$gpu" report
run 2 "$gpu" report .
says "no folder of tools/gpu.sh"
run 2 env GPU_SH_DEVICE=cpu "$gpu" single --no-build --build no/such/folder --out "$work/results"
says "there is no"

# A pair with one run that went well and one that did not.
tiny_data
tiny_run
mkdir -p pair/runs check tests
echo "host: here" | tee pair/machine.txt >check/machine.txt
ranks 2 train run.yaml logging.run=pair/runs/tiny-2 optimizer.steps=6 profile.steps=2 "$wire" \
    >pair/runs/tiny-2.out 2>&1
ranks 1 train run.yaml logging.run=pair/runs/none-1 data.train=missing.bin \
    >pair/runs/none-1.out 2>&1 && fail "trained on nothing"
ranks 2 bench comm device=cpu --repeats 1 --json pair/bench.jsonl "$wire" >pair/bench.log 2>&1
cat >tests/ctest.xml <<'XML'
<testsuite><testcase name="comm/good" status="run"><system-out>fine</system-out></testcase>
<testcase name="comm/bad" status="fail"><system-out>a line
[rank 1] error: it broke
noise</system-out></testcase>
<testcase name="comm/cut" status="fail"><system-out>half a line</system-out></testcase>
<testcase name="comm/none" status="notrun"><system-out>skipped: no GPU
----</system-out></testcase></testsuite>
XML
cat >tests/ctest.log <<'LOG'
1/5 Test #14: comm/bad ....................***Timeout   0.13 sec
The stop time has been passed. Stopping all tests.
2/5 Test  #9: comm/cut ....................***Timeout   1.75 sec
LOG
for name in good bad cut none late; do
    echo "  Test  #9: comm/$name"
done >tests/ctest-all.log
run 0 python3 "$report" --tests tests
{
    sed 's/^/tests\t/' out
    printf 'golden\t%s\t%s\t%s\n' "one float32" ok "logits 1e-7" "one bf16" FAILED "not finite" \
        "two float32" ok "loss 1e-8"
    printf 'bits\t%s\t%s\t%s\n' "ucx 2 stages" ok "2 of 2; same bits" "ucx 4 stages" FAILED "other bits" \
        "ipc 4 stages" refused "1 of 2; too many stages" "mpi 4 stages" refused "1 of 2; too many stages"
} >check/checks.tsv
run 1 "$gpu" report "$work"
says "1 FAILED, 1 ok, 3 skipped" "Passed: comm/good." "- FAILED: it broke (comm/bad)" \
    "- skipped: no time left (comm/cut; comm/late)" "- skipped: no GPU (comm/none)" \
    "| one | logits 1e-7 | FAILED |" "| two | loss 1e-8 |  |" \
    "- FAILED: not finite (one bf16)" "| ucx | 2 of 2 | FAILED |" "| ipc |  | refused, 1 of 2 |" \
    "- refused: 1 of 2; too many stages (ipc 4 stages; mpi 4 stages)" "| gemm forward |" "| tiny | 2 | 4 x 2 x 32 |" \
    "time of a step by operation" "| one way | 32 MiB | GB/s |" "| none | 1 |" "missing.bin"
echo >tests/ctest.log # ended otherwise than by its time
run 0 python3 "$report" --tests tests
says "comm/late	FAILED	ctest did not run it"
python3 - pair/runs/tiny-2/trace/all.json <<'END' || fail "all.json is not both ranks' trace"
import json, sys
events = json.load(open(sys.argv[1]))["traceEvents"]
assert {event["pid"] for event in events} == {0, 1}
END
rm -r pair/runs/none-1.out check
run 0 "$gpu" report pair
! grep -q 'FAILED\|warning' out || fail "wrong, though nothing is"

# What a run on GPUs must hold, one after the other broken.
variant() { # NAME LINK SED EXPOSED
    rm -rf gpus
    mkdir -p gpus/over
    printf 'host: here\nGPU: 0, an H200\nlink: %s\n' "$2" >gpus/machine.txt
    cp -R pair/runs/tiny-2 "gpus/over/$1-2"
    sed -i 's/^device: .*/device: cuda/' "gpus/over/$1-2/config.yaml"
    {
        cat pair/runs/tiny-2.out
        printf '%s\n' "               its GPU: 9.9 GiB taken, 9.8 GiB predicted with the workspace (+1.0%)" \
            "               its host: 0 B pinned for tensors on their way, 0 B predicted (and 4.0 KiB for words)"
    } | sed "$3" >"gpus/over/$1-2.out"
    sed -i "s/\"exposed_dense\":[0-9.]*/\"exposed_dense\":$4/" "gpus/over/$1-2/metrics.jsonl"
}
variant good NV18 "" 0.009
run 0 "$gpu" report gpus
says "| good | 2 |" "| 0.90 % | 9.9 GiB of 9.8 GiB (+1.0%) |" "over each transport"
variant swollen NV18 's/+1.0%/-2.1%/' 0.009
run 1 "$gpu" report gpus
says "- FAILED: swollen on 2: rank 0 took 9.9 GiB, -2.1 % off the 9.8 GiB predicted (limit 2 %)"
variant mute NV18 '/its GPU/d' 0.009
run 1 "$gpu" report gpus
says "- FAILED: mute on 2: does not say what memory its GPU has taken"
variant late NV18 "" 0.011
run 1 "$gpu" report gpus
says "- FAILED: late on 2: 1.10 % of a step is exposed dense traffic (limit 1 %)"
variant far PIX "" 0.011
run 0 "$gpu" report gpus
says "- warning: far on 2: 1.10 % of a step is exposed dense traffic (limit 1 % over NVLink; here the GPUs are joined by: PIX)"
variant staged NV18 's/its host: 0 B/its host: 8.0 MiB/' 0.3
run 0 "$gpu" report gpus
says "| 30.00 % (through the host) |"
! grep -q warning out || fail "through the host, all is exposed"

# Losses of two runs.
losses() { # LOSS...: metrics.jsonl
    local step=0 loss
    for loss; do
        echo "{\"step\":$((step += 1)),\"loss\":$loss}"
    done
}
losses 2.0 1.0 1.0 >first
losses 2.0 1.00009 1.0 >near
losses 2.0 1.00011 1.0 >far
losses 2.0 1.0 >short
run 0 python3 "$report" --losses first near
says "ok	3 steps: losses at most 9.0e-05 apart (step 2; limit 1e-04)"
run 0 python3 "$report" --losses first far
says "FAILED	3 steps: losses at most 1.1e-04 apart (step 2"
run 0 python3 "$report" --losses first short
says "FAILED	3 steps and 2"
