#!/bin/bash
# Altering one element of any expected tensor by 0.1 % of its largest makes check fail and name it.
source "$(dirname "$0")/common.sh"

altered() { # CASE N tensor...: all tensors if none are named
    local case=$1 n=$2 name
    shift 2
    python3 "$(dirname "$script")/alter.py" "$golden/$case" "$work/$case"
    (($# > 0)) || set -- $(ls "$case")
    for name in "$@"; do
        run_ranks 1 "$n" check "$case/$name"
        (($(grep -c ' FAILED$' out) == 1)) || fail "$name: not exactly one comparison failed"
        grep -q "^$name .* FAILED$" out || fail "$name is not named"
        says "1 of "
    done
}

altered muddformer-tiny 1
altered transformerpp-tiny 1 logits loss
altered muddformer-k2-tiny 3 logits loss grad.dense_bs.1 grad.tok_embeddings.weight grad.output.weight
