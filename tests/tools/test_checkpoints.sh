#!/bin/bash
# Runs that go on from a checkpoint end with the weights of one that was never interrupted: under any layout,
# schedule, transport, from the same folder or a new one, after a signal; and an independent reader agrees.
source "$(dirname "$0")/common.sh"
tiny_data
tiny_run
whole=(optimizer.steps=12 data.valid=)

train() { # CODE RUN N key=value...
    run_ranks "$1" "$3" train run.yaml "${whole[@]}" logging.run="$2" "${@:4}"
}

same() { # RUN: its weights are those of the run without checkpoints
    cmp "$1/model/model.safetensors" plain/model/model.safetensors || fail "$1: other weights"
}

steps_of() { # RUN: whole checkpoints
    (cd "$1/checkpoints" && echo step-*)
}

train 0 plain 1
# The first one that is due is always made; later ones may be passed over while it is written.
train 0 all 2 checkpoint.every=9
same all
[[ $(steps_of all) == "step-12 step-9" ]] || fail "checkpoints: $(steps_of all)"
says "saved all/checkpoints/step-12"
for k in 3 6; do
    train 0 all-$k 2 checkpoint.every=$k checkpoint.keep=9
    same all-$k
done
python3 "$(dirname "$script")/read_checkpoint.py" all/checkpoints/step-12 all/model/model.safetensors >read ||
    fail "the independent reader does not agree"
grep -qx "step 12, sequences 96, 65 tensors, 65 with moments" read || fail "it read: $(cat read)"

# A new run from each, under another layout.
train 0 three 3 checkpoint.resume=all-3/checkpoints/step-3
says "resumed after step 3, from all-3/checkpoints/step-3" "step    4/12" \
    "from the start of the process to its first step " "checkpoint found and verified "
same three
[[ $(steps_of three) == step-12 ]] || fail "checkpoints: $(steps_of three)"
train 0 zbv 2 checkpoint.resume=all-6/checkpoints/step-6 parallel.schedule=zb-v checkpoint.level=0
same zbv
python3 "$(dirname "$script")/read_checkpoint.py" zbv/checkpoints/step-12 plain/model/model.safetensors >read ||
    fail "the independent reader does not agree without compression"
run 0 "$MUDDPIPE" ckpt diff zbv all
says "all values are the same bits"
rm -r all/checkpoints/step-12
train 0 newest 1 checkpoint.resume=all parallel.recompute=full
says "resumed after step 9, from all/checkpoints/step-9"
same newest
run 0 "$MUDDPIPE" train run.yaml "${whole[@]}" logging.run=threads parallel.transport=threads parallel.pp=4 \
    checkpoint.resume=all/checkpoints/step-9
same threads

# Copied in pieces: the update waits, and nothing is torn.
train 0 pieces 2 checkpoint.copy=pieces checkpoint.every=3 checkpoint.keep=9 checkpoint.threads=3
same pieces
run 0 "$MUDDPIPE" ckpt diff pieces/checkpoints/step-3 all-3/checkpoints/step-3
says "all values are the same bits"

# In its own folder: begun, ended by a signal in the middle, gone on, gone on at its end.
go_on() { # CODE N key=value...
    train "$1" same "$2" checkpoint.every=10 checkpoint.resume=auto "${@:3}"
}
mpirun -n 2 "$MUDDPIPE" train run.yaml optimizer.steps=100000 data.valid= logging.run=long "$wire" \
    checkpoint.every_s=0.3 >long.out 2>&1 </dev/null &
job=$!
for ((i = 0; i < 300; i++)); do
    [[ ! -d long/checkpoints ]] || [[ $(steps_of long) == "step-*" ]] || break
    sleep 0.1
done
kill -USR1 "$job"
code=0
wait "$job" || code=$?
((code == 75)) || { cp long.out out; fail "exit code $code of a run that a signal ended"; }
last=$(tail -1 long/metrics.jsonl | sed 's/^{"step":\([0-9]*\),.*/\1/')
[[ -d long/checkpoints/step-$last ]] || fail "the last step, $last, is not saved: $(steps_of long)"
(($(steps_of long | wc -w) == 2)) || fail "more than two are kept: $(steps_of long)"
run_ranks 0 1 train run.yaml optimizer.steps="$((last + 3))" data.valid= logging.run=long checkpoint.resume=auto
says "resumed after step $last" "from step $((last + 1)) on optimizer.steps is $((last + 3)), it was 100000"
python3 - "$((last + 3))" <<'END' || fail "holes or doubles in metrics.jsonl"
import json, sys
steps = [json.loads(line) for line in open("long/metrics.jsonl")]
assert [step["step"] for step in steps] == list(range(1, int(sys.argv[1]) + 1))
assert [step["sequences"] for step in steps] == [8 * step["step"] for step in steps]
END

go_on 0 2
same same
rm -r same/checkpoints/step-12
tail -2 same/metrics.jsonl >ends
echo '{"step":13,"loss":' >>same/metrics.jsonl
go_on 0 3
says "resumed after step 10"
same same
cmp <(tail -2 same/metrics.jsonl | cut -d, -f1-5) <(cut -d, -f1-5 ends) || fail "the last steps are others"
go_on 0 1
says "resumed after step 12" "no step was made (the run was at its end)"

# A checkpoint as a model, and out of and into official folders.
run 0 "$MUDDPIPE" eval model=same/checkpoints/step-12 data.valid=valid.bin
cp out heldout
run 0 "$MUDDPIPE" eval model=plain/model data.valid=valid.bin
cmp out heldout || fail "another held-out loss"
run 0 "$MUDDPIPE" ckpt export same exported
cmp exported/model.safetensors plain/model/model.safetensors || fail "other weights exported"
run 0 "$MUDDPIPE" ckpt import exported imported
run 0 "$MUDDPIPE" ckpt export same sharded --shard-size 100K
run 0 "$MUDDPIPE" ckpt export same rounded --dtype bfloat16
run 0 "$MUDDPIPE" ckpt import sharded resharded
run 0 "$MUDDPIPE" ckpt diff imported resharded
says "all values are the same bits"
python3 - <<'END' || fail "sharded or rounded exports are not what they should be"
import json, os, struct
def read(path):
    data = open(path, "rb").read()
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__")
    return {name: (t["dtype"], t["shape"], data[8 + size + t["data_offsets"][0]:8 + size + t["data_offsets"][1]])
            for name, t in header.items()}
whole = read("exported/model.safetensors")
index = json.load(open("sharded/model.safetensors.index.json"))
files = {file: read("sharded/" + file) for file in set(index["weight_map"].values())}
assert len(files) > 1 and set(index["weight_map"]) == set(whole)
assert index["metadata"]["total_size"] == sum(len(t[2]) for t in whole.values())
assert all(sum(len(t[2]) for t in file.values()) <= 100 << 10 for file in files.values())
for name, file in index["weight_map"].items():
    assert files[file][name] == whole[name]
assert not os.path.exists("sharded/model.safetensors")
def nearest(value):  # the bfloat16 nearest to a float, by comparing both neighbours
    (bits,) = struct.unpack("<I", value)
    low, high = bits & 0xffff0000, (bits & 0xffff0000) + 0x10000
    real = lambda b: struct.unpack("<f", struct.pack("<I", b))[0]
    down, up = abs(real(bits) - real(low)), abs(real(high) - real(bits))
    return (low if down < up or (down == up and (low >> 16) % 2 == 0) else high) >> 16
rounded = read("rounded/model.safetensors")
assert set(rounded) == set(whole)
for name, (dtype, shape, data) in whole.items():
    assert rounded[name][:2] == ("BF16", shape)
    values = [data[i:i + 4] for i in range(0, len(data), 4)]
    assert rounded[name][2] == b"".join(struct.pack("<H", nearest(v)) for v in values), name
END
run 0 "$MUDDPIPE" eval model=rounded data.valid=valid.bin
run 2 "$MUDDPIPE" ckpt export same elsewhere --dtype int8
says "--dtype takes float32 or bfloat16, not 'int8'"
run 2 "$MUDDPIPE" ckpt export same elsewhere --shard-size
says "--shard-size takes a size such as 500M or 5G"
run 2 "$MUDDPIPE" ckpt export same elsewhere --shard-size 5
run 2 "$MUDDPIPE" ckpt diff same all --dtype bfloat16
says "are options of export"
run 1 "$MUDDPIPE" ckpt export same sharded
says "cannot make the folder sharded"
train 0 from-model 1 model=exported optimizer.steps=2
train 0 from-import 2 model=imported optimizer.steps=2
cmp from-{model,import}/model/model.safetensors || fail "imported weights train to others"
run 0 "$MUDDPIPE" ckpt inspect imported
says "step         0, behind sequence 0"
run 1 "$MUDDPIPE" ckpt diff same from-model
says "from-model is no checkpoint (it has no manifest)"
run 1 "$MUDDPIPE" ckpt diff same imported
says "tensors differ" "first moment"
run 2 "$MUDDPIPE" ckpt diff same
run 2 "$MUDDPIPE" ckpt look same
