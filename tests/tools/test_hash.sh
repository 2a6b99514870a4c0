#!/bin/bash
# The run's hash: the same for runs that must have the same bits, another where something decides numbers,
# and then it is the right part that differs. Ranks that see another model or other weights are refused.
source "$(dirname "$0")/common.sh"
tiny_data
tiny_run
few=(optimizer.steps=2 data.valid= logging.export=false parallel.threads=1)

train() { # NAME N key=value...: its hash to NAME.hash
    run_ranks 0 "$2" train run.yaml logging.run="$1" "${few[@]}" "${@:3}"
    [[ $(grep -c '^run [0-9a-f]\{16\}: config ' out) == 1 ]] || fail "$1: not one line of the hash"
    sed -n 's/^\(run [0-9a-f]\{16\}\): .*/\1/p' out >"$1.said"
    cmp "$1.said" <(head -1 "$1/hash.txt") || fail "$1: hash.txt has another hash than was said"
    grep -qF "$(cat "$1.said"): config " "$1/rank-0.log" || fail "$1: the log lacks it"
    sed '/^$/q' "$1/hash.txt" >"$1.hash"
}

same() { # NAME N key=value...: hash and bits of `base`
    train "$@"
    cmp "$1.hash" base.hash || fail "$1: another hash"
    cmp <(cut -d, -f1-6 "$1/metrics.jsonl") <(cut -d, -f1-6 base/metrics.jsonl) || fail "$1: other bits"
}

differs() { # PART NAME N key=value...: from `base`, in that part only
    local part=$1 found
    shift
    train "$@"
    found=$({ diff "$1.hash" base.hash || true; } | sed -n 's/^< \([a-z]*\) .*/\1/p' | xargs)
    [[ $found == "run $part" ]] || fail "$1: differs in '$found', not in 'run $part'"
}

train base 1
says "weights none" "algorithms none"
grep -qx "optimizer.lr: 0.001" base/hash.txt || fail "hash.txt does not say what it stands for"
[[ ! -e base/algorithms.txt ]] || fail "a table of algorithms that nobody asked for"

same stages 3
same layout 2 parallel.schedule=gpipe parallel.partition=4,6 parallel.prefetch=0 parallel.threads=2 \
    parallel.recompute=full
same told 1 profile.steps=1 profile.first_step=2 logging.level=debug logging.sample_tokens=4 \
    logging.card_every=3 health.deadline_s=60 health.heartbeat_s=20 device=cpu
cp train.bin elsewhere.bin
same named 1 data.train=elsewhere.bin data.seq_len=32 model.head_dim=16

differs config rate 1 optimizer.lr=1.001e-3
differs config seed 1 seed=2
differs config batch 1 parallel.microbatches=2
differs config model 1 model.rope_base=10001
differs config pattern 1 dense.key_dilation=2
differs data valid 1 data.valid=valid.bin data.valid_microbatches=8
printf z | dd of=elsewhere.bin bs=1 seek=70002 conv=notrunc status=none # one token, somewhere
differs data token 1 data.train=elsewhere.bin
differs data mixture 1 data.train=train.bin:1,valid.bin:2
mv mixture.hash base.hash
differs data weights-of-mixture 1 data.train=train.bin:1,valid.bin:3

# Weights by their content: another step's, and a copy.
run_ranks 0 1 train run.yaml logging.run=begun data.valid= optimizer.steps=1
cp -r begun/model copy
run_ranks 0 1 train run.yaml logging.run=later data.valid= optimizer.steps=2
rm -r base
train base 1 model=begun/model
same copied 2 model=copy
differs weights other 1 model=later/model

# Every rank in a folder of its own.
apart() { # WORDS...
    run 1 mpirun -n 1 --wdir "$work/one" "$MUDDPIPE" train "${own[@]}" : \
        -n 1 --wdir "$work/two" "$MUDDPIPE" train "${own[@]}"
    says "$@"
    [[ ! -e $work/one/none ]] || fail "a run folder of a run that never began"
}
own=("$work/run.yaml" data.train="$work/train.bin" data.valid= model=model logging.run=none "$wire")
mkdir one two
cp -r begun/model one
cp -r later/model two
apart "the weights that \`model\` names"
rm two/model/model.safetensors one/model/model.safetensors
sed -i 's/"rope_base": 10000/"rope_base": 20000/' two/model/config.json
apart "this rank has another model than rank 0: \`model.rope_base: 20000\` here, \`model.rope_base: 10000\` there" \
    "same config.json on every host"
