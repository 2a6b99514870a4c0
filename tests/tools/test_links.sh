#!/bin/bash
# Four hosts whose links are slow: whatever the order of messages, the window and the microbatches in flight, also while
# a cable is out for some seconds, the bits are those of one process. And what a wait on a slow link is booked as.
source "$(dirname "$0")/common.sh"
source "$(dirname "$0")/hosts.sh"
hosts_up 4
tiny_data
tiny_run
wide=(model.dim=128 model.intermediate_size=512 model.n_layer=6 parallel.threads=1 parallel.microbatches=6
    optimizer.steps=3 data.valid=)
run 0 "$MUDDPIPE" train run.yaml "${wide[@]}" logging.run=threads parallel.transport=threads parallel.pp=4

ranks=4
same() { # RUN key=value...: the same weights over four hosts
    run 0 ./hosts_mpirun "$ranks" "$MUDDPIPE" train run.yaml "${wide[@]}" logging.run="$1" "${@:2}"
    cmp "$1/model/model.safetensors" threads/model/model.safetensors || fail "$*: other weights over four hosts"
}
share() { # RUN FIELD: its median over the steps
    python3 -c '
import json, statistics, sys
print(statistics.median(step[sys.argv[2]] for step in map(json.loads, open(sys.argv[1] + "/metrics.jsonl"))))' "$@"
}

hosts_rate 200mbit
same measured "$wire"
says "links between hosts: "
same measured_mpi parallel.transport=mpi parallel.in_flight=1
says "links between hosts: "
same shared "$wire" parallel.link_order=shared parallel.in_flight=2
! grep -q "links between hosts: " out || fail "links are measured and nothing is kept in order"
same first "$wire" parallel.link_order=first parallel.link_window=64 parallel.schedule=zb-h1 parallel.in_flight=1
same one_part "$wire" parallel.link_window=1 parallel.prefetch=0
same one_part_mpi parallel.transport=mpi parallel.link_window=1 parallel.in_flight=2 parallel.schedule=zb-h1
same unlimited "$wire" parallel.link_window=4194304 parallel.links=all parallel.schedule=interleaved

# Two ranks a host, which share its link.
ranks=8
same together "$wire" parallel.link_window=64
ranks=4

# A cable is out for some seconds.
./hosts_mpirun 4 "$MUDDPIPE" train run.yaml "${wide[@]}" logging.run=cut optimizer.steps=12 "$wire" >out 2>&1 </dev/null &
job=$!
for ((i = 0; i < 300; i++)); do
    [[ -s cut/metrics.jsonl ]] && break
    sleep 0.1
done
hosts_cut 2
sleep 3
hosts_mend 2
wait "$job" || fail "a job whose cable was out for 3 s has failed"
run 0 "$MUDDPIPE" train run.yaml "${wide[@]}" logging.run=uncut optimizer.steps=12 parallel.transport=threads parallel.pp=4
cmp cut/model/model.safetensors uncut/model/model.safetensors || fail "other weights after a cable was out"

# Where nothing is kept in order, plain messages stand behind dense bytes: what that takes is booked as dense.
hosts_rate 50mbit
same dense "$wire" parallel.link_order=shared
run 0 ./hosts_mpirun 4 "$MUDDPIPE" train run.yaml "${wide[@]}" logging.run=plain "$wire" model.dense=false \
    parallel.link_order=shared
python3 - "$(share dense exposed_plain)" "$(share dense exposed_dense)" "$(share plain exposed_plain)" <<'PYTHON'
import sys
dense_plain, dense_dense, plain = map(float, sys.argv[1:])
print(f"with dense connections plain {dense_plain:.3f} and dense {dense_dense:.3f}, without plain {plain:.3f}")
if dense_plain > plain + 0.1 or dense_dense < dense_plain:
    sys.exit("waits for dense bytes are booked as plain")
PYTHON
