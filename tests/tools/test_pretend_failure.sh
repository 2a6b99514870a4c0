#!/bin/bash
# Ranks that are lost while the streams of the others, GPUs of threads, wait for them: nothing hangs,
# every rank says why, metrics.jsonl is whole.
source "$(dirname "$0")/pretend.sh"
source "$(dirname "$0")/jobs.sh"
tiny_data
tiny_run
program=$PRETEND
transport() {
    wire="device=cuda parallel.transport=$1"
}

for name in $wires; do
    transport "$name"
    for victim in 0 2; do
        start
        kill -KILL "$(pid_of $victim)"
        ends 10
        ((code != 0)) || fail "exit code 0 after SIGKILL"
        grep -q "error: rank $victim died.* while rank [0-9] was $doing" out ||
            fail "no word about rank $victim"
        (($(grep -c "error: rank $victim died" out) == 3)) || fail "not each of the others says so"
        ! grep -q 'CHECK\|signal 11' out || fail "another end"
        clean
        [[ ! -e run/model ]] || fail "weights after SIGKILL"
        [[ $name == ipc ]] || break
    done

    # Alive, as far as anybody knows, but its messages do not come.
    start health.heartbeat_s=100 health.deadline_s=3
    kill -STOP "$(pid_of 1)"
    ends 30
    ((code != 0)) || fail "exit code 0 after the deadline"
    grep 'error: .*health.deadline_s' out | grep -q '[ (]wait ' || fail "no word about the deadline"
    ! grep -q 'this rank failed in a step while' out || fail "what is said already is said again"
    clean
done

transport ipc
start health.heartbeat_s=4
kill -STOP "$(pid_of 1)"
ends 30
((code != 0)) || fail "exit code 0 after SIGSTOP"
grep -q "error: rank 1 has not answered for 4 s.* while rank [0-9] was $doing" out ||
    fail "no word about rank 1"
clean

constant="optimizer.schedule=constant optimizer.warmup=0"
start $constant
kill -USR1 "$job"
ends 20
((code == 0)) || fail "exit code $code after SIGUSR1"
says "stopped by a signal" "run folder     run"
! grep -q 'error\|warning' out || fail "complaints after SIGUSR1"
clean
rm -rf stopped whole
mv run stopped # the weights are those after the last step that was counted
run 0 "$MUDDPIPE" train run.yaml optimizer.steps="$(wc -l <stopped/metrics.jsonl)" $constant \
    device=cpu logging.run=whole
cmp stopped/model/model.safetensors whole/model/model.safetensors || fail "other weights"
