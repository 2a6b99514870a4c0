#!/bin/bash
# Two hosts with networks of their own: replicas across, and pipelines across, with ranks of a stage inside, leave the
# bits of one process; what crosses the cable is what the plan says; a host that dies ends the job, which says whom it
# misses.
source "$(dirname "$0")/common.sh"
source "$(dirname "$0")/hosts.sh"
hosts_up 2
tiny_data
tiny_run
wide=(model.dim=128 model.intermediate_size=512 parallel.threads=1 optimizer.steps=6 data.valid=)
two=("${wide[@]}" parallel.dp=2)

threads() { # RUN key=value...
    run 0 "$MUDDPIPE" train run.yaml "${wide[@]}" logging.run="$1" parallel.transport=threads parallel.pp=2 "${@:2}"
}
sums() { # RUN FIELD...: bytes of all steps
    python3 -c '
import json, sys
print(sum(step[field] for step in map(json.loads, open(sys.argv[1] + "/metrics.jsonl")) for field in sys.argv[2:]))' "$@"
}
crosses() { # RUN LIKE RANKS BYTES key=value...: LIKE's weights; of what host 2 receives, so much is planned
    local before after
    before=$(hosts_received 2)
    run 0 ./hosts_mpirun "$3" "$MUDDPIPE" train run.yaml "${wide[@]}" logging.run="$1" "$wire" "${@:5}"
    after=$(hosts_received 2)
    cmp "$1/model/model.safetensors" "$2/model/model.safetensors" || fail "$1: other weights over two hosts"
    # Headers, the start, the exchange of a step, and the last gather, which no step waits for.
    ((after - before >= $4 && after - before < $4 * 5 / 4 + 2000000)) ||
        fail "$1: $((after - before)) bytes came to host 2, and $4 are planned"
}
threads replicas parallel.dp=2
crosses pp-dp replicas 4 "$(($(sums replicas bytes_collective) / 2))" parallel.dp=2
says "replica 0: ranks 0-1 on h1" "replica 1: ranks 2-3 on h2"
crosses dp-pp replicas 4 "$(($(sums replicas bytes_plain bytes_dense) / 2))" parallel.dp=2 parallel.order=dp-pp \
    parallel.link_window=256
says "replica 0: ranks 0 on h1, 2 on h2"
# Ranks of a stage inside the hosts: what they exchange, far more, is not on the cable.
threads tensor parallel.tp=2
crosses stages tensor 4 "$(($(sums tensor bytes_plain bytes_dense) / 2))" parallel.tp=2 parallel.link_window=256
says "replica 0: ranks 0-1 on h1, 2-3 on h2"
(($(sums tensor bytes_tensor) > 6 * $(sums tensor bytes_plain bytes_dense))) || fail "little within the stages"
threads all parallel.tp=2 parallel.dp=2
crosses inside all 8 "$(($(sums all bytes_collective) / 2))" parallel.tp=2 parallel.dp=2
says "replica 1: ranks 4-7 on h2"

./hosts_mpirun 4 "$MUDDPIPE" train run.yaml "${two[@]}" logging.run=dies optimizer.steps=100000 "$wire" \
    >out 2>&1 </dev/null &
job=$!
for ((i = 0; i < 300; i++)); do
    [[ -s dies/metrics.jsonl ]] && break
    sleep 0.1
done
hosts_kill 2
for ((i = 0; i < 300; i++)); do
    kill -0 "$job" 2>/dev/null || break
    sleep 0.1
done
((i < 300)) || fail "still running after a host has died"
! wait "$job" || fail "a job that lost a host ended with success"
# A launcher that ends a job may lose the last lines of a rank, but not all ranks' files.
said() { grep -h "$1" out dies/rank-[01].log | grep -c "rank [23] died.* while rank [01] was in step "; }
(($(said "while rank 0") + $(said "while rank 1") > 0)) || fail "no survivor says whom it misses"
