#!/bin/bash
# On real GPUs: a short run has the losses of the host, and on two ranks the bits of one; a model without
# room is refused before it trains.
source "$(dirname "$0")/common.sh"
source "$(dirname "$0")/on_gpu.sh"
tiny_data
tiny_run
few=(optimizer.steps=8 data.valid_every=4 data.mask_documents=true data.eod=10)

probe train run.yaml logging.run=one "${few[@]}"
run_gpu 0 2 train run.yaml logging.run=two "${few[@]}"
run 0 "$MUDDPIPE" train run.yaml logging.run=host "${few[@]}" device=cpu
cmp one/model/model.safetensors two/model/model.safetensors || fail "other weights on two ranks"

# Sums in other orders: the golden cases allow 1e-5 for a loss and 1e-4 for gradients, and eight updates
# make more of it.
python3 - <<'END2' || fail "other losses or norms"
import json
def figures(run, *keys):
    steps = [json.loads(line) for line in open(f"{run}/metrics.jsonl")]
    assert len(steps) == 8, steps
    return [step[key] for step in steps for key in keys if key in step]
for keys, limit in (("loss", "heldout_loss"), 1e-4), (("grad_norm",), 1e-3):
    one, two, host = (figures(run, *keys) for run in ("one", "two", "host"))
    assert one == two, (one, two)
    off = max(abs(a - b) / abs(b) for a, b in zip(one, host, strict=True))
    assert off < limit, (keys, off)
END2

# Checkpoints: copied by a stream beside the steps; gone on from, on one GPU and on two, the weights are the same.
run_gpu 0 2 train run.yaml logging.run=saved "${few[@]}" checkpoint.every=3 checkpoint.keep=9
cmp saved/model/model.safetensors one/model/model.safetensors || fail "other weights with checkpoints"
run_gpu 0 1 train run.yaml logging.run=resumed "${few[@]}" checkpoint.resume=saved/checkpoints/step-3
says "resumed after step 3"
cmp resumed/model/model.safetensors one/model/model.safetensors || fail "other weights after going on"
run 0 "$MUDDPIPE" ckpt verify saved
bf16=(precision=bf16 deterministic=true data.valid= optimizer.steps=8)
run_gpu 0 2 train run.yaml logging.run=bf16 "${bf16[@]}" checkpoint.every=3 checkpoint.keep=9
run_gpu 0 2 train run.yaml logging.run=bf16-resumed "${bf16[@]}" checkpoint.resume=bf16/checkpoints/step-3
cmp bf16-resumed/model/model.safetensors bf16/model/model.safetensors || fail "bf16: other weights after going on"

# Replicas: half the microbatches on each of two, whatever carries their sums; sums of two have one order.
halves=(optimizer.steps=8 data.valid_every=4 data.mask_documents=true data.eod=10 parallel.dp=2 parallel.microbatches=2)
run_gpu 0 2 train run.yaml logging.run=halves "${halves[@]}"
run_gpu 0 2 train run.yaml logging.run=by-host "${halves[@]}" parallel.collectives=host
cmp halves/model/model.safetensors by-host/model/model.safetensors || fail "other weights by way of the host"
python3 - <<'END2' || fail "replicas: other losses"
import json
read = lambda run: [json.loads(line) for line in open(f"{run}/metrics.jsonl")]
for a, b in zip(read("halves"), read("one"), strict=True):
    assert a["sequences"] == b["sequences"] and abs(a["loss"] / b["loss"] - 1) < 1e-4, (a, b)
END2

run_gpu 1 1 train "$MUDDPIPE_SOURCE/model/configs/muddformer-6.9b.json" data.train=train.bin \
    data.micro_batch=64 logging.run=none
says "rank 0 needs " " GiB free: weights, gradients and optimizer " "more stages (start more ranks)" \
    "data.micro_batch or data.seq_len need less"
[[ ! -e none ]] || fail "a run folder of a run that never began"
