#!/bin/bash
# test_golden.sh CASE [all]: muddpipe check passes and ten optimizer steps follow the losses, alone and
# on two, three and four ranks. "all": with both schedules each; otherwise they take turns.
source "$(dirname "$0")/common.sh"
case=$golden/$1
all=${2:-}

gradients() { # N SCHEDULE
    run_ranks 0 "$1" check "$case" parallel.pp="$1" parallel.schedule="$2"
    says "logits " "loss " "grad.output.weight " "passed: $case, $1 stage"
    ! grep -q FAILED out || fail "passed with a failure"
}

steps() { # N SCHEDULE
    run_ranks 0 "$1" check "$case" --steps 10 parallel.schedule="$2"
    says "step  10  loss " "passed: $case, $1 stage"
}

for n in 1 2 3 4; do
    order=(gpipe 1f1b)
    ((n % 2 == 0)) || order=(1f1b gpipe)
    gradients "$n" "${order[0]}"
    steps "$n" "${order[1]}"
    if [[ -n $all ]]; then
        gradients "$n" "${order[1]}"
        steps "$n" "${order[0]}"
    fi
done
