#!/bin/bash
# Trains every kind of connection on the same text, same steps, same seed; tests/acceptance/variants.py then writes
# docs/variants.md from the runs.
#
#     tests/acceptance/variants.sh FOLDER [steps]      runs into FOLDER/<variant>-<seed>; finished ones are kept
#     tests/acceptance/variants.sh FOLDER speed        three short rounds over all variants, for tokens/s only
#
# Each run has four stages as threads of one process (losses do not depend on the number of stages).
# Three seeds for two of the variants tell what is noise. Needs the quickstart's text (tools/quickstart.sh).
set -euo pipefail
cd "$(dirname "$0")/../.."

folder=$1
steps=${2:-400}
[[ $steps != speed ]] || steps=12
program=${MUDDPIPE:-build/muddpipe}
common=(parallel.transport=threads parallel.pp=4 parallel.threads=1
    model.n_layer=8 model.dim=192 model.n_head=6 model.intermediate_size=512 model.block_size=128
    data.micro_batch=2 parallel.microbatches=8 data.valid_microbatches=64
    optimizer.steps="$steps" logging.sample_tokens=0)

variants=(
    "transformerpp      model.dense=false model.ffn_scale_with_layer=false"
    "static             model.dense_type=l model.dynamic_dense=false"
    "dynamic            model.dense_type=l"
    "multiway-static    model.dynamic_dense=false"
    "multiway-dynamic   "
    "prepostnorm        model.mudd_prenorm=true model.mudd_postnorm=true"
    "k2                 dense.key_dilation=2"
    "k4                 dense.key_dilation=4"
    "p2                 dense.query_period=2"
    "blocks-mean        dense.block_size=2 dense.block_summary=mean"
    "blocks-last        dense.block_size=2 dense.block_summary=last"
    "depth-attention    model.dense_type=depth_attention"
    "depth-blocks       model.dense_type=depth_attention model.depth_attention_block=2"
    "hyper-static       model.dense_type=hyper model.hyper_kind=static"
    "hyper-dynamic      model.dense_type=hyper model.hyper_kind=dynamic"
    "hyper-mhc          model.dense_type=hyper"
)

train() { # NAME SEED KEYS..
    local run=$folder/$1-$2
    [[ -f $run/model/model.safetensors ]] && return
    rm -rf "$run"
    "$program" train tools/quickstart.yaml "${common[@]}" seed="$2" logging.run="$run" "${@:3}" \
        >"$run.txt" || { cat "$run.txt"; exit 1; }
    grep -E '^(held-out|speed)' "$run.txt"
}

mkdir -p "$folder"
if [[ ${2:-} == speed ]]; then
    common+=(data.valid=)
    for round in 1 2 3; do
        for variant in "${variants[@]}"; do
            read -r name keys <<<"$variant"
            read -ra words <<<"$keys"
            rm -rf "$folder/speed-$name-$round"
            "$program" train tools/quickstart.yaml "${common[@]}" "${words[@]}" \
                logging.run="$folder/speed-$name-$round" >"$folder/speed-$name-$round.txt"
        done
    done
    exit
fi
for seed in 1 2 3; do
    for variant in "${variants[@]}"; do
        read -r name keys <<<"$variant"
        if ((seed == 1)) || [[ $name == transformerpp || $name == multiway-dynamic ]]; then
            echo "$name, seed $seed"
            read -ra words <<<"$keys"
            train "$name" "$seed" "${words[@]}"
        fi
    done
done
