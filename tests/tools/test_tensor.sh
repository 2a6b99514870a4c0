#!/bin/bash
# Tensor parallelism: gradients and steps of every (pp, tp, dp) are those of one rank within rounding, with the bits of
# one stage at the same tp and dp; bytes and memory are what the plan says; weights and checkpoints go from any layout
# to any other; what cannot be divided is refused.
source "$(dirname "$0")/common.sh"
one=(parallel.threads=1)
threads=("${one[@]}" parallel.transport=threads)
tiny_data

# Cases of eight sequences and eight heads; a vocabulary that nothing divides.
shape="n_layer: 4, n_head: 8, dim: 64, head_dim: 8, intermediate_size: 256, vocab_size: 131, block_size: 16"
case_of() { # NAME model keys: a model trained a little, and what one rank makes of it
    printf 'model: {%s, %s}\n' "$shape" "$2" >"$1.yaml"
    run 0 "$MUDDPIPE" train "$1.yaml" "${threads[@]}" data.train=train.bin optimizer.steps=3 optimizer.lr=3e-3 \
        optimizer.warmup=0 parallel.microbatches=2 data.micro_batch=4 logging.sample_tokens=0 logging.run="$1-run"
    python3 "$(dirname "$script")/make_case.py" "$1-run/model" "$1" 8 16
    run 1 "$MUDDPIPE" check "$1" "${threads[@]}" --save "$1/expected.safetensors.one"
    mv "$1/expected.safetensors.one" "$1/expected.safetensors"
}
check() { # NAME PP TP DP key=value...: within 1e-6 (logits, loss) and 1e-5 (gradients); the bits of pp = 1
    local keep=--save file="$1-$3-$4${kind:-}.safetensors"
    [[ ! -f $file ]] || keep=--same
    run 0 "$MUDDPIPE" check "$1" "${threads[@]}" --tol 1e-6 parallel.pp="$2" parallel.tp="$3" parallel.dp="$4" \
        $keep "$file" "${@:5}"
    (($3 == 1)) || says " of $3 ranks"
}
case_of mudd "n_local_heads: 8"
for tp in 1 2 4 8; do
    for dp in 1 2 4 8; do
        for pp in 1 2 4 8; do
            ((pp * tp * dp > 8)) || check mudd $pp $tp $dp
        done
    done
done
check mudd 2 2 2 parallel.schedule=zb-v parallel.order=dp-pp parallel.recompute=full
check mudd 2 4 1 parallel.schedule=interleaved parallel.recompute=selective
check mudd 2 4 1 parallel.schedule=gpipe
rm mudd-2-1.safetensors
check mudd 2 2 1 parallel.microbatches=1 # B = 8: other sums
case_of dilated "n_local_heads: 4, dense_pattern: {key_dilation: 2}"
case_of blocks "n_local_heads: 8, dense_pattern: {block_size: 2, block_summary: mean}"
case_of pythia "n_local_heads: 8, model_type: muddpythia, use_linear_bias: true, use_parallel_residual: true, rotary_pct: 0.5"
case_of depth "n_local_heads: 8, dense_type: depth_attention, dynamic_dense: false"
# Every rank with all of the keys.
kind=-whole
for name in mudd dilated blocks pythia depth; do
    for layout in "1 2 1" "2 2 2" "2 4 1" "1 4 2"; do
        read -r pp tp dp <<<"$layout"
        check $name $pp $tp $dp parallel.tp_keys=replicated parallel.recompute=full
    done
done
kind=""
for name in dilated blocks pythia depth; do
    check $name 1 2 1
    check $name 4 2 1 parallel.recompute=selective
    check $name 2 2 2 parallel.schedule=zb-h1
    [[ $name == dilated ]] || check $name 1 8 1 parallel.recompute=full
    check $name 1 4 2
    check $name 2 4 1
done

# The reference's own cases, those of an odd length two sequences at a time.
run 0 "$MUDDPIPE" check "$golden"/*-tiny* "${threads[@]}" parallel.tp=2 parallel.pp=2 parallel.microbatches=1
says "18 of 18 passed"
run 0 "$MUDDPIPE" check "$golden"/*-tiny* "${threads[@]}" parallel.tp=2 parallel.tp_keys=replicated # any length
says "18 of 18 passed"
for transport in $wires; do
    run 0 mpirun -n 4 "$MUDDPIPE" check mudd "${one[@]}" parallel.transport="$transport" parallel.tp=2 parallel.dp=2 \
        --tol 1e-6 --same mudd-2-2.safetensors
done
run 0 mpirun -n 4 "$MUDDPIPE" check "$golden/muddformer-tiny" "${one[@]}" "$wire" parallel.tp=2 --steps 10
says "2 stages of 2 ranks"

# Training: a batch that grows, held-out loss, a sample; losses, norms and weights.
tiny_run
train() { # CODE RUN PP TP DP key=value...
    run "$1" "$MUDDPIPE" train run.yaml "${threads[@]}" logging.run="$2" parallel.pp="$3" parallel.tp="$4" \
        parallel.dp="$5" optimizer.steps=20 logging.sample_tokens=5 "${@:6}"
}
near() { # RUN OTHER: losses, norms and held-out losses within 1e-4, and the same data
    python3 - "$@" <<'PY' || fail "$1 and $2 are not alike"
import json, sys
one, other = ([json.loads(line) for line in open(f"{run}/metrics.jsonl")] for run in sys.argv[1:3])
assert len(one) == len(other) == 20
for a, b in zip(one, other):
    assert a["sequences"] == b["sequences"] and a["tokens"] == b["tokens"], (a, b)
    for key in ("loss", "grad_norm", "heldout_loss"):
        if key in a:
            assert abs(a[key] / b[key] - 1) < 1e-4, (key, a, b)
PY
}
same() { # RUN OTHER
    cmp "$1/model/model.safetensors" "$2/model/model.safetensors" || fail "$1 and $2: other weights"
    cmp <(cut -d, -f1-6 "$1/metrics.jsonl") <(cut -d, -f1-6 "$2/metrics.jsonl") || fail "$1 and $2: other losses"
}
for layout in "1 1 1" "1 8 1" "2 4 1" "4 2 1" "1 4 2" "2 2 2"; do # of eight heads
    read -r pp tp dp <<<"$layout"
    run 0 "$MUDDPIPE" train mudd.yaml "${threads[@]}" data.train=train.bin data.valid=valid.bin data.valid_every=5 \
        data.valid_microbatches=8 data.micro_batch=2 optimizer.steps=20 optimizer.lr=1e-3 logging.sample_tokens=0 \
        parallel.microbatches=$((4 / dp)) logging.run="heads-$pp-$tp-$dp" parallel.pp="$pp" parallel.tp="$tp" \
        parallel.dp="$dp"
    near heads-1-1-1 "heads-$pp-$tp-$dp"
done
grows=(optimizer.ramp_from=1 optimizer.ramp=0.5 data.valid_every=5)
train 0 alone 1 1 1 "${grows[@]}" parallel.microbatches=4
grep '^sample' out >sample || fail "no sample"
train 0 both 1 2 1 "${grows[@]}" parallel.microbatches=4
says "1 replica of a pipeline of 1 x 2 ranks (parallel.tp=2, parallel.order=pp-dp)" "; within stages "
near alone both
cmp sample <(grep '^sample' out) || fail "another sample on two ranks"
train 0 stages 4 2 1 "${grows[@]}" parallel.microbatches=4 parallel.schedule=zb-v parallel.partition=auto
same both stages
run 0 mpirun -n 8 "$MUDDPIPE" train run.yaml "${one[@]}" "$wire" logging.run=eight parallel.tp=2 parallel.dp=2 \
    parallel.order=dp-pp optimizer.steps=20 parallel.microbatches=2
says "2 replicas of a pipeline of 2 x 2 ranks (parallel.tp=2, parallel.order=dp-pp)" \
    "replica 1: ranks 2 .. 7 on $(hostname)" "memory " " on rank 7"
train 0 repeated 2 2 2 parallel.microbatches=2
same eight repeated
run 0 "$MUDDPIPE" eval model=both/model data.valid=valid.bin "${threads[@]}"
one_loss=$(grep -o 'held-out loss [0-9.]*' out)
run 0 "$MUDDPIPE" eval model=both/model data.valid=valid.bin "${threads[@]}" parallel.pp=2 parallel.tp=2
python3 -c "
a, b = '${one_loss##* }', '$(grep -o 'held-out loss [0-9.]*' out)'.split()[-1]
assert abs(float(a) / float(b) - 1) < 1e-6, (a, b)" || fail "another held-out loss on two ranks a stage"

# Bytes of a step, and memory of each rank, to the byte. (Each run has held them against the model's tables, too.)
run 0 "$MUDDPIPE" plan run.yaml parallel.pp=2 parallel.tp=2 parallel.dp=2 parallel.microbatches=2
planned=$(awk '/^tensor parallelism:/ { found = 1 } found && $1 == "all" { print $NF; exit }' out)
measured=$(python3 -c '
import json
print(*{json.loads(line)["bytes_tensor"] for line in open("eight/metrics.jsonl")})')
[[ -n $planned && $planned == "$measured" ]] || fail "planned $planned bytes within stages, measured $measured"
for recompute in none selective full; do
    run 0 "$MUDDPIPE" train run.yaml "${threads[@]}" logging.run="memory-$recompute" parallel.pp=2 parallel.tp=2 \
        optimizer.steps=1 parallel.recompute=$recompute
    awk '/^memory  |^ +[0-9.]+ [KM]iB of / { i = $1 == "memory" ? 2 : 1
        if ($i " " $(i + 1) != $(i + 3) " " $(i + 4)) exit 1; n++ } END { exit n != 4 }' out ||
        fail "memory is not as predicted: recompute $recompute"
done
run 0 "$MUDDPIPE" plan run.yaml parallel.pp=2 parallel.tp=2 parallel.tp_keys=replicated parallel.microbatches=4
planned=$(awk '/^tensor parallelism:/ { found = 1 } found && $1 == "all" { print $NF; exit }' out)
shipped=$(awk '$1 == "all" && $2 == "links" { print $NF; exit }' out)
run 0 "$MUDDPIPE" train run.yaml "${threads[@]}" logging.run=keys parallel.pp=2 parallel.tp=2 \
    parallel.tp_keys=replicated optimizer.steps=1
measured=$(python3 -c '
import json
step = json.loads(open("keys/metrics.jsonl").readline())
print(step["bytes_tensor"], step["bytes_plain"] + step["bytes_dense"])')
[[ "$planned $((2 * shipped))" == "$measured" ]] || fail "planned $planned within stages, $shipped shipped by each; measured $measured"
awk '/^memory  |^ +[0-9.]+ [KM]iB of / { i = $1 == "memory" ? 2 : 1
    if ($i " " $(i + 1) != $(i + 3) " " $(i + 4)) exit 1; n++ } END { exit n != 4 }' out ||
    fail "memory is not as predicted with whole keys"
# A layer's rows of width D that a rank receives: 16 with three inputs, a part (tp - 1) / tp of T each.
run 0 "$MUDDPIPE" plan run.yaml model.n_layer=8 parallel.tp=2
more=$(awk '/gathers and scatters/ { getline; print $2 }' out)
run 0 "$MUDDPIPE" plan run.yaml model.n_layer=7 parallel.tp=2
more=$((more - $(awk '/gathers and scatters/ { getline; print $2 }' out)))
((more == 2 * 4 * 16 * (2 * 32 / 2) * 32 * 4)) || fail "a layer adds $more bytes" # tp M 16 rows D sizeof(float)

# Checkpoints: saved by parts, gone on with under any layout.
long=(parallel.microbatches=4 logging.sample_tokens=0 checkpoint.every=8 checkpoint.keep=9)
train 0 whole 1 2 1 "${long[@]}" checkpoint.every=0
train 0 saved 2 2 1 "${long[@]}"
same whole saved
python3 "$(dirname "$script")/read_checkpoint.py" saved/checkpoints/step-20 saved/model/model.safetensors >read ||
    fail "the independent reader does not agree"
grep -qx "step 20, sequences 160, 65 tensors, 65 with moments" read || fail "it read: $(cat read)"
train 0 on 1 2 1 "${long[@]}" checkpoint.resume=saved/checkpoints/step-8 checkpoint.copy=pieces
run 0 "$MUDDPIPE" ckpt diff on saved
says "all values are the same bits"
run 0 "$MUDDPIPE" ckpt export saved official
cmp official/model.safetensors whole/model/model.safetensors || fail "the export has other weights"
for layout in "fewer 1 1 1" "more 2 2 2" "other 1 1 2"; do
    read -r name pp tp dp <<<"$layout"
    train 0 "$name" "$pp" "$tp" "$dp" "${long[@]}" parallel.microbatches=$((4 / dp)) \
        checkpoint.resume=saved/checkpoints/step-8
    python3 - "$name" <<'PY' || fail "$name: other losses than those of a run without an end between"
import json, sys
whole = {json.loads(line)["step"]: json.loads(line) for line in open("whole/metrics.jsonl")}
for line in open(f"{sys.argv[1]}/metrics.jsonl"):
    step = json.loads(line)
    other = whole[step["step"]]
    assert step["sequences"] == other["sequences"] and abs(step["loss"] / other["loss"] - 1) < 1e-5, (step, other)
PY
done

# A loss that is not finite ends the run on all parts alike.
train 1 diverges 2 2 1 optimizer.lr=1e18 optimizer.clip=0 optimizer.warmup=0
says "the weights were left as they were before this step"

# A rank that is lost ends all, and every survivor names it: wherever it waits, for a stage or for another part.
source "$(dirname "$script")/jobs.sh"
for victim in 1 2; do
    start "${one[@]}" parallel.tp=2 data.valid=
    kill -KILL "$(pid_of $victim)"
    ends 20
    ((code != 0)) || fail "a job that lost a rank ended with success"
    (($(grep -c "rank $victim died (killed?) while rank [0-3] was in step " out) == 3)) ||
        fail "not all survivors say who died"
done

# What cannot be.
run 1 "$MUDDPIPE" train run.yaml "${threads[@]}" parallel.tp=3 logging.run=refused
says "model.n_head is 2, which parallel.tp=3 does not divide; the nearest that divides all of this model is parallel.tp=2"
run 1 "$MUDDPIPE" train run.yaml "${threads[@]}" parallel.tp=3 model.n_head=3 model.dim=48 data.seq_len=30 logging.run=refused
says "the FFN of layer 1 is 128 wide, which parallel.tp=3 does not divide; the nearest that divides all of this model is parallel.tp=1"
run 1 "$MUDDPIPE" train run.yaml "${threads[@]}" parallel.tp=2 data.micro_batch=1 data.seq_len=31 logging.run=refused
says "the tokens of a microbatch, data.micro_batch times data.seq_len, are 31, which parallel.tp=2 does not divide"
run 1 "$MUDDPIPE" check dilated "${threads[@]}" parallel.tp=8
says "model.n_local_heads (heads of keys and values) is 4" "nearest that divides all of this model is parallel.tp=4"
run 1 mpirun -n 3 "$MUDDPIPE" train run.yaml "${one[@]}" "$wire" parallel.tp=2 logging.run=refused
says "parallel.tp times parallel.dp is 2, which does not divide the 3 ranks started: start a multiple of 2, or use parallel.tp=1 and parallel.dp=1"
run 1 mpirun -n 2 "$MUDDPIPE" train run.yaml "${one[@]}" "$wire" parallel.pp=2 parallel.tp=2 logging.run=refused
says "parallel.pp is 2, parallel.tp 2 and parallel.dp 1 (4 ranks) but 2 ranks were started: run \`mpirun -n 4 "
run 1 mpirun -n 2 bash -c 'exec "$0" check mudd parallel.threads=1 parallel.tp=$((1 + OMPI_COMM_WORLD_RANK))' \
    "$MUDDPIPE"
says "this rank was started with another configuration than rank 0"
[[ ! -e refused ]] || fail "a refused run left its folder"
