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

# The run's own configuration repeats it: the table that it kept, not another measured.
cp measured/algorithms.txt before
grep -qx "  algorithms: *\"*measured/algorithms.txt\"*" measured/config.yaml || fail "config.yaml: another table"
run_pretend 0 2 ipc train measured/config.yaml logging.run=repeated
! grep -q "^\[rank 0\] measured algorithms" out || fail "measured again"
sed '/^$/q' repeated/hash.txt | cmp - measured.hash || fail "another hash"
cmp repeated/model/model.safetensors measured/model/model.safetensors || fail "other weights"
cmp measured/algorithms.txt before || fail "a run changed another's folder"

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
says "kernels.algorithms has no use here: only bf16 on GPUs"
! grep -q "algorithms.txt" plain/config.yaml || fail "config.yaml names a table that is not there"

# What cannot be read or made is refused at once, wherever the run computes and before anything is timed.
mkdir folder
for where in device=cuda "device=cpu precision=float32 deterministic=false"; do
    for file in nowhere/table folder train.bin/table; do
        # shellcheck disable=SC2086
        run 1 "$PRETEND" train run.yaml logging.run=none "${few[@]}" kernels.algorithms="$file" $where
        says "kernels.algorithms: cannot "
        ! grep -q "computing on" out || fail "$file: computed before it was refused"
    done
done
[[ ! -e none ]] || fail "a run folder of a run that never began"

# Wires of GPUs where there is nothing to carry.
for transport in ipc nccl; do
    run 0 "$MUDDPIPE" train run.yaml device=cpu optimizer.steps=1 logging.run=$transport \
        parallel.transport=$transport
    says "warning: parallel.transport=$transport has no use: one rank sends nothing"
done
