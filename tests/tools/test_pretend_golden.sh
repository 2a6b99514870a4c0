#!/bin/bash
# test_pretend_golden.sh CASE [all]: on GPUs of threads every layout is within the limits and leaves the
# bits of the host, alone and on two and four ranks. "all": over each transport; otherwise they take
# turns.
source "$(dirname "$0")/pretend.sh"
case=$golden/$1
all=${2:-}

run 0 "$MUDDPIPE" check "$case" --save host.safetensors device=cpu
run 0 "$MUDDPIPE" check "$case" --steps 10 device=cpu
grep '^step ' out >host.steps || fail "no steps"

same() { # N TRANSPORT SCHEDULE
    run_pretend 0 "$1" "$2" check "$case" --save bits.safetensors parallel.schedule="$3"
    says "passed: $case, $1 stage"
    ! grep -q FAILED out || fail "passed with a failure"
    cmp bits.safetensors host.safetensors || fail "other bits than the host: $*"
    rm bits.safetensors
    run_pretend 0 "$1" "$2" check "$case" --steps 10 parallel.schedule="$3"
    says "passed: $case, $1 stage"
    grep '^step ' out | cmp - host.steps || fail "other steps than the host: $*"
}

same 1 "" 1f1b
turn=0
for transport in $wires; do
    if [[ -n $all ]] || ((turn++ % 2 == 0)); then
        same 2 "$transport" gpipe
        same 4 "$transport" 1f1b
    fi
done
