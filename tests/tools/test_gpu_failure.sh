#!/bin/bash
# On real GPUs: a rank is killed while it trains and the other's stream waits for what it sends. The job is
# gone within ten seconds and says which rank died, and what the other one did. The argument is the
# transport (ipc); nccl wants a GPU for each of the two, and the test skips where it refuses.
source "$(dirname "$0")/common.sh"
source "$(dirname "$0")/on_gpu.sh"
transport=${1:-ipc}
tiny_data
tiny_run
probe train run.yaml optimizer.steps=1 logging.run=alone
job_ranks=2
source "$(dirname "$0")/jobs.sh"
wire="device=cuda parallel.transport=$transport"

if [[ $transport == nccl ]]; then
    got=0
    timeout -k 5 60 mpirun -n 2 "$program" train run.yaml optimizer.steps=1 logging.run=two $wire \
        >out 2>&1 </dev/null || got=$?
    if ((got != 0)) && grep -q 'error: .*\(which NCCL refuses\|needs libnccl\)' out; then
        echo "skipped: $(grep -om1 'error: .*' out | cut -c8-)"
        exit 77
    fi
    ((got == 0)) || fail "exit code $got: two ranks over $transport"
fi

start
kill -KILL "$(pid_of 1)"
ends 10
((code != 0)) || fail "exit code 0 after SIGKILL"
grep -q "error: rank 1 died.* while rank 0 was $doing" out || fail "no word about rank 1"
! grep -q 'CHECK\|signal 11' out || fail "another end"
clean
[[ ! -e run/model ]] || fail "weights after SIGKILL"
