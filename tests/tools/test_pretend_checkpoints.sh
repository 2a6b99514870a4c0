#!/bin/bash
# Checkpoints on GPUs of threads: copied by a stream beside the steps, whole, and a run that goes on from them ends
# with the weights of one that was not interrupted, on the host and on GPUs alike. bf16 likewise.
source "$(dirname "$0")/pretend.sh"
tiny_data
tiny_run
few=(optimizer.steps=9 data.valid= checkpoint.keep=9)

run 0 "$MUDDPIPE" train run.yaml device=cpu logging.run=host "${few[@]}"
run_pretend 0 2 ipc train run.yaml logging.run=gpu "${few[@]}" checkpoint.every=2 profile.steps=2
cmp gpu/model/model.safetensors host/model/model.safetensors || fail "other weights on GPUs"
python3 "$(dirname "$script")/read_checkpoint.py" gpu/checkpoints/step-9 host/model/model.safetensors >read ||
    fail "the independent reader does not agree"
for folder in gpu/checkpoints/step-*; do
    run 0 "$MUDDPIPE" ckpt verify "$folder"
done
run_pretend 0 3 ipc train run.yaml logging.run=more "${few[@]}" checkpoint.resume=gpu/checkpoints/step-2
says "resumed after step 2"
cmp more/model/model.safetensors host/model/model.safetensors || fail "other weights after going on on GPUs"
run 0 "$MUDDPIPE" train run.yaml device=cpu logging.run=back "${few[@]}" checkpoint.resume=gpu/checkpoints/step-2
cmp back/model/model.safetensors host/model/model.safetensors || fail "other weights after going on on the host"

# bf16: masters and moments are float32, so nothing is rounded on the way.
few+=(precision=bf16 deterministic=true)
run_pretend 0 2 ipc train run.yaml logging.run=bf16 "${few[@]}" checkpoint.every=4
run_pretend 0 2 ipc train run.yaml logging.run=bf16-more "${few[@]}" checkpoint.resume=bf16/checkpoints/step-4
cmp bf16-more/model/model.safetensors bf16/model/model.safetensors || fail "bf16: other weights after going on"

# A copy that takes longer than ten steps, a disk that takes as long: what there is has the bits of the host.
long=(optimizer.steps=30 data.valid= checkpoint.keep=40 checkpoint.every=7)
run 0 "$MUDDPIPE" train run.yaml device=cpu logging.run=each "${long[@]}"
same_bits() { # RUN: its checkpoints are those of the same steps on the host
    local folder compared=0
    says "saved $1/checkpoints/step-30"
    for folder in "$1"/checkpoints/step-*; do
        run 0 "$MUDDPIPE" ckpt verify "$folder"
        [[ -d each/checkpoints/${folder##*/} ]] || continue
        run 0 "$MUDDPIPE" ckpt diff "$folder" "each/checkpoints/${folder##*/}"
        compared=$((compared + 1))
    done
    ((compared >= 2)) || fail "$1: only $compared compared"
}
run 0 env LD_PRELOAD="$BROKEN_DISK_LIBRARY" BROKEN_DISK_SLOW=shard:3 "$PRETEND" train run.yaml device=cuda \
    logging.run=slow-disk "${long[@]}"
same_bits slow-disk
run 0 env PRETEND_SLOW_COPY=100000:100 "$PRETEND" train run.yaml device=cuda logging.run=slow-copy "${long[@]}"
same_bits slow-copy
run_pretend 0 1 ipc train run.yaml logging.run=pieces "${long[@]}" checkpoint.copy=pieces checkpoint.threads=2
same_bits pieces
