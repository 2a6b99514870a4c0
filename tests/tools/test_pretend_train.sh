#!/bin/bash
# Runs on GPUs of threads, where the host is ahead and results come late: the losses, norms, held-out
# losses and weights of the host to the last digit, every step in metrics.jsonl and in order.
source "$(dirname "$0")/pretend.sh"
tiny_data
tiny_run

# A ramp of the batch, an evaluation between steps, documents that do not see each other.
few=(optimizer.steps=9 data.valid_every=4 optimizer.ramp_from=2 optimizer.ramp=0.5
    data.mask_documents=true data.eod=10 logging.sample_tokens=4)
run 0 "$MUDDPIPE" train run.yaml device=cpu logging.run=host "${few[@]}"
sample=$(grep '^sample ' out)
says "time of a step (mean over ranks): other "

told() { # RUN: what does not depend on time
    cut -d, -f1-6 "$1/metrics.jsonl"
    grep -o '"heldout_loss":[^,}]*' "$1/metrics.jsonl"
    grep -o 'held-out loss .*' "$1/rank-0.log"
}

as_on_host() { # RUN
    cmp <(told "$1") <(told host) || fail "$1: other figures than on the host"
    cmp "$1/model/model.safetensors" host/model/model.safetensors || fail "$1: other weights"
    (($(grep -c '^step .* loss ' out) == 9)) || fail "$1: not a line for each step"
    ! grep -q '^time of a step (mean' out || fail "$1: times that nobody took"
}

# The host memory that wires pin, rank by rank: what the plan says where tensors pass through it.
pinned_as_planned() { # RANKS TRANSPORT
    local planned
    if [[ $2 == ipc || $2 == nccl ]]; then
        planned=$(for ((i = 0; i < $1; i++)); do echo "0 B"; done)
    else
        planned=$(awk '$NF == "staging" { on = 1; next } $1 == "frames:" { on = 0 }
                       on { print $(NF - 1), $NF }' out)
        [[ $planned != *"0 B"* ]] || fail "no buffers planned: $planned"
        says "tensors pass through host memory"
    fi
    [[ $(grep -c . <<<"$planned") == "$1" ]] || fail "not a figure for every rank: $planned"
    cmp <(sed -n 's/^ *its host: \(.*\) pinned for tensors on their way, .*/\1/p' out) \
        <(echo "$planned") || fail "$2: pinned otherwise than planned"
    cmp <(sed -n 's/^ *its host: .* on their way, \(.*\) predicted (and [1-9].*/\1/p' out) \
        <(echo "$planned") || fail "$2: predicted otherwise than planned"
}

# Everything on the GPU, evaluation and samples too, is what was predicted, and that what the table says.
taken_as_predicted() { # RANKS
    cmp <(sed -n 's/^ *its GPU: .* taken, \(.*\) predicted with the workspace.*/\1/p' out) \
        <(awk '$NF == "staging" { on = 1; next } $1 == "frames:" { on = 0 }
               on { print $(NF - 3), $(NF - 2) }' out) || fail "memory: not what the table says"
    awk '/^ *its GPU: .* taken, .* predicted with the workspace/ {
             match($0, /\([-+][0-9.]+%\)/); off = substr($0, RSTART + 1) + 0
             found++; wrong += off < -2 || off > 2 }
         END { exit !(found == '"$1"' && !wrong) }' out || fail "memory: not as predicted"
}

for n in 1 2 4; do
    for transport in $wires; do
        name=$transport-$n
        run_pretend 0 "$n" "$transport" train run.yaml logging.run="$name" "${few[@]}"
        as_on_host "$name"
        [[ $(grep '^sample ' out) == "$sample" ]] || fail "$name: another sample"
        taken_as_predicted "$n"
        if ((n == 1)); then
            ! grep -q "its host:" out || fail "memory pinned by a wire without ranks to talk to"
            break
        fi
        pinned_as_planned "$n" "$transport"
    done
done

# Recording stops and starts streams between steps.
run_pretend 0 2 ipc train run.yaml logging.run=traced "${few[@]}" profile.first_step=3 profile.steps=3
as_on_host traced
says "time of a step by operation, rank 0, mean of steps 3 to 5" "norm exchange" \
    "to rank 1: at work for"
(($(grep -c "host ahead by" out) == 1)) || fail "a lead of the host over other streams than one"
python3 - <<'END' || fail "no sound trace"
import json
for rank in range(2):
    trace = json.load(open(f"traced/trace/rank-{rank}.json"))
    assert trace["rank"] == rank and trace["steps"] == 3 and trace["complete"]
    names = {s["category"] for s in trace["sums"]}
    assert {"gemm forward", "norm exchange", "wait plain", "wait dense", "messages"} <= names, names
END

# More ranks than GPUs.
PRETEND_GPUS=1 run_pretend 0 2 ipc train run.yaml logging.run=shared "${few[@]}"
as_on_host shared
says "2 ranks share 1 GPU and take turns (ranks 0 and 1 are both on a GPU of threads, 0000:00:00.0 of " \
    "right for checks, slow for training; start no more ranks on a host than it has GPUs"
! grep -q "its GPU: .* taken" out || fail "memory taken of a GPU that others take from too"
PRETEND_GPUS=2 run_pretend 0 3 ipc train run.yaml logging.run=turns "${few[@]}"
says "3 ranks share 2 GPUs and take turns (ranks 0 and 2 are both on "

# A rank sees its own GPU only, each the first of all that it sees.
alone() { # FIRST...: a rank for each
    local first list=()
    for first; do
        list+=(${list:+:} -n 1 env PRETEND_GPUS=1 PRETEND_FIRST="$first" "$PRETEND" train run.yaml
            "logging.run=alone" device=cuda parallel.transport=ipc "${few[@]}")
    done
    rm -rf alone
    run 0 mpirun "${list[@]}"
    as_on_host alone
}
alone 3 5
! grep -q "share" out || fail "a GPU that nobody shares"
taken_as_predicted 2
alone 4 4
says "2 ranks share 1 GPU and take turns"

# What it computes on: a line, in the log of every rank; and in that log all that was said before.
says "[rank 0] computing on a GPU of threads: a GPU of threads"
(($(grep -c "computing on" out) == 1)) || fail "not one line for ranks that are alike"
for rank in 0 1; do
    (($(grep -c "computing on a GPU of threads" alone/rank-$rank.log) == 1)) || fail "not in rank $rank's log"
done
grep -q "ranks share 1 GPU" alone/rank-0.log || fail "not in the log"

# Preflight measures on the GPUs, and names them.
# (GPUs of threads on shared cores may well differ by a tenth, which is wrong of real ones.)
mpirun -n 2 "$PRETEND" preflight device=cuda parallel.transport=ipc >out 2>&1 </dev/null || (($? == 1)) || fail "preflight"
says "a GPU of threads" "pairs within a host: 1, each way" "preflight: 2 ranks over ipc, "

# One microbatch computed twice: nothing is found on sound GPUs, over any transport, and the weights stay the same.
for transport in ipc ucx mpi; do
    run_pretend 0 2 "$transport" train run.yaml logging.run="audit-$transport" optimizer.steps=4 health.audit_every=2
    says "step 2: microbatch 1 computed twice with the same bits" "step 4: microbatch 2 computed twice"
done
run_pretend 0 3 ipc train run.yaml logging.run=unaudited optimizer.steps=4 parallel.schedule=zb-h1 parallel.recompute=full
run_pretend 0 3 ipc train run.yaml logging.run=audited optimizer.steps=4 parallel.schedule=zb-h1 parallel.recompute=full \
    health.audit_every=1 profile.steps=1
says "step 4: microbatch 0 computed twice"
for run in audit-ipc audit-ucx audit-mpi audited; do
    cmp "$run/model/model.safetensors" unaudited/model/model.safetensors || fail "$run: other weights"
done
run_pretend 0 2 ipc train run.yaml logging.run=audit-bf16 optimizer.steps=2 health.audit_every=1 precision=bf16 \
    deterministic=true
says "step 2: microbatch 2 computed twice"
