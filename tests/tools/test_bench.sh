#!/bin/bash
# muddpipe bench comm: rows for every transport, JSON that says the same, refusals that help.
source "$(dirname "$0")/common.sh"
limit=150

rows() { # FILE TRANSPORT: how many objects; fails if one is not sound
    python3 - "$1" "$2" <<'END'
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
mine = [row for row in rows if row["transport"] == sys.argv[2]]
for row in rows:
    assert row["bench"] == "comm" and row["device"] == "cpu", row
    assert 0 < row["least"] <= row["median"] <= row["most"], row
    assert row["unit"] in ("us", "GB/s", "ms"), row
    assert row["test"] != "latency" or row["bytes"] == 4096, row
print(len(mine))
END
}

# Three ranks: one pair, and one who looks on.
for wire in $wires; do
    run 0 mpirun -n 3 "$MUDDPIPE" bench comm device=cpu parallel.transport="$wire" --repeats 1 \
        --json "$wire.jsonl"
    says "transport $wire" latency "one way" "both ways" "64 MiB" "host, 100 messages"
    [[ $(rows "$wire.jsonl" "$wire") == 10 ]] || fail "$wire.jsonl: not ten rows"
done
run 0 "$MUDDPIPE" bench comm device=cpu parallel.transport=threads parallel.pp=2 --repeats 2 \
    --json threads.jsonl
says "transport threads" "one way"
[[ $(rows threads.jsonl threads) == 10 ]] || fail "threads.jsonl: not ten rows"

# What one rank cannot use is out on all, with that rank's reason.
if [[ $wires == *ucx* ]]; then
    run 0 mpirun -n 1 "$MUDDPIPE" bench comm device=cpu --repeats 1 : \
        -n 1 env UCX_TLS=nothing "$MUDDPIPE" bench comm device=cpu --repeats 1
    says "transport ucx cannot be used here: UCX refused" "transport mpi" "host, 100 messages"
fi

run 1 "$MUDDPIPE" bench comm device=cpu
says "start two"
run 1 mpirun -n 2 "$MUDDPIPE" bench comm device=cpu --repeats 1 --json no/such/folder
says "no/such/folder"
run 2 "$MUDDPIPE" bench comm --repeats none
says "--repeats"
run 2 "$MUDDPIPE" bench
says "usage: muddpipe bench"
run 2 "$MUDDPIPE" bench disks
says "no benchmark 'disks'"
run 0 "$MUDDPIPE" bench --help
run 0 "$MUDDPIPE" bench comm --help
says "usage: mpirun -n 2 muddpipe bench comm"

# The rate of a checkpoint.
mkdir disk
run 0 "$MUDDPIPE" bench checkpoint disk --mib 8 --threads 2 --repeats 2
says "the disk alone" "one thread, encoded" "a shard by 2 threads" "of the slower of disk and threads"
[[ -z $(ls -A disk) ]] || fail "left behind: $(ls -A disk)"
run 1 "$MUDDPIPE" bench checkpoint nowhere --mib 1
says "cannot make the folder nowhere/"
run 2 "$MUDDPIPE" bench checkpoint
says "wants one folder"
run 2 "$MUDDPIPE" bench checkpoint disk --threads 0
says "--threads is 1 to 64"
