#!/bin/bash
# test_bits.sh CASE: every layout leaves the same file of logits, loss and gradients, and prints the
# same loss and norm. tests/runtime/test_bitwise.c has many more layouts, over threads.
source "$(dirname "$0")/common.sh"
case=$golden/$1
units=$2 # of the model

same() { # N key=value...: as the first call
    local n=$1
    shift
    run_ranks 0 "$n" check "$case" --save bits.safetensors "$@"
    grep '^loss .*, gradient norm ' out >lines || fail "no line with loss and norm"
    if [[ ! -f first.safetensors ]]; then
        mv bits.safetensors first.safetensors
        mv lines first.lines
        return
    fi
    cmp bits.safetensors first.safetensors || fail "other bits: $n ranks, $*"
    cmp lines first.lines || fail "other loss or norm: $n ranks, $*"
    rm bits.safetensors
}

same 1 parallel.threads=1
same 1 parallel.threads=2 parallel.schedule=gpipe
for transport in $wires; do
    same 2 parallel.threads=2 parallel.partition=layers parallel.transport="$transport"
    same 2 parallel.threads=1 parallel.partition="4,$((units - 4))" parallel.schedule=gpipe \
        parallel.transport="$transport"
    same 3 parallel.threads=1 parallel.transport="$transport"
    same 4 parallel.threads=1 parallel.partition="2,3,2,$((units - 7))" parallel.prefetch=0 \
        parallel.transport="$transport"
    same 4 parallel.threads=2 parallel.schedule=gpipe parallel.transport="$transport"
done
for n in 2 3 4; do
    same 1 parallel.transport=threads parallel.pp="$n" parallel.threads=1
    same 1 parallel.transport=threads parallel.pp="$n" parallel.threads=2 parallel.schedule=gpipe \
        parallel.partition=layers
done
