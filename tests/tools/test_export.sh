#!/bin/bash
# A run's weights: any number of ranks evaluates them to the same loss, bit for bit, and trains on from
# there. A run folder is never written twice. The number of steps may be anything from 1.
source "$(dirname "$0")/common.sh"
tiny_data
tiny_run
valid=(data.valid=valid.bin data.micro_batch=2 data.valid_microbatches=8)

logged() { # RUN first|last: all digits of the held-out loss
    local cut=(head -n 1)
    [[ $2 == first ]] || cut=(tail -n 1)
    sed -n 's/.*held-out loss \([0-9.e+-]*\) nats.*/\1/p' "$1/rank-0.log" | "${cut[@]}"
}

run_ranks 0 3 train run.yaml logging.run=three optimizer.steps=6
says "held-out loss "
loss=$(logged three last)
[[ -n $loss && $loss != "$(logged three first)" ]] || fail "no held-out loss, or the first one"
printf -v short '%.4f' "$loss"
grep -q "^held-out loss .* -> $short nats" out || fail "the summary does not say $short"
for n in 1 2 4; do
    run_ranks 0 "$n" eval three/model "${valid[@]}"
    says "held-out loss $loss nats"
    run_ranks 0 "$n" eval three/config.yaml model=three/model
    says "held-out loss $loss nats"
done
python3 - <<'END' || fail "three/model is no official folder"
import json, struct
config = json.load(open("three/model/config.json"))
assert config["n_layer"] == 4 and config["dim"] == 32 and config["model_type"] == "muddformer"
data = open("three/model/model.safetensors", "rb").read()
(size,) = struct.unpack_from("<Q", data)
header = json.loads(data[8:8 + size])
assert {"tok_embeddings.weight", "output.weight", "norm.weight", "dense_bs.0",
        "layers.3.attention.wo.weight"} <= set(header)
END

# The same run alone ends with the same file.
run 0 "$MUDDPIPE" train run.yaml logging.run=one optimizer.steps=6
cmp one/model/model.safetensors three/model/model.safetensors || fail "other weights alone"
cmp one/model/config.json three/model/config.json || fail "other config.json alone"

run_ranks 0 2 train run.yaml model=three/model logging.run=on optimizer.steps=1
[[ $(logged on first) == "$loss" ]] || fail "trains on from $(logged on first), not $loss"

# A run folder is made once; without a name each run gets its own.
before=$(cat three/metrics.jsonl three/config.yaml | cksum)
run 1 "$MUDDPIPE" train run.yaml logging.run=three
says "three exists already"
[[ $(cat three/metrics.jsonl three/config.yaml | cksum) == "$before" ]] || fail "three was touched"
for _ in 1 2; do
    run 0 "$MUDDPIPE" train run.yaml optimizer.steps=1
done
(($(ls runs | wc -l) == 2)) || fail "not two folders in runs/"

# The saved configuration runs again, to the same losses.
run 0 "$MUDDPIPE" train three/config.yaml logging.run=again
cmp <(cut -d, -f1-5 again/metrics.jsonl) <(cut -d, -f1-5 three/metrics.jsonl) || fail "other losses"

# Numbers of steps.
for steps in 1 2 3; do
    run 0 "$MUDDPIPE" train run.yaml logging.run="steps-$steps" optimizer.steps="$steps" \
        optimizer.warmup=0.5
    (($(wc -l <"steps-$steps/metrics.jsonl") == steps)) || fail "not $steps lines"
done
python3 - <<'END' || fail "metrics.jsonl lacks something"
import json
keys = {"step", "loss", "grad_norm", "lr", "tokens", "sequences", "step_time_s", "tokens_per_s", "bubble",
        "exposed_plain", "exposed_dense", "bytes_plain", "bytes_dense"}
for number, line in enumerate(open("three/metrics.jsonl"), 1):
    step = json.loads(line)
    assert keys <= set(step) and step["step"] == number and step["tokens"] == 256
    assert 0 <= step["bubble"] <= 1 and step["step_time_s"] > 0 and step["bytes_plain"] > 0
    assert len(repr(step["loss"])) > 12 and step["loss"] > 0 and step["grad_norm"] > 0
END

# tools/quickstart.yaml with other data, on other numbers of ranks.
for n in 1 2 5; do
    run_ranks 0 "$n" train "$MUDDPIPE_SOURCE/tools/quickstart.yaml" data.train=train.bin \
        data.valid=valid.bin optimizer.steps=2 parallel.pp="$n" logging.run="quick-$n" \
        logging.sample_tokens=8 data.seq_len=32 model.dim=64 data.valid_microbatches=2
    says "step    2/2" "held-out loss" "sample         Pipeline |" "run folder     quick-$n"
    cmp "quick-$n/model/model.safetensors" quick-1/model/model.safetensors || fail "other weights"
done

# A full disk, played by a limit on the size of files: no half lines, no half models.
limited() { # KIB CODE arguments...
    local size=$1 code=$2
    shift 2
    run "$code" bash -c 'ulimit -f '"$size"'; trap "" XFSZ; exec "$@" >&2' - "$MUDDPIPE" train run.yaml "$@"
}
few=(logging.level=error parallel.transport=threads parallel.pp=2 data.valid=)
limited 16 1 logging.run=full optimizer.steps=1000000 "${few[@]}"
says "error: cannot write full/metrics.jsonl: File too large" "make room" "rank 0 failed (input/output error)"
(($(grep -c 'error: ' out) == 2)) || fail "not one message a rank"
python3 - <<'END' || fail "full/metrics.jsonl ends with half a line, or with less than was said"
import json
text = open("full/metrics.jsonl").read()
assert text.endswith("\n") and len(text) > 15000
steps = [json.loads(line)["step"] for line in text.splitlines()]
said = [line for line in open("out") if line.startswith("step ") and " loss " in line]
assert steps == list(range(1, len(steps) + 1)) and len(said) == len(steps)
END
[[ ! -e full/model ]] || fail "a model after a full disk"
limited 20 1 logging.run=fat optimizer.steps=2 "${few[@]}"
says "fat/model/"
[[ ! -e fat/model ]] || fail "half a model: $(ls -A fat/model)"
(($(wc -l <fat/metrics.jsonl) == 2)) || fail "the steps before are not in metrics.jsonl"
