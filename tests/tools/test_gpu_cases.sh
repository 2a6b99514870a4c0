#!/bin/bash
# On real GPUs: golden cases are within their limits, alone and on two ranks over ipc, and two ranks have
# the bits of one. tools/gpu.sh check runs all cases over all transports.
source "$(dirname "$0")/common.sh"
source "$(dirname "$0")/on_gpu.sh"
cases=("$golden"/{muddformer-tiny,muddformer-k2-tiny,muddpythia-tiny})

all_pass() { # STAGES
    local case
    for case in "${cases[@]}"; do
        says "passed: $case, $1 stage"
    done
    says "3 of 3 passed"
}

probe check "${cases[@]}" --save bits
all_pass 1
run_gpu 0 2 check "${cases[@]}" --same bits
all_pass 2
run_gpu 0 2 check "${cases[@]}" --same bits parallel.schedule=gpipe
all_pass 2

run_gpu 0 1 check "${cases[@]}" --steps 10
all_pass 1
grep '^step ' out >steps || fail "no steps"
run_gpu 0 2 check "${cases[@]}" --steps 10
all_pass 2
grep '^step ' out | cmp - steps || fail "other losses or norms on two ranks"
