#!/bin/bash
# Memory that GPUs of threads have not: said before training, with what was asked, what was predicted and
# which keys to change.
source "$(dirname "$0")/pretend.sh"
tiny_data
tiny_run

# More than the GPU has free: said before training, by every rank.
run_pretend 1 2 ipc train run.yaml logging.run=large data.micro_batch=4096 model.block_size=256
says "of 8.0 GiB free: weights, gradients and optimizer" "data.micro_batch or data.seq_len need less"
(($(grep -c "error: rank . needs .* GiB free" out) == 2)) || fail "not every rank says what it lacks"

# Each would fit alone, both do not: advice only of what is not taken already.
PRETEND_GPUS=1 run_pretend 1 2 ipc train run.yaml logging.run=both data.micro_batch=2048 \
    model.block_size=256 parallel.recompute=full
says ", the 2 ranks that share its GPU " " GiB together, and " \
    "; fewer ranks on a GPU, precision=bf16, data.micro_batch or"

# What a transport takes of the GPU while it connects is told beside, and is not free for anything else.
if [[ -n ${PRETEND_NCCL:-} ]]; then
    PRETEND_NCCL_MIB=300 run_pretend 0 2 nccl train run.yaml logging.run=buffers
    (($(grep -c '; the transport 600.0 MiB beside$' out) == 2)) || fail "not what NCCL took"
    PRETEND_NCCL_MIB=4095 run_pretend 1 2 nccl train run.yaml logging.run=full
    says " of 8.0 GiB free beside 8.0 that transport nccl has taken: " \
        "more stages (start more ranks), parallel.transport=ipc, precision=bf16, "
fi

# No memory although there was room: what was predicted, and which keys change it.
for what in "parameters and optimizer state" "arrival and gradient slots" \
    "batches on their way to the GPU"; do
    PRETEND_NO_MEMORY=$what run_pretend 1 2 ipc train run.yaml logging.run=late
    says "$what: cannot allocate" " was predicted to take " " of 8.0 GiB are free now: " \
        "precision=bf16, parallel.recompute, data.micro_batch or data.seq_len need less"
done
PRETEND_NO_MEMORY="words and staging buffers of a wire" run_pretend 1 2 mpi train run.yaml \
    logging.run=late
says "parallel.transport=ipc or nccl pins none, data.micro_batch and data.seq_len"

# A GPU that does not tell what is free, whenever it stops to: its rank says so, the other names that rank.
for calls in 1 2 3 4; do
    run 1 mpirun -n 1 "$PRETEND" train run.yaml device=cuda parallel.transport=ipc logging.run=dumb : \
        -n 1 env PRETEND_DUMB=$calls "$PRETEND" train run.yaml device=cuda parallel.transport=ipc logging.run=dumb
    says "[rank 1] error: the GPU does not tell its free memory" "[rank 0] error: rank 1 failed"
done

# Evaluation says as much, of what it needs: no gradients, nothing to compute again.
run_pretend 0 1 ipc train run.yaml logging.run=trained optimizer.steps=1 \
    model.block_size=512 data.micro_batch=1 parallel.microbatches=1
for n in 1 2; do
    run_pretend 1 "$n" ipc eval trained/config.yaml model=trained/model data.micro_batch=4096
    says "rank 0 needs " " of 8.0 GiB free: weights 0.0, activations of 1 microbatch " \
        "(start more ranks), precision=bf16, data.micro_batch or data.seq_len need less"
done

# A model that has no room: before training, what would be asked, of what and by which keys it shrinks.
run_pretend 1 2 ipc train "$MUDDPIPE_SOURCE/model/configs/muddformer-6.9b.json" data.train=train.bin \
    logging.run=none
says "rank 1 needs " " GiB and a GPU of threads has 8.0 of 8.0 GiB free: weights, gradients and optimizer " \
    "more stages (start more ranks)" "parallel.recompute"
[[ ! -e none ]] || fail "a run folder of a run that never began"

# More keys than an operation of a GPU reads at once: refused, with what would read fewer.
run_pretend 1 1 ipc train run.yaml logging.run=deep model.n_layer=300
says "an aggregate of 301 keys, and on GPUs operations read at most 256" "dense.key_dilation"
