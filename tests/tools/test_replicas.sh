#!/bin/bash
# Data parallelism: gradients, losses and steps of every (pp, dp) are those of one rank within rounding, with the
# bits of one stage at the same dp; half the microbatches on each of two replicas are a step of one; bytes and
# memory are what the plan says; checkpoints go from any layout to any other; what cannot be is refused.
source "$(dirname "$0")/common.sh"
one=(parallel.threads=1)
threads=("${one[@]}" parallel.transport=threads)

# Every factorisation, on cases of eight sequences: within the limits of the reference, and bit for bit the same
# over pp, schedules with one and two stages a rank, and orders of the ranks.
for name in muddformer muddformer-k2 muddformer-blocks muddpythia depth-attention; do
    python3 "$(dirname "$script")/widen_case.py" "$golden/$name-tiny" "$name" 4
    for layout in "1 1" "1 2" "2 2" "4 2" "1 4" "2 4" "1 8"; do
        read -r pp dp <<<"$layout"
        keep=--save
        [[ $pp == 1 ]] || keep=--same
        run 0 "$MUDDPIPE" check "$name" "${threads[@]}" parallel.pp="$pp" parallel.dp="$dp" \
            $keep "$name-$dp.safetensors"
        ((dp == 1)) || says "$dp replicas, 1f1b; worst:"
    done
    run 0 "$MUDDPIPE" check "$name" "${threads[@]}" parallel.pp=2 parallel.dp=2 parallel.schedule=zb-v \
        --same "$name-2.safetensors"
    run 0 "$MUDDPIPE" check "$name" "${threads[@]}" parallel.pp=2 parallel.dp=4 parallel.order=dp-pp \
        parallel.recompute=full --same "$name-4.safetensors"
    says "replica 3: ranks 3 .. 7 on "
done
# All cases of two sequences, one on each replica.
run 0 "$MUDDPIPE" check "$golden"/*-tiny* "${threads[@]}" parallel.dp=2 parallel.pp=2
says "18 of 18 passed"
for transport in $wires; do
    for order in pp-dp dp-pp; do
        run 0 mpirun -n 4 "$MUDDPIPE" check muddformer "${one[@]}" parallel.transport="$transport" \
            parallel.dp=2 parallel.order=$order parallel.schedule=interleaved --same muddformer-2.safetensors
    done
done
run 0 mpirun -n 4 "$MUDDPIPE" check muddformer "${one[@]}" parallel.dp=4 "$wire" --steps 10
says "1 stage, 4 replicas"
run 1 "$MUDDPIPE" check muddformer "${one[@]}" --same muddformer-8.safetensors # else the sums would be one

# Training: a batch that grows, held-out loss, a sample.
tiny_data
tiny_run
train() { # CODE RUN PP DP key=value...
    run "$1" "$MUDDPIPE" train run.yaml "${threads[@]}" logging.run="$2" parallel.pp="$3" parallel.dp="$4" \
        optimizer.steps=20 logging.sample_tokens=5 "${@:5}"
}
near() { # RUN OTHER LIMIT: losses, norms and held-out losses, relatively; and they went through the same data
    python3 - "$@" <<'END' || fail "$1 and $2 are not alike"
import json, sys
one, other = ([json.loads(line) for line in open(f"{run}/metrics.jsonl")] for run in sys.argv[1:3])
assert len(one) == len(other) == 20
for a, b in zip(one, other):
    assert a["sequences"] == b["sequences"] and a["tokens"] == b["tokens"], (a, b)
    for key in ("loss", "grad_norm", "heldout_loss"):
        if key in a:
            assert abs(a[key] / b[key] - 1) < float(sys.argv[3]), (key, a, b)
END
}
train 0 alone 1 1 parallel.microbatches=8 data.valid_every=5
train 0 halves 1 2 parallel.microbatches=4 data.valid_every=5
says "step: 4 microbatches of 2 x 32 tokens on each of 2 replicas; 1 stage" "between replicas "
near alone halves 1e-6
train 0 quarters 2 4 parallel.microbatches=2 data.valid_every=5
near alone quarters 1e-6
same() { # RUN OTHER
    cmp "$1/model/model.safetensors" "$2/model/model.safetensors" || fail "$1 and $2: other weights"
    cmp <(cut -d, -f1-6 "$1/metrics.jsonl") <(cut -d, -f1-6 "$2/metrics.jsonl") || fail "$1 and $2: other losses"
}
grows=(parallel.microbatches=4 optimizer.ramp_from=1 optimizer.ramp=0.5)
train 0 grows 1 2 "${grows[@]}"
for layout in "2 1f1b pp-dp" "4 zb-h1 dp-pp" "2 zb-v pp-dp" "2 interleaved dp-pp"; do
    read -r pp schedule order <<<"$layout"
    train 0 "grows-$pp-$schedule" "$pp" 2 "${grows[@]}" parallel.schedule="$schedule" parallel.order="$order"
    same grows "grows-$pp-$schedule"
done
run 0 mpirun -n 4 "$MUDDPIPE" train run.yaml "${one[@]}" "$wire" logging.run=mpi parallel.dp=2 \
    optimizer.steps=20 logging.sample_tokens=5 "${grows[@]}"
same grows mpi
says "memory " " on rank 3" "2 replicas of a pipeline of 2 ranks (parallel.order=pp-dp)" \
    "replica 0: ranks 0-1 on $(hostname)" "replica 1: ranks 2-3 on $(hostname)"

run 0 "$MUDDPIPE" eval model=alone/model data.valid=valid.bin "${threads[@]}"
one_loss=$(grep -o 'held-out loss [0-9.]*' out)
run 0 "$MUDDPIPE" eval model=alone/model data.valid=valid.bin "${threads[@]}" parallel.pp=2 parallel.dp=3
python3 -c "
a, b = '${one_loss##* }', '$(grep -o 'held-out loss [0-9.]*' out)'.split()[-1]
assert abs(float(a) / float(b) - 1) < 1e-12, (a, b)" || fail "another held-out loss over three replicas"

# Bytes of a step, and memory of each rank, to the byte.
run 0 "$MUDDPIPE" plan run.yaml parallel.pp=2 parallel.dp=2
planned=$(awk '/^replicas:/ { found = 1 } found && $1 == "all" { print $NF }' out)
measured=$(python3 -c '
import json
print(*{json.loads(line)["bytes_collective"] for line in open("mpi/metrics.jsonl")})')
[[ -n $planned && $planned == "$measured" ]] || fail "planned $planned bytes between replicas, measured $measured"
parameters=$(python3 -c '
import json, struct
data = open("mpi/model/model.safetensors", "rb").read()
(size,) = struct.unpack_from("<Q", data)
print(sum((lambda o: (o[1] - o[0] + 255) // 256 * 256)(t["data_offsets"])
          for name, t in json.loads(data[8:8 + size]).items() if name != "__metadata__"))')
((planned >= 2 * parameters && planned <= 2 * parameters + 10 * 256 * 2)) || fail "$planned bytes, and 2 x $parameters are those of sums and weights"
for pair in "1 1" "1 2" "1 4" "2 2"; do
    read -r pp dp <<<"$pair"
    train 0 "memory-$pp-$dp" "$pp" "$dp" optimizer.steps=1 logging.sample_tokens=0
    awk '/^memory  |^ +[0-9.]+ [KM]iB of / { i = $1 == "memory" ? 2 : 1
        if ($i " " $(i + 1) != $(i + 3) " " $(i + 4)) exit 1; n++ } END { exit n == 0 }' out ||
        fail "memory is not as predicted: pp $pp, dp $dp"
done

# Checkpoints: saved by replicas, gone on with under any layout.
long=(parallel.microbatches=4 logging.sample_tokens=0 checkpoint.every=8 checkpoint.keep=9)
train 0 whole 2 2 "${long[@]}" checkpoint.every=0
train 0 saved 2 2 "${long[@]}"
same whole saved
python3 "$(dirname "$script")/read_checkpoint.py" saved/checkpoints/step-20 saved/model/model.safetensors >read ||
    fail "the independent reader does not agree"
grep -qx "step 20, sequences 320, 65 tensors, 65 with moments" read || fail "it read: $(cat read)"
train 0 on 4 2 "${long[@]}" checkpoint.resume=saved/checkpoints/step-8 parallel.order=dp-pp checkpoint.copy=pieces
says "resumed after step 8, from saved/checkpoints/step-8"
cmp on/model/model.safetensors whole/model/model.safetensors || fail "other weights after step 8"
run 0 "$MUDDPIPE" ckpt diff on saved
says "all values are the same bits"
train 0 fewer 1 1 "${long[@]}" parallel.microbatches=8 checkpoint.resume=saved/checkpoints/step-8
train 0 more 1 4 "${long[@]}" parallel.microbatches=2 checkpoint.resume=fewer/checkpoints/step-16
for run in fewer more; do
    python3 - $run <<'END' || fail "$run: other losses than those of a run without an end between"
import json, sys
whole = {json.loads(line)["step"]: json.loads(line) for line in open("whole/metrics.jsonl")}
for line in open(f"{sys.argv[1]}/metrics.jsonl"):
    step = json.loads(line)
    other = whole[step["step"]]
    assert step["sequences"] == other["sequences"] and abs(step["loss"] / other["loss"] - 1) < 1e-6, (step, other)
END
done

# A loss that is not finite is skipped, or ends the run, on all replicas alike.
train 1 diverges 2 2 optimizer.lr=1e18 optimizer.clip=0 optimizer.warmup=0
says "the weights were left as they were before this step"

train 0 skips 2 2 optimizer.lr=1e18 optimizer.clip=0 optimizer.warmup=0 optimizer.on_nan=skip \
    optimizer.on_nan_most=100 logging.sample_tokens=0 data.valid=
skipped=$(grep -c '"skipped":true' skips/metrics.jsonl)
((skipped > 5 && $(grep -c "is skipped: loss" out) == skipped)) || fail "$skipped steps were skipped"

# A rank that is lost ends all replicas, and every survivor names it.
source "$(dirname "$script")/jobs.sh"
start "${one[@]}" parallel.dp=2 data.valid=
kill -KILL "$(pid_of 3)"
ends 20
((code != 0)) || fail "a job that lost a rank ended with success"
(($(grep -c "rank 3 died (killed?) while rank [0-3] was in step " out) == 3)) || fail "not all survivors say who died"

# What cannot be.
run 1 mpirun -n 3 "$MUDDPIPE" train run.yaml "${one[@]}" "$wire" parallel.dp=2 logging.run=refused
says "parallel.dp is 2, which does not divide the 3 ranks started: start a multiple of 2, or use parallel.dp=1"
run 1 mpirun -n 2 "$MUDDPIPE" train run.yaml "${one[@]}" "$wire" parallel.pp=2 parallel.dp=2 logging.run=refused
says "parallel.pp is 2 and parallel.dp 2 (4 ranks) but 2 ranks were started: run \`mpirun -n 4 "
run 1 "$MUDDPIPE" check muddformer "${threads[@]}" parallel.dp=3
says "parallel.dp is 3, which does not divide the case's batch of 8"
run 1 mpirun -n 2 bash -c 'exec "$0" check muddformer parallel.threads=1 parallel.dp=$((1 + OMPI_COMM_WORLD_RANK))' \
    "$MUDDPIPE"
says "this rank was started with another configuration than rank 0"
[[ ! -e refused ]] || fail "a refused run left its folder"
