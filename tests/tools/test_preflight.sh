#!/bin/bash
# muddpipe preflight: what it measures on this host; a rank with another build, other operations, another clock is
# named, and the exit code is 1.
source "$(dirname "$0")/common.sh"

run 0 "$MUDDPIPE" preflight
says "preflight: 1 rank, nothing wrong" "Open MPI"
run 2 "$MUDDPIPE" preflight --json
run 0 "$MUDDPIPE" preflight --help
says "usage: mpirun"

# Every pair of an odd and an even number of ranks is measured once.
for n in 5 4; do
    run_ranks 0 "$n" preflight
    says "preflight: $n ranks over ${wire#*=}, nothing wrong" "pairs within a host: $((n * (n - 1) / 2)), each way"
    (($(sed -n '/^GB.s each way/,/^pairs/p' out | tail -n +3 | head -n "$n" | grep -o '[0-9]\.[0-9][0-9]' | wc -l) ==
        n * (n - 1))) || fail "not all pairs are in the table"
done

# A job of two builds says so when it starts.
seq 1 3000 >text
run 0 "$MUDDPIPE" data encode text train.bin
tiny_run
run 0 mpirun -n 1 "$MUDDPIPE" train run.yaml data.valid= logging.run=two "$wire" : \
    -n 1 "$MUDDPIPE_FAULTS" train run.yaml data.valid= logging.run=two "$wire"
says "rank 1 runs another build of this program than rank 0"
run_ranks 0 2 train run.yaml data.valid= logging.run=one
! grep -q "another build" out || fail "one build taken for two"

others() { # WORDS COMMAND...: of the second of two ranks
    run 1 mpirun -n 1 "$MUDDPIPE" preflight "$wire" : -n 1 "${@:2}" preflight "$wire"
    says "$1" " wrong ("
}
others "(rank 1): muddpipe: " "$MUDDPIPE_FAULTS"
others "(rank 1): what it computes on: cpu-v" env MUDDPIPE_GEMM=own "$MUDDPIPE"
others "(rank 1): its clock is +" env LD_PRELOAD="$BROKEN_CLOCK_LIBRARY" BROKEN_CLOCK=7:0 "$MUDDPIPE"
grep -Eq "its clock is \+(6\.9|7\.0)" out || fail "not seven seconds"
