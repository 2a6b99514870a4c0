# common.sh - what the scripts share: a scratch folder, ranks, expectations. To be sourced.
#
# $MUDDPIPE is the program, $MUDDPIPE_SOURCE the source tree, $MUDDPIPE_WIRES the transports between
# processes that it was built with, the default one first.
set -euo pipefail
golden=$MUDDPIPE_SOURCE/tests/golden
wires=${MUDDPIPE_WIRES:-ucx mpi}
wire=parallel.transport=${wires%% *}
work=$(mktemp -d "${TMPDIR:-/tmp}/muddpipe-test.XXXXXX")
trap 'rm -rf "$work"' EXIT
script=$(realpath "$0")
cd "$work"

fail() {
    printf '%s\n' "$*" >&2
    if [[ -s out ]]; then
        echo "--- output:" >&2
        tail -n 25 out >&2
    fi
    exit 1
}

ranks() { # N arguments...: the program on N ranks
    local n=$1
    shift
    if ((n == 1)); then
        "$MUDDPIPE" "$@"
    else
        mpirun -n "$n" "$MUDDPIPE" "$@"
    fi
}

run() { # CODE command...: what it prints goes to the file out
    local code=$1 got=0
    shift
    timeout -k 5 "${limit:-60}" "$@" >out 2>&1 </dev/null || got=$?
    ((got == code)) || fail "exit code $got instead of $code: $*"
}

says() { # WORDS...: each is in the file out
    local words
    for words in "$@"; do
        grep -qF -- "$words" out || fail "'$words' is missing"
    done
}

run_ranks() { # CODE N arguments...
    local code=$1 n=$2
    shift 2
    if ((n == 1)); then
        run "$code" "$MUDDPIPE" "$@"
    else
        run "$code" mpirun -n "$n" "$MUDDPIPE" "$@" "$wire"
    fi
}

tiny_data() { # train.bin and valid.bin: text of a sort, all bytes below 128
    seq 1 4000 | awk '{ printf "line %d of %d, %s\n", $1, NR * 7 % 13, substr("abcdefghij", NR % 9) }' >text
    "$MUDDPIPE" data encode text train.bin --valid 0.05 valid.bin >/dev/null
}

# A model that trains in no time: run.yaml, to be used with data of tiny_data.
tiny_run() {
    cat >run.yaml <<'END'
model: {n_layer: 4, n_head: 2, dim: 32, intermediate_size: 256, vocab_size: 256, block_size: 32}
data: {train: train.bin, valid: valid.bin, micro_batch: 2, valid_microbatches: 8}
parallel: {microbatches: 4}
optimizer: {steps: 4, lr: 1e-3}
END
}
