#!/bin/bash
# What ends a run from outside, on four ranks: kill, stop, SIGUSR1, Ctrl-C. Nothing hangs, everything
# says why, the run folder is clean.
source "$(dirname "$0")/common.sh"
source "$(dirname "$0")/jobs.sh"
tiny_data
tiny_run

for victim in 2 0; do
    start
    kill -KILL "$(pid_of $victim)"
    ends 10
    ((code != 0)) || fail "exit code 0 after SIGKILL"
    grep -q "error: rank $victim died.* while rank [0-9] was $doing" out || fail "no word about rank $victim"
    (($(grep -c "error: rank $victim died" out) == 3)) || fail "not each of the others says so"
    clean
    [[ ! -e run/model/model.safetensors ]] || fail "weights after SIGKILL"
done

what='\(norm\|[a-zA-Z].* microbatch [0-9]* from stage [0-9]\)'
start health.heartbeat_s=6 health.slow_s=2 # long before the job is given up, the ranks that wait say so
kill -STOP "$(pid_of 1)"
ends 30
grep -q "warning: step [0-9]*: for [2-5] s in $what; a whole step usually takes 0" out || fail "no word of a long wait"
((code != 0)) || fail "exit code 0 after SIGSTOP"
grep -q "error: rank 1 has not answered for 6 s.* while rank [0-9] was $doing" out || fail "no word about rank 1"
clean

constant=(optimizer.schedule=constant optimizer.warmup=0)
start "${constant[@]}" # a pause shorter than the limit is no news
kill -STOP "$(pid_of 1)"
sleep 1
kill -CONT "$(pid_of 1)"
before=$(lines)
sleep 1
(($(lines) > before)) || fail "no steps after a pause"
kill -USR1 "$job"
ends 20
((code == 0)) || fail "exit code $code after SIGUSR1"
says "stopped by a signal" "nats at the start, not known at the end" "run folder     run"
! grep -q 'error\|warning' out || fail "complaints after SIGUSR1"
clean
mv run stopped # the weights are those after the last step that was counted
run 0 "$MUDDPIPE" train run.yaml optimizer.steps="$(wc -l <stopped/metrics.jsonl)" "${constant[@]}" \
    logging.run=whole
cmp stopped/model/model.safetensors whole/model/model.safetensors || fail "other weights"

start
kill -INT "$job"
ends 10
((code != 0)) || fail "exit code 0 after Ctrl-C"
says "the launcher ends this job (Ctrl-C, or a rank failed): no weights are written"
clean
[[ ! -e run/model/model.safetensors ]] || fail "weights after Ctrl-C"

# Without a launcher Ctrl-C itself finishes the step. (A shell's background jobs ignore SIGINT.)
rm -rf run
python3 - "$MUDDPIPE" >out 2>&1 <<'END' || fail "Ctrl-C without a launcher"
import os, signal, subprocess, sys, time
job = subprocess.Popen([sys.argv[1], "train", "run.yaml", "optimizer.steps=1000000", "logging.run=run",
                        "parallel.transport=threads", "parallel.pp=2"])
for _ in range(300):
    time.sleep(0.1)
    if os.path.exists("run/metrics.jsonl") and os.path.getsize("run/metrics.jsonl") > 0:
        break
job.send_signal(signal.SIGINT)
sys.exit(job.wait(20))
END
says "stopped by a signal"
[[ -s run/model/model.safetensors ]] || fail "no weights"
clean

# In a long evaluation and in a long sample.
long_valid=(data.valid=train.bin data.seq_len=8 data.micro_batch=1 parallel.microbatches=1
    data.valid_microbatches=0)
begin() { # WORDS command...: in the background until it has said so, and a moment
    local words=$1 i
    shift
    rm -rf run out
    "$@" >out 2>&1 </dev/null &
    job=$!
    pids=""
    for ((i = 0; i < 300; i++)); do
        ! grep -qsF -- "$words" out || break
        sleep 0.1
    done
    grep -qF -- "$words" out || fail "'$words' is not said in 30 s"
    sleep 0.3
    pids=$(pgrep -P "$job" || true)
}
threads=(parallel.transport=threads parallel.pp=2)

begin "run folder:" "$MUDDPIPE" train run.yaml logging.run=run "${threads[@]}" "${long_valid[@]}"
kill -USR1 "$job"
ends 5
((code == 0)) || fail "exit code $code after SIGUSR1 in an evaluation"
says "held-out evaluation after step 0 cut short by a signal" "no step was made (stopped by a signal)" \
    "held-out loss  not known"
[[ -s run/model/model.safetensors && -s run/model/config.json ]] || fail "no weights"

# With checkpoints that run is one to be started again, and must not look like one that has ended.
begin "run folder:" "$MUDDPIPE" train run.yaml logging.run=run "${threads[@]}" "${long_valid[@]}" checkpoint.resume=auto
kill -USR1 "$job"
ends 5
((code == 75)) || fail "exit code $code after SIGUSR1 before the first step of a run with checkpoints"
[[ ! -e run/model/model.safetensors ]] || fail "a model of a run that has not begun"
run 0 "$MUDDPIPE" train run.yaml logging.run=run data.valid= checkpoint.resume=auto
says "step    4/4"

begin "shipped" "$MUDDPIPE" train run.yaml logging.run=run "${threads[@]}" logging.sample_tokens=1000000
kill -USR1 "$job"
ends 5
((code == 0)) || fail "exit code $code after SIGUSR1 in a sample"
says "| (cut short by a signal)" "run folder     run"
[[ -s run/model/model.safetensors ]] || fail "no weights"
clean

begin "run folder:" mpirun -n 2 "$MUDDPIPE" train run.yaml logging.run=run "$wire" "${long_valid[@]}"
kill -KILL "$(pid_of 1)"
ends 10
grep -q "error: rank 1 died.* while rank 0 was in step 0: held-out evaluation: " out ||
    fail "no word about the evaluation"

begin "shipped" mpirun -n 2 "$MUDDPIPE" train run.yaml logging.run=run "$wire" \
    logging.sample_tokens=1000000
kill -KILL "$(pid_of 1)"
ends 10
grep -q "error: rank 1 died.* while rank 0 was in step 4: sample: " out || fail "no word about the sample"
