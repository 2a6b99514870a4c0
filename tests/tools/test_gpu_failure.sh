#!/bin/bash
# On real GPUs: a rank is killed while it trains and the other's stream waits for what it sends. The job is
# gone within ten seconds and says which rank died, and what the other one did.
source "$(dirname "$0")/common.sh"
source "$(dirname "$0")/on_gpu.sh"
tiny_data
tiny_run
probe train run.yaml optimizer.steps=1 logging.run=alone
job_ranks=2
source "$(dirname "$0")/jobs.sh"
wire="device=cuda parallel.transport=ipc"

start
kill -KILL "$(pid_of 1)"
ends 10
((code != 0)) || fail "exit code 0 after SIGKILL"
grep -q "error: rank 1 died.* while rank 0 was $doing" out || fail "no word about rank 1"
! grep -q 'CHECK\|signal 11' out || fail "another end"
clean
[[ ! -e run/model ]] || fail "weights after SIGKILL"
