#!/bin/bash
# health.audit_every: one wrong bit of a product, of an activation in memory, of a message is found and named; without
# it nobody notices; and where nothing is wrong nothing is found, under any layout, schedule, connection.
source "$(dirname "$0")/common.sh"
tiny_data
tiny_run
short=(optimizer.steps=2 data.valid= logging.export=true)

flips() { # CODE RANKS FLIP key=value...: muddpipe_faults
    rm -rf flipped
    run "$1" mpirun -n "$2" -x FLIP="$3" "$MUDDPIPE_FAULTS" train run.yaml "${short[@]}" parallel.microbatches=1 \
        logging.run=flipped "$wire" "${@:4}"
    [[ $3 == none || $(grep -c "a bit has flipped" out) == 1 ]] || fail "$3: no bit has flipped"
}

# ---- found and named ----

flips 0 2 none
cp -r flipped plain
flips 0 2 1:result:3 # unseen, and the weights are others
cmp -s flipped/model/model.safetensors plain/model/model.safetensors && fail "a flipped bit changes nothing"
flips 1 2 1:result:3 health.audit_every=1
says "[rank 1] error: step 1, F of ffn" "linear_forward, computed twice from the same numbers, gave two results in y ["
flips 1 2 0:result:2 health.audit_every=1
says "[rank 0] error: step 1, F of " "linear_forward, computed twice from the same numbers"
flips 1 2 1:memory:1 health.audit_every=1
says "[rank 1] error: step 1, F of ffn" "swiglu_forward reads gate [" "which has changed since linear_forward y in step 1, F of ffn"
flips 1 2 0:message:4 health.audit_every=1 # the newest key, which its sender does not read again
says "[rank 1] error: step 1: what rank 0 sent to rank 1 is not what arrived there (H_3 of microbatch 0)"
flips 1 2 1:message:1 health.audit_every=1
says "[rank 0] error: step 1: what rank 1 sent to rank 0 is not what arrived there (dH_3 of microbatch 0)"
flips 1 2 0:message:1 health.audit_every=1 # one that it does read again
says "[rank 0] error: step 1, F of attn 1" "which has changed since embed_forward out"
flips 0 2 none health.audit_every=1
cmp flipped/model/model.safetensors plain/model/model.safetensors || fail "other weights with audits"
flips 1 4 2:gather:3 health.audit_every=1 parallel.dp=2
says "[rank 2] error: step 1: the weights of ffn 1 on rank 2 are not those on rank 0" "rank 2 failed (mismatch), so rank 1 ends too"
flips 0 4 none health.audit_every=1 parallel.dp=2

# ---- nothing is found where nothing is wrong, and the numbers are the same ----

sound() { # RANKS key=value...
    rm -rf with without
    run_ranks 0 "$1" train run.yaml optimizer.steps=4 data.valid= logging.run=without "${@:2}"
    run_ranks 0 "$1" train run.yaml optimizer.steps=4 data.valid= logging.run=with health.audit_every=2 "${@:2}"
    says "step 2: microbatch 1 computed twice with the same bits" "step 4: microbatch 2 computed twice"
    cmp with/model/model.safetensors without/model/model.safetensors || fail "other weights: $*"
    cmp <(cut -d, -f1-5 with/metrics.jsonl) <(cut -d, -f1-5 without/metrics.jsonl) || fail "other losses: $*"
}
sound 1
sound 2 parallel.schedule=zb-v parallel.recompute=selective
sound 3 parallel.schedule=interleaved
sound 3 parallel.schedule=zb-h1 parallel.recompute=full
sound 2 model.dense_type=depth_attention
sound 4 parallel.dp=2 parallel.schedule=zb-h1
says ", replicas with the same weights"
sound 2 model.dense_type=hyper
sound 3 parallel.sum_order=per_rank data.order=documents data.eod=10
run 1 "$MUDDPIPE" train run.yaml precision=bf16 device=cuda health.audit_every=2
says "health.audit_every: in bf16"
