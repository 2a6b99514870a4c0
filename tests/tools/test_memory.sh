#!/bin/bash
# The memory table, workspace and all: what `plan` says before, what `train` says at its start, and what it
# says of each rank at the end are one.
source "$(dirname "$0")/common.sh"
tiny_data
tiny_run
few=(optimizer.steps=1 data.valid= logging.export=false parallel.threads=2 device=cpu)

column() { # FROM THE END: of the table's rows, in the file out
    awk -v back="$1" '$NF == "staging" { on = 1; next } $1 == "frames:" { on = 0 }
                      on { print $(NF - back - 1), $(NF - back) }' out
}

for n in 1 3; do
    run 0 "$MUDDPIPE" plan run.yaml parallel.pp=$n "${few[@]}"
    says "workspace: scratch of the operations, logits among it, on the host with 2 threads a rank; together"
    column 4 >planned
    column 2 >together
    (($(grep -c . planned) == n)) || fail "no figure for every rank"
    run_ranks 0 $n train run.yaml "${few[@]}" logging.run=ranks-$n
    cmp <(column 4) planned || fail "$n ranks: train begins with another workspace"
    cmp <(sed -n 's/.* predicted (and \(.*\) of workspace) on rank .*/\1/p' out) planned ||
        fail "$n ranks: another workspace was used"
    cmp <(column 2) together || fail "$n ranks: another sum"
done
python3 - <<'END' || fail "the sum is no sum"
units = {"B": 1, "KiB": 2**10, "MiB": 2**20}
def sizes(name):
    return [float(n) * units[u] for n, u in map(str.split, open(name))]
exactly = [int(line.split()[-7]) for line in open("out") if line.split()[-1:] in (["B"], ["KiB"], ["MiB"])
           and line.split()[0] in "012" and len(line.split()) > 20]
assert len(exactly) == 3, exactly
for all_, workspace, together in zip(exactly, sizes("planned"), sizes("together")):
    assert abs(all_ + workspace - together) < 0.06 * (2**20 + 2**10), (all_, workspace, together)
END

# Planned for GPUs that are not there: logits of 1024 rows, and more for a longer sequence.
small=("$MUDDPIPE_SOURCE/model/configs/muddformer-405m.json" precision=bf16)
run 0 "$MUDDPIPE" plan "${small[@]}"
says "on a GPU, as far as is known without its libraries (cuDNN may want more); together"
column 4 >whole
run 0 "$MUDDPIPE" plan "${small[@]}" data.seq_len=512
column 4 >short
[[ $(cat whole short) == *MiB*MiB* && $(cat whole) != $(cat short) ]] || fail "the same for any length"

# What a checkpoint's copy takes is what `plan` says.
run 0 "$MUDDPIPE" plan run.yaml "${few[@]}" checkpoint.every=1
says "checkpoints: host memory for a copy, on rank 0 (the fullest) "
planned=$(sed -n 's/^checkpoints: .*(the fullest) \([0-9.]* MiB\);.*/\1/p' out)
run 0 "$MUDDPIPE" train run.yaml "${few[@]}" checkpoint.every=1 logging.run=saves
says "the update of the step after a save waits for that copy" "  taken for it on rank 0: $planned"
run 0 "$MUDDPIPE" plan run.yaml "${few[@]}" checkpoint.every=1 checkpoint.copy=pieces
says "checkpoints: copied in pieces"
run 0 "$MUDDPIPE" plan run.yaml "${few[@]}"
! grep -q "^checkpoints" out || fail "checkpoints that nobody asked for"
