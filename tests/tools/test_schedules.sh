#!/bin/bash
# Schedules: all leave the bits of one stage, over processes too; with sums per rank those of one rank that
# replays their order, and only those; files are read, refused and trained with; a batch may grow.
source "$(dirname "$0")/common.sh"
case=$golden/muddformer-tiny
one=(parallel.threads=1 parallel.microbatches=2)
plan=("$MUDDPIPE" plan "$case/config.json" data.seq_len=16 parallel.microbatches=2)

run 0 "$MUDDPIPE" check "$case" "${one[@]}" --save one.safetensors
for transport in $wires; do
    for schedule in zb-h1 interleaved zb-v; do
        run 0 mpirun -n 2 "$MUDDPIPE" check "$case" "${one[@]}" parallel.schedule=$schedule \
            parallel.transport="$transport" --same one.safetensors
    done
    run 0 mpirun -n 3 "$MUDDPIPE" check "$case" "${one[@]}" parallel.schedule=zb-v \
        parallel.transport="$transport" --same one.safetensors
done

# So do models with another connector.
for other in depth-attention-tiny depth-attention-blocks-tiny hyper-mhc-tiny; do
    run 0 "$MUDDPIPE" check "$golden/$other" "${one[@]}" --save other.safetensors
    for transport in $wires; do
        run 0 mpirun -n 2 "$MUDDPIPE" check "$golden/$other" "${one[@]}" parallel.schedule=zb-v \
            parallel.transport="$transport" parallel.recompute=full --same other.safetensors
    done
    keys=(parallel.schedule=interleaved parallel.pp=2 parallel.sum_order=per_rank)
    run 0 "$MUDDPIPE" plan "$golden/$other/config.json" data.seq_len=16 parallel.microbatches=2 \
        "${keys[@]}" --print-schedule
    cp out schedule.txt
    run 0 "$MUDDPIPE" check "$golden/$other" parallel.transport=threads "${one[@]}" "${keys[@]}" \
        --save sums.safetensors
    run 0 "$MUDDPIPE" check "$golden/$other" "${one[@]}" parallel.replay=schedule.txt \
        --same sums.safetensors
done

# Sums per rank are other sums.
for layout in "2 interleaved 2" "3 interleaved 3" "2 zb-v 0"; do
    read -r ranks schedule chunks <<<"$layout"
    keys=(parallel.schedule="$schedule" parallel.virtual_stages="$chunks" parallel.sum_order=per_rank)
    run 0 "${plan[@]}" parallel.pp="$ranks" "${keys[@]}" --print-schedule
    cp out schedule.txt
    threads=(parallel.transport=threads parallel.pp="$ranks" "${one[@]}")
    run 0 "$MUDDPIPE" check "$case" "${threads[@]}" "${keys[@]}" --save "$schedule.safetensors"
    run 1 "$MUDDPIPE" check "$case" "${one[@]}" --same "$schedule.safetensors"
    run 0 "$MUDDPIPE" check "$case" "${one[@]}" parallel.replay=schedule.txt --same "$schedule.safetensors"
    run 0 "$MUDDPIPE" check "$case" "${threads[@]}" parallel.schedule=./schedule.txt \
        --same "$schedule.safetensors"
done

# A file: what was printed is what is read, also edited; what cannot work is refused with its line.
run 0 "${plan[@]}" parallel.pp=2 parallel.schedule=zb-h1 --print-schedule
cp out printed.txt
run 0 "${plan[@]}" parallel.pp=2 parallel.schedule=./printed.txt --print-schedule
diff <(grep -v '^#' out) <(grep -v '^#' printed.txt) || fail "another schedule"
sed 's/^partition .*/partition auto/; s/^sum_order .*/sum_order auto/' printed.txt >edited.txt
run 0 "${plan[@]}" parallel.pp=2 parallel.schedule=./edited.txt --ops 0
run 1 "${plan[@]}" parallel.pp=3 parallel.schedule=./printed.txt
says "printed.txt is a schedule for 2 ranks, and there are 3 (parallel.pp)"
run 1 "${plan[@]}" parallel.pp=2 parallel.schedule=./printed.txt parallel.microbatches=4
says "is a schedule for 2 microbatches, not for 4"
sed 's/ K1\.1//' printed.txt >short.txt
run 1 "${plan[@]}" parallel.pp=2 parallel.schedule=./short.txt
says "short.txt:7: rank 1: K1.1 is missing"
sed 's/^rank 0:.*/rank 0: F0.0 B0.0 K0.0 W0.0 F0.1 B0.1 K0.1 W0.1/
     s/^rank 1:.*/rank 1: F1.0 F1.1 B1.0 K1.0 W1.0 B1.1 K1.1 W1.1/' printed.txt >stuck.txt
run 1 "${plan[@]}" parallel.pp=2 parallel.schedule=./stuck.txt
says "stuck.txt:6: this schedule cannot work: deadlock: rank 0 at"
run 1 "${plan[@]}" parallel.schedule=zigzag
says "or the path of a file"

# Training: a batch that grows, evaluation and a sample beside two stages a rank.
tiny_data
train=("$MUDDPIPE" train data.train=train.bin data.valid=valid.bin model.n_layer=4 model.dim=32
    model.n_head=2 model.vocab_size=256 data.seq_len=16 data.micro_batch=1 parallel.transport=threads
    parallel.threads=1 parallel.microbatches=5 optimizer.steps=5 data.valid_every=2
    data.valid_microbatches=3 logging.sample_tokens=3)
losses() { grep -o '"loss":[^,]*' "$1/metrics.jsonl"; }
run 0 "${train[@]}" parallel.pp=1 optimizer.ramp_from=2 optimizer.ramp=0.9 logging.run=alone
for layout in "3 zb-h1 none" "2 interleaved selective" "3 interleaved full" "3 zb-v full"; do
    read -r ranks schedule recompute <<<"$layout"
    run 0 "${train[@]}" parallel.pp="$ranks" parallel.schedule="$schedule" \
        parallel.recompute="$recompute" optimizer.ramp_from=2 optimizer.ramp=0.9 logging.run="$schedule$ranks"
    cmp <(losses alone) <(losses "$schedule$ranks") || fail "other losses: $layout"
    cmp alone/model/model.safetensors "$schedule$ranks/model/model.safetensors" ||
        fail "other weights: $layout"
done
# Slow messages, some much slower than others, change nothing but the time.
for schedule in 1f1b zb-v interleaved; do
    MUDDPIPE_DELAY=300,5,20 run 0 "${train[@]}" parallel.pp=3 parallel.schedule=$schedule \
        optimizer.ramp_from=2 optimizer.ramp=0.9 logging.run="slow-$schedule"
    says "messages land later: MUDDPIPE_DELAY=300,5,20"
    cmp <(losses alone) <(losses "slow-$schedule") || fail "other losses with slow messages: $schedule"
done
MUDDPIPE_DELAY=300,5 run 1 "${train[@]}" parallel.pp=2 logging.run=delay
says "a delay of messages is US or US,ONE_IN,TIMES" "not \"300,5\""
run 0 "$MUDDPIPE" plan model.n_layer=4 model.dim=32 model.n_head=2 model.vocab_size=256 data.seq_len=16 \
    parallel.microbatches=5 parallel.pp=2 parallel.schedule=zb-v --print-schedule
cp out train.txt
run 0 "${train[@]}" parallel.pp=2 parallel.schedule=./train.txt logging.run=file
run 1 "${train[@]}" parallel.pp=2 parallel.schedule=./train.txt optimizer.ramp_from=2 \
    optimizer.ramp=0.9 logging.run=grows
says "a batch that grows needs a schedule with a name"
