#!/bin/bash
# Replicas on GPUs of threads: the bits of replicas on the host, over each transport; in bf16 the same bits in any
# order of the ranks and in every run, near those of one replica, and checkpoints that go on with them.
source "$(dirname "$0")/pretend.sh"
case=$golden/muddformer-tiny
one=(parallel.threads=1 parallel.dp=2)

run 0 mpirun -n 2 "$MUDDPIPE" check "$case" "${one[@]}" device=cpu "$wire" --save host.safetensors
run 0 mpirun -n 2 "$MUDDPIPE" check "$case" "${one[@]}" device=cpu "$wire" --steps 10
grep '^step ' out >host.steps || fail "no steps"
turn=0
for transport in $wires; do
    order=pp-dp
    ((turn++ % 2 == 0)) || order=dp-pp
    run_pretend 0 4 "$transport" check "$case" "${one[@]}" parallel.order=$order --same host.safetensors
    run_pretend 0 4 "$transport" check "$case" "${one[@]}" parallel.order=$order --steps 10
    grep '^step ' out | cmp - host.steps || fail "other steps than the host: $transport"
done

if [[ -n ${PRETEND_NCCL:-} ]]; then # the sum of two has one order
    run_pretend 0 4 ipc check "$case" "${one[@]}" parallel.collectives=host --same host.safetensors
    run_pretend 0 4 ipc check "$case" "${one[@]}" parallel.collectives=nccl --same host.safetensors
    PRETEND_GPUS=1 run_pretend 0 2 ipc check "$case" "${one[@]}"
    says "what replicas exchange passes through host memory: ranks 0 and 1 are both on one GPU"
    PRETEND_GPUS=1 run_pretend 1 2 ipc check "$case" "${one[@]}" parallel.collectives=nccl
    says "ranks 0 and 1 are both on one GPU"
fi

tiny_data
tiny_run
train() { # RUN N TRANSPORT key=value...
    run_pretend 0 "$2" "$3" train run.yaml logging.run="$1" optimizer.steps=8 checkpoint.keep=9 "${@:4}"
}
same() { # RUN OTHER
    cmp "$1/model/model.safetensors" "$2/model/model.safetensors" || fail "$1 and $2: other weights"
}
run 0 mpirun -n 4 "$MUDDPIPE" train run.yaml "${one[@]}" device=cpu "$wire" logging.run=host optimizer.steps=8
train gpu 4 ipc "${one[@]}" data.valid_every=3 logging.sample_tokens=3 checkpoint.every=3 parallel.collectives=host
same gpu host
says "between replicas " "pinned for what replicas, or ranks of a stage, exchange"
run 0 "$MUDDPIPE" ckpt verify gpu/checkpoints/step-3
python3 - <<'END' || fail "metrics.jsonl without what replicas exchange"
import json
steps = [json.loads(line) for line in open("gpu/metrics.jsonl")]
host = [json.loads(line) for line in open("host/metrics.jsonl")]
assert all(step["bytes_collective"] == host[0]["bytes_collective"] > 0 for step in steps)
assert all(0 <= step["exposed_collective"] <= 1 for step in steps)
END

half=(precision=bf16 deterministic=true)
train bf16 4 ipc "${one[@]}" "${half[@]}" checkpoint.every=3
train again 4 ipc "${one[@]}" "${half[@]}" parallel.order=dp-pp parallel.schedule=gpipe
same bf16 again
train on 4 ipc "${one[@]}" "${half[@]}" checkpoint.resume=bf16/checkpoints/step-3
same bf16 on
python3 "$(dirname "$script")/read_checkpoint.py" bf16/checkpoints/step-8 on/model/model.safetensors >read ||
    fail "the independent reader does not agree"
train alone 2 ipc "${half[@]}" parallel.microbatches=8
train fewer 2 ipc "${half[@]}" parallel.microbatches=8 checkpoint.resume=bf16/checkpoints/step-3
python3 - <<'END' || fail "bf16: replicas and one are not near"
import json
read = lambda run: {s["step"]: s for s in map(json.loads, open(f"{run}/metrics.jsonl"))}
alone = read("alone")
for run in ("bf16", "fewer"):
    for number, step in read(run).items():
        assert step["sequences"] == alone[number]["sequences"]
        assert abs(step["loss"] / alone[number]["loss"] - 1) < 2e-3, (run, step, alone[number])
END

# A generator that is constant reads weights which a share has not.
run_pretend 1 2 ipc check "$golden/muddformer-static-tiny" "${one[@]}" precision=bf16
says "dynamic_dense is false" "use precision=float32, or parallel.dp=1"
