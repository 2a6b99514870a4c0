#!/bin/bash
# Training allocates nothing: the program's own calls of malloc and its like, and of what takes memory, events
# or streams of a GPU, from the second step to the last, evaluations between them included
# (tests/runtime/count_allocations.c). $COUNTED and $PRETEND are muddpipe with the counter, on the host
# and on GPUs of threads.
source "$(dirname "$0")/pretend.sh"
tiny_data
tiny_run
MUDDPIPE=$COUNTED

none() { # RANKS PROGRAM: every process of `out` has counted, and counted nothing
    local said
    said=$(grep -c '^allocated while training: ' out || true)
    ((said == $1)) || fail "$said of $1 processes say what they allocated"
    grep -q '^allocated while training: [^0]' out || return 0
    grep -o 'allocated at 0x[0-9a-f]*' out | sort -u | while read -r _ _ place; do
        addr2line -fe "$2" "$place" | head -1 >&2 || true
    done
    fail "training allocates (the functions above)"
}

# A batch that grows, epochs of documents, evaluations, heartbeats, clocks of the ranks apart.
often=(optimizer.steps=24 optimizer.ramp_from=1 optimizer.ramp=0.8 parallel.microbatches=6
    data.order=documents data.mask_documents=true data.eod=10 data.valid_every=5
    logging.sample_tokens=4 health.heartbeat_s=0.5)

run_ranks 0 1 train run.yaml logging.run=alone "${often[@]}"
none 1 "$COUNTED"
for schedule in 1f1b gpipe; do
    run 0 "$COUNTED" train run.yaml logging.run="threads-$schedule" "${often[@]}" parallel.pp=3 \
        parallel.transport=threads parallel.schedule=$schedule
    none 1 "$COUNTED"
done
for wire in ${MUDDPIPE_WIRES:-ucx mpi}; do
    for n in 2 3; do
        wire=parallel.transport=${wire##*=}
        run_ranks 0 "$n" train run.yaml logging.run="${wire##*=}-$n" "${often[@]}"
        none "$n" "$COUNTED"
    done
done
for transport in $wires; do
    for n in 2 3; do
        run_pretend 0 "$n" "$transport" train run.yaml logging.run="gpu-$transport-$n" "${often[@]}"
        none "$n" "$PRETEND"
    done
done
run_ranks 0 2 train run.yaml logging.run=replicas "${often[@]}" parallel.dp=2
none 2 "$COUNTED"
run_pretend 0 2 ipc train run.yaml logging.run=gpu-replicas "${often[@]}" parallel.dp=2
none 2 "$PRETEND"

# The counter counts: what is written of a recorded step takes memory, between two steps.
run_ranks 0 1 train run.yaml logging.run=recorded "${often[@]}" profile.first_step=3 profile.steps=2
grep -q '^allocated while training: [1-9]' out || fail "the counter sees nothing at all"
