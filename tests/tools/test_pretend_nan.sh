#!/bin/bash
# A loss that is not finite while the host is steps ahead: the end of the run on all ranks, with the lines
# of the steps before, and no weights.
source "$(dirname "$0")/pretend.sh"
tiny_data
tiny_run

wild=(optimizer.schedule=constant optimizer.warmup=0 optimizer.clip=0 optimizer.steps=50)

# The rates at which weights overflow in the second step and some steps later.
for rate in 1e18 1e3; do
    run 1 "$MUDDPIPE" train run.yaml device=cpu logging.run="host-$rate" optimizer.lr="$rate" \
        "${wild[@]}"
    said=$(grep -o 'step [0-9]*: the .* left as they were' out) || fail "nothing wrong at $rate"
    for n in 1 2 4; do
        for transport in $wires; do
            name=$rate-$transport-$n
            run_pretend 1 "$n" "$transport" train run.yaml logging.run="$name" \
                optimizer.lr="$rate" "${wild[@]}"
            (($(grep -cF "error: $said" out) == n)) || fail "$name: not on each rank: $said"
            (($(grep -c 'error: ' out) == n)) || fail "$name: other errors"
            ! grep -q 'gave up' out || fail "$name: not a quiet end"
            cmp <(cut -d, -f1-6 "$name/metrics.jsonl") <(cut -d, -f1-6 "host-$rate/metrics.jsonl") ||
                fail "$name: other steps before"
            [[ ! -e $name/model ]] || fail "$name: weights were left"
            if ((n == 1)); then
                break
            fi
        done
    done
done

# The first step.
python3 "$(dirname "$script")/broken.py" "$golden/muddformer-tiny" broken
for n in 1 2; do
    run_pretend 1 "$n" ipc check broken/infinite
    says "step 1: the loss of microbatch 0 is "
done
