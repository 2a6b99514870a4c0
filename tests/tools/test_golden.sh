#!/bin/bash
# test_golden.sh CASE: muddpipe check passes, alone and on two, three and four ranks, with both
# schedules; ten optimizer steps follow the losses.
source "$(dirname "$0")/common.sh"
case=$golden/$1

for n in 1 2 3 4; do
    for schedule in gpipe 1f1b; do
        run_ranks 0 "$n" check "$case" parallel.pp="$n" parallel.schedule="$schedule"
        says "logits " "loss " "grad.output.weight " "passed: $case, $n stage"
        ! grep -q FAILED out || fail "passed with a failure"
        if [[ $n != 3 || $schedule == 1f1b ]]; then
            run_ranks 0 "$n" check "$case" --steps 10 parallel.schedule="$schedule"
            says "step  10  loss " "passed: $case, $n stage"
        fi
    done
done
