#!/bin/bash
# Checkpoints that were damaged, disks that fail, jobs that meet, runs that do not belong together: what happens
# is what docs/checkpoints.md says, and no whole checkpoint is ever lost.
source "$(dirname "$0")/common.sh"
tiny_data
tiny_run
job=""
trap '[[ -z $job ]] || kill -KILL "$job" 2>/dev/null || true; rm -rf "$work"' EXIT
whole=(optimizer.steps=9 data.valid=)

train() { # CODE RUN N key=value...
    run_ranks "$1" "$3" train run.yaml "${whole[@]}" logging.run="$2" checkpoint.resume=auto "${@:4}"
}

fresh() { # folder `run` with the checkpoints of steps 3 and 6
    rm -rf run
    cp -r begun run
}

train 0 plain 2 checkpoint.every=6
train 0 three 2 checkpoint.every=3 checkpoint.keep=5
cp -r plain begun
rm -r begun/checkpoints/step-9 begun/model
cp -r three/checkpoints/step-3 begun/checkpoints

goes_on() { # STEP: behind it, and ends with the weights of the run without interruption
    train 0 run 2
    says "resumed after step $1"
    cmp run/model/model.safetensors plain/model/model.safetensors || fail "other weights"
}

# ---- damage ----

damaged() { # COMMAND WORDS: done to step-6; the one before is taken
    fresh
    (cd run/checkpoints/step-6 && eval "$1")
    goes_on 3
    says "run/checkpoints/step-6 is not whole and is passed over" "$2"
}
flip='python3 -c "import sys; d = bytearray(open(sys.argv[1], \"rb\").read()); d[len(d) // 3] ^= 4
open(sys.argv[1], \"wb\").write(d)"'
damaged 'truncate -s -20000 rank-1.shard' "rank-1.shard has"
damaged "$flip rank-0.shard" "are not those that were written (wrong hash)"
damaged ': >rank-0.shard' "rank-0.shard has 0 of its"
damaged 'rm rank-1.shard' "cannot read run/checkpoints/step-6/rank-1.shard: No such file"
damaged "$flip manifest" "manifest"
damaged 'truncate -s 100 manifest' "it was cut short"
damaged ': >manifest' "cut short at its start"
damaged 'rm manifest' "cannot read run/checkpoints/step-6/manifest"
damaged 'cp ../step-3/rank-0.shard rank-0.shard' "rank-0.shard"
damaged 'echo >>config.yaml' "config.yaml is not what the checkpoint was written with"
damaged "sed -i s/10000/10001/ config.json" "config.json is not what the checkpoint was written with"

# An unfinished one of a job that died goes; a folder that is not ours stays.
fresh
cp -r run/checkpoints/step-6 run/checkpoints/.step-8.part
mkdir run/checkpoints/step-x
goes_on 6
says "removed run/checkpoints/.step-8.part, which a job left unfinished"
[[ ! -e run/checkpoints/.step-8.part && -d run/checkpoints/step-x ]] || fail "the wrong folder went"

# All of them: nothing is begun.
fresh
rm run/checkpoints/*/rank-1.shard
train 1 run 2
says "none of the 2 checkpoints of run is whole: nothing is begun"
[[ -d run/checkpoints/step-6 ]] || fail "a damaged checkpoint was removed"
rm -r run/checkpoints
train 0 run 2
! grep -q resumed out || fail "resumed from nothing"
run 1 "$MUDDPIPE" ckpt verify begun/model
run 0 "$MUDDPIPE" ckpt verify begun
says "begun/checkpoints/step-6: whole"
cp -r begun bad
(cd bad/checkpoints/step-6 && eval "$flip rank-0.shard")
run 1 "$MUDDPIPE" ckpt verify bad
says "wrong hash"

# ---- what does not belong together ----

refused() { # WORDS key=value...
    fresh
    train 1 run 2 "${@:2}"
    says "$1"
    [[ -d run/checkpoints/step-6 ]] || fail "a checkpoint went"
}
refused "model.n_layer is 5, and run/checkpoints/step-6 has a model with 4" model.n_layer=5
refused "model.dense is false" model.dense=false
refused "seed is 2, and" seed=2
refused "data.seq_len is 16, and" data.seq_len=16
refused "data.order is documents, and" data.order=documents data.eod=10
fresh
train 0 run 2 optimizer.lr=2e-3 data.train=valid.bin data.micro_batch=1
says "from step 7 on optimizer.lr is 0.002, it was 0.001" "from step 7 on data.micro_batch is 1, it was 2" \
    "from step 7 on the training data are other files"
run_ranks 0 1 train run.yaml "${whole[@]}" logging.run=ended
cp -r ended before
train 1 ended 1 optimizer.lr=1
says "ended has a run that ended without checkpoints, and would be written over"
for file in metrics.jsonl config.yaml hash.txt model/model.safetensors; do
    cmp "ended/$file" "before/$file" || fail "it was written over"
done
run 1 "$MUDDPIPE" train run.yaml checkpoint.resume=auto
says "set logging.run"
run 1 "$MUDDPIPE" train run.yaml checkpoint.resume=nowhere
says "there is no folder nowhere"
run 1 "$MUDDPIPE" train run.yaml checkpoint.resume=plain/model
says "plain/model is no checkpoint"
run 1 "$MUDDPIPE" train run.yaml logging.run=plain
says "go on in it with checkpoint.resume=auto"

# ---- disks ----

on_broken() { # CODE CALL:WORD[:ERRNO]: a run from step 6 on that saves each step
    fresh
    run "$1" mpirun -n 2 -x LD_PRELOAD="$BROKEN_DISK_LIBRARY" -x BROKEN_DISK="$2" "$MUDDPIPE" train run.yaml \
        "${whole[@]}" logging.run=run checkpoint.resume=auto checkpoint.every=1 checkpoint.keep=9 "$wire"
    [[ -d run/checkpoints/step-6 && -z $(find run/checkpoints -name '.*') ]] || fail "$2: lost, or left behind"
    cmp run/model/model.safetensors plain/model/model.safetensors || fail "$2: other weights"
    says "step    9/9"
}
on_broken 1 pwrite:rank-1.shard
says "cannot write run/checkpoints/.step-" "No space left on device" "the run goes on, and what was saved before stays" \
    "no checkpoint of step 7: writing it failed; that of step 6 stays"
on_broken 0 pwrite:.step-7.part/rank-0
says "no checkpoint of step 7: writing it failed" "saved run/checkpoints/step-9"
[[ ! -e run/checkpoints/step-7 ]] || fail "a checkpoint that was not written whole"
on_broken 1 fsync:rank-0.shard:5
says "cannot bring run/checkpoints/.step-" "Input/output error"
on_broken 1 pwrite:manifest
says "cannot write run/checkpoints/.step-"
on_broken 1 rename:checkpoints/step-
says "cannot rename run/checkpoints/.step-"
on_broken 1 mkdir:.part:13
says "cannot make the folder run/checkpoints/.step-" "Permission denied"

# A disk slower than the steps: passed over, none torn, the last one there.
fresh
run 0 mpirun -n 2 -x LD_PRELOAD="$BROKEN_DISK_LIBRARY" -x BROKEN_DISK_SLOW=rank-1.shard:5 "$MUDDPIPE" train \
    run.yaml optimizer.steps=60 data.valid= logging.run=run checkpoint.resume=auto checkpoint.every=1 checkpoint.keep=9 "$wire"
says "is still being written" "saved run/checkpoints/step-60"
for step in run/checkpoints/step-*; do
    run 0 "$MUDDPIPE" ckpt verify "$step"
done

# Each step is due, and making a checkpoint whole takes longer than a step: each of them is that of its step.
for copy in whole pieces; do
    run 0 env LD_PRELOAD="$BROKEN_DISK_LIBRARY" BROKEN_DISK_SLOW=manifest:100 "$MUDDPIPE" train run.yaml \
        "${whole[@]}" logging.run=back-$copy checkpoint.every=1 checkpoint.keep=9 checkpoint.copy=$copy
    saved=0
    for step in back-$copy/checkpoints/step-[1-8]; do
        train 0 "from-$copy-${step##*-}" 1 checkpoint.resume="$step"
        cmp "from-$copy-${step##*-}/model/model.safetensors" plain/model/model.safetensors ||
            fail "$step is torn (copy=$copy)"
        saved=$((saved + 1))
    done
    ((saved > 1)) || fail "no checkpoint begun while another was made whole: $(ls back-$copy/checkpoints)"
done

# Pieces that a disk does not take: the update does not wait for ever.
run 1 env LD_PRELOAD="$BROKEN_DISK_LIBRARY" BROKEN_DISK_SLOW=rank-0.shard:5000 timeout -k 1 40 "$MUDDPIPE" train run.yaml \
    "${whole[@]}" logging.run=hangs checkpoint.every=2 checkpoint.copy=pieces health.deadline_s=1
says "the update has waited 1 s (health.deadline_s) for the checkpoint of step 2 to be copied in pieces"

# ---- two jobs ----

mpirun -n 2 "$MUDDPIPE" train run.yaml optimizer.steps=100000 data.valid= logging.run=held "$wire" \
    >held.out 2>&1 </dev/null &
job=$!
for ((i = 0; i < 300; i++)); do
    [[ ! -s held/metrics.jsonl ]] || break
    sleep 0.1
done
train 1 held 2
says "another job runs in held: process " " on host "
kill -KILL $(pgrep -P "$job") "$job"
wait "$job" 2>/dev/null || true
job=""
train 0 held 2 # the lock of the dead is none
