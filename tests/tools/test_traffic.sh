#!/bin/bash
# The bytes that a run measured are those that the plan promised, exactly; every link is compared by
# the run itself at its end (and by tests/runtime/test_bitwise.c).
source "$(dirname "$0")/common.sh"
tiny_data
tiny_run

measured_bytes() { # FOLDER: plain and dense of every step
    python3 -c '
import json, sys
steps = [json.loads(line) for line in open(sys.argv[1])]
assert len(steps) == 4
print(*{"%d %d" % (step["bytes_plain"], step["bytes_dense"]) for step in steps}, sep=", ")
' "$1/metrics.jsonl"
}

for n in 2 3 4; do
    for k in 1 2; do
        for transport in $wires; do
            [[ $n != 3 || $transport == "${wires%% *}" ]] || continue
            wire=parallel.transport=$transport
            folder=run-$n-$k-$transport
            run 0 "$MUDDPIPE" plan run.yaml parallel.pp="$n" dense.key_dilation="$k"
            planned=$(awk '$1 == "all" && $2 == "links" { print $5, $8 }' out)
            run_ranks 0 "$n" train run.yaml dense.key_dilation="$k" logging.run="$folder"
            measured=$(measured_bytes "$folder")
            [[ -n $planned && $planned != *"0 0"* && $planned == "$measured" ]] ||
                fail "$n ranks, k = $k, $transport: planned '$planned', measured '$measured'"
        done
    done
done

# Of other connectors too; of the streams one is plain.
for keys in model.dense_type=depth_attention "model.dense_type=depth_attention model.depth_attention_block=1" \
    "model.dense_type=hyper model.hyper_streams=3"; do
    read -ra words <<<"$keys"
    folder=run-${words[*]}
    run 0 "$MUDDPIPE" plan run.yaml parallel.pp=3 "${words[@]}"
    planned=$(awk '$1 == "all" && $2 == "links" { print $5, $8 }' out)
    run_ranks 0 3 train run.yaml "${words[@]}" logging.run="$folder"
    measured=$(measured_bytes "$folder")
    [[ -n $planned && $planned != *"0 0"* && $planned == "$measured" ]] ||
        fail "$keys: planned '$planned', measured '$measured'"
done
plain=${planned% *} dense=${planned#* }
((dense == 2 * plain)) || fail "three streams: $plain plain, $dense dense"
