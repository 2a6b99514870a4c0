#!/bin/bash
# Case after case on GPUs of threads, one of them broken: over every transport the next trainer finds
# everything as the first did, and leaves the bits of the host.
source "$(dirname "$0")/pretend.sh"
cases=("$golden"/{muddformer-tiny,muddformer-k2-tiny,transformerpp-tiny,muddformer-blocks-tiny})
python3 "$(dirname "$script")/broken.py" "$golden/muddformer-tiny" broken
run 0 "$MUDDPIPE" check "${cases[@]}" --save host device=cpu
run 0 "$MUDDPIPE" check "${cases[@]}" --steps 10 device=cpu
grep '^step ' out >host.steps || fail "no steps"

same() { # N TRANSPORT
    run_pretend 1 "$1" "$2" check "${cases[@]:0:2}" broken/missing broken/infinite "${cases[@]:2}" \
        --same host
    says "4 of 6 passed; failed: infinite; refused: missing"
    (($(grep -c '^same bits as host/' out) == 4)) || fail "not four times the same bits: $*"
    run_pretend 0 "$1" "$2" check "${cases[@]}" --steps 10 parallel.schedule=gpipe
    says "4 of 4 passed"
    grep '^step ' out | cmp - host.steps || fail "other steps than the host: $*"
}

same 1 ""
for transport in $wires; do
    same 2 "$transport"
    same 4 "$transport"
done
if [[ $wires == *nccl* ]]; then
    PRETEND_GPUS=2 run_pretend 1 4 nccl check "${cases[@]}"
    says "which NCCL refuses" "1 of 4 passed; refused: muddformer-tiny, " # plain stages talk to neighbours only
fi
