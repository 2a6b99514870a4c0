#!/bin/bash
# A rank killed or stopped in each phase of a step and of a save, and clocks that jump: the job ends, or goes on; no
# whole checkpoint is lost, none is torn, and the run goes on to the weights of one that was not interrupted.
source "$(dirname "$0")/common.sh"
tiny_data
tiny_run
few=(optimizer.steps=30 data.valid= checkpoint.every=2 checkpoint.keep=2 health.heartbeat_s=2)
run 0 "$MUDDPIPE" train run.yaml "${few[@]}" logging.run=plain

goes_on() { # WHAT: the folder run after a fault
    local folder
    for folder in run/checkpoints/step-*; do
        [[ ! -d $folder ]] || run 0 "$MUDDPIPE" ckpt verify "$folder"
    done
    run_ranks 0 2 train run.yaml "${few[@]}" logging.run=run checkpoint.resume=auto
    cmp run/model/model.safetensors plain/model/model.safetensors || fail "$1: other weights"
    [[ -z $(find run/checkpoints -name '.*') ]] || fail "$1: left behind: $(find run/checkpoints -name '.*')"
    rm -rf run
}

fault() { # RANK HOW CALL:WORD LEAST: at least so many checkpoints are there then
    local code=0 own=(env LD_PRELOAD="$BROKEN_DISK_LIBRARY" BROKEN_DISK="$3:$2" "$MUDDPIPE") other=("$MUDDPIPE")
    local keys=(train run.yaml "${few[@]}" logging.run=run checkpoint.resume=auto "$wire")
    if (($1 == 0)); then
        timeout -k 5 60 mpirun -n 1 "${own[@]}" "${keys[@]}" : -n 1 "${other[@]}" "${keys[@]}" >out 2>&1 </dev/null ||
            code=$?
    else
        timeout -k 5 60 mpirun -n 1 "${other[@]}" "${keys[@]}" : -n 1 "${own[@]}" "${keys[@]}" >out 2>&1 </dev/null ||
            code=$?
    fi
    ((code != 0 && code != 124)) || fail "$*: exit code $code"
    pkill -KILL -f "^$MUDDPIPE train run.yaml optimizer.steps=30 data.valid= checkpoint.every=2 .*logging.run=run" || true
    (($(compgen -G "run/checkpoints/step-*" | wc -l) >= $4)) || fail "$*: $(ls -A run/checkpoints) are left"
    goes_on "$*"
}

#     rank  how   call and path            checkpoints
fault 0     kill  mkdir:.step-2.part       0
fault 1     kill  pwrite:.step-30.part      1
fault 0     kill  pwrite:step-30.part/mani  1
fault 0     kill  fsync:step-30.part/mani   1
fault 0     kill  rename:run/checkpoints/step-30 1
fault 0     kill  fsync:run/checkpoints    0 # the first of them, after the rename
fault 0     kill  rename:.step-2.part      2 # the old one goes
fault 0     stop  pwrite:.step-30.part/rank 1
fault 1     stop  fsync:step-30.part/rank-1 1
fault 0     stop  rename:run/checkpoints/step-30 1

# In a step: the other rank names it, and ends; what was saved is there. (The step of the fault is one behind a save
# that has ended, or is another one: a count of calls.)
gone() { # RANK PHASE:N HOW
    local code=0 other=$((1 - $1))
    GONE=$1:$2:$3 timeout -k 5 60 mpirun -n 2 -x GONE "$MUDDPIPE_FAULTS" train run.yaml "${few[@]}" logging.run=run \
        checkpoint.resume=auto "$wire" >out 2>&1 </dev/null || code=$?
    ((code != 0 && code != 124)) || fail "$*: exit code $code"
    says "gone in ${2%:*}" "[rank $other] error: rank $1 "
    pkill -KILL -f "^$MUDDPIPE_FAULTS train run.yaml optimizer.steps=30 data.valid= checkpoint.every=2 " || true
    goes_on "$*"
}
gone 0 forward:400  kill
gone 1 backward:300 kill
gone 0 send:300     kill
gone 1 receive:300  kill
gone 1 exchange:20  kill
gone 1 forward:300  stop
gone 0 exchange:20  stop

# The clock of the day jumps on one rank, an hour back and a day ahead: nothing here goes by it.
long=(optimizer.steps=300 data.valid= checkpoint.every_s=0.2 checkpoint.keep=50 health.deadline_s=30 health.slow_s=10)
run 0 "$MUDDPIPE" train run.yaml "${long[@]}" logging.run=right
for jump in -3600 86400; do
    run 0 mpirun -n 1 env LD_PRELOAD="$BROKEN_CLOCK_LIBRARY" BROKEN_CLOCK=$jump:0.6 "$MUDDPIPE" train run.yaml \
        "${long[@]}" logging.run="jump$jump" "$wire" : -n 1 "$MUDDPIPE" train run.yaml "${long[@]}" \
        logging.run="jump$jump" "$wire"
    says "saved jump$jump/checkpoints/step-300"
    cmp "jump$jump/model/model.safetensors" right/model/model.safetensors || fail "$jump s: other weights"
done
