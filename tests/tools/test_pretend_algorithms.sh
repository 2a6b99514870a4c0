#!/bin/bash
# The table of product algorithms in bf16: the run folder keeps it, a run that is given it has the same hash
# and the same bits, and another line is another hash. On GPUs of threads.
source "$(dirname "$0")/pretend.sh"
tiny_data
tiny_run
few=(precision=bf16 deterministic=true optimizer.steps=2)

train() { # NAME N key=value...: its parts to NAME.hash
    run_pretend 0 "$2" ipc train run.yaml logging.run="$1" "${few[@]}" "${@:3}"
    sed '/^$/q' "$1/hash.txt" >"$1.hash"
}

differs() { # PART NAME: from `measured`, in that part only
    local found
    found=$({ diff "$2.hash" measured.hash || true; } | sed -n 's/^< \([a-z]*\) .*/\1/p' | xargs)
    [[ $found == "run $1" ]] || fail "$2: differs in '$found', not in 'run $1'"
}

train measured 2 kernels.algorithms=measure
line="card=threads library=1 product=1x1x1 algorithm=01"
[[ $(grep -v '^#' measured/algorithms.txt) == "$line us=1.00 first=2.00" ]] || fail "no table kept"
grep -qx "algorithms [0-9a-f]\{16\}" measured.hash || fail "no table in the hash"

# Given the table, in whatever times.
sed 's/us=1.00/us=3.00/' measured/algorithms.txt >table
cp table before
train given 2 kernels.algorithms=table
cmp given.hash measured.hash || fail "another hash"
cmp <(cut -d, -f1-6 given/metrics.jsonl) <(cut -d, -f1-6 measured/metrics.jsonl) || fail "other bits"
cmp given/model/model.safetensors measured/model/model.safetensors || fail "other weights"
cmp table before || fail "the table was written though nothing lacked"
cmp table given/algorithms.txt || fail "the table given is not the one kept"

sed -i 's/algorithm=01/algorithm=02/' table
train other 2 kernels.algorithms=table
differs algorithms other
train unasked 2
differs algorithms unasked
grep -qx "algorithms none" unasked.hash || fail "a table that nobody asked for"
[[ ! -e unasked/algorithms.txt ]] || fail "a table that nobody asked for, kept"

# bf16 rounds where stages meet.
train alone 1 kernels.algorithms=measure
differs config alone
train scheduled 2 kernels.algorithms=measure parallel.schedule=gpipe parallel.recompute=full
cmp scheduled.hash measured.hash || fail "schedule and recomputation are in the hash"
cmp scheduled/model/model.safetensors measured/model/model.safetensors || fail "they change bits"

# float32 takes the library's own choice.
train plain 1 precision=float32 kernels.algorithms=measure
grep -qx "algorithms none" plain.hash || fail "a table in float32"
