#!/bin/bash
# Tensor parallelism on GPUs of threads: the bits of the host over each transport; in bf16 the same bits in every run and
# schedule, near those of one rank a stage, and checkpoints that go on with them.
source "$(dirname "$0")/pretend.sh"
case=$golden/muddformer-tiny
one=(parallel.threads=1 parallel.tp=2)

run 0 mpirun -n 2 "$MUDDPIPE" check "$case" "${one[@]}" device=cpu "$wire" --save host.safetensors
run 0 mpirun -n 2 "$MUDDPIPE" check "$case" "${one[@]}" device=cpu "$wire" --steps 10
grep '^step ' out >host.steps || fail "no steps"
for transport in $wires; do
    run_pretend 0 4 "$transport" check "$case" "${one[@]}" --same host.safetensors
done
run_pretend 0 4 ipc check "$case" "${one[@]}" --steps 10
grep '^step ' out | cmp - host.steps || fail "other steps than the host"
run_pretend 0 8 ipc check "$case" "${one[@]}" parallel.dp=2 parallel.recompute=full
for name in depth-attention hyper-mhc muddpythia; do
    run_pretend 0 2 ipc check "$golden/$name-tiny" "${one[@]}" parallel.microbatches=1 parallel.recompute=selective
done
if [[ -n ${PRETEND_NCCL:-} ]]; then # the sum of two has one order
    run_pretend 0 4 ipc check "$case" "${one[@]}" parallel.collectives=host --same host.safetensors
    run_pretend 0 4 ipc check "$case" "${one[@]}" parallel.collectives=nccl --same host.safetensors
fi

tiny_data
tiny_run
train() { # RUN N TRANSPORT key=value...
    run_pretend 0 "$2" "$3" train run.yaml logging.run="$1" optimizer.steps=8 checkpoint.keep=9 "${@:4}"
}
same() { # RUN OTHER
    cmp "$1/model/model.safetensors" "$2/model/model.safetensors" || fail "$1 and $2: other weights"
}
run 0 mpirun -n 2 "$MUDDPIPE" train run.yaml "${one[@]}" device=cpu "$wire" logging.run=host optimizer.steps=8
train gpu 4 ipc "${one[@]}" data.valid_every=3 logging.sample_tokens=3 checkpoint.every=3 parallel.collectives=host
same gpu host
says "; within stages " "tensor parallel "
python3 - <<'PY' || fail "metrics.jsonl without what ranks of a stage exchange"
import json
steps = [json.loads(line) for line in open("gpu/metrics.jsonl")]
assert all(step["bytes_tensor"] == steps[0]["bytes_tensor"] > 0 for step in steps)
assert all(0 <= step["exposed_tensor"] <= 1 for step in steps) and any(step["exposed_tensor"] > 0 for step in steps)
PY

half=(precision=bf16 deterministic=true)
train bf16 4 ipc "${one[@]}" "${half[@]}" checkpoint.every=3
train again 4 ipc "${one[@]}" "${half[@]}" parallel.schedule=zb-h1
same bf16 again
train on 4 ipc "${one[@]}" "${half[@]}" parallel.schedule=gpipe checkpoint.resume=bf16/checkpoints/step-3
same bf16 on
train both 8 ipc "${one[@]}" "${half[@]}" parallel.dp=2 parallel.microbatches=2
train alone 2 ipc "${half[@]}"
python3 - <<'PY' || fail "bf16: two ranks a stage and one are not near"
import json
read = lambda run: {s["step"]: s for s in map(json.loads, open(f"{run}/metrics.jsonl"))}
alone = read("alone")
for run in ("bf16", "both"):
    for number, step in read(run).items():
        assert step["sequences"] == alone[number]["sequences"]
        assert abs(step["loss"] / alone[number]["loss"] - 1) < 2e-3, (run, step, alone[number])
PY
