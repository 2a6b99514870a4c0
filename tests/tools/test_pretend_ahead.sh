#!/bin/bash
# Steps on GPUs of threads that begin none before the host has enqueued all of it: over every transport in
# which a step never waits for the host, that goes well only where the host never waits for the step.
# Memory and plain waits in steps end the program in any test on such GPUs.
source "$(dirname "$0")/pretend.sh"
tiny_data
tiny_run
often=(optimizer.steps=6 data.valid_every=3 optimizer.ramp_from=2 optimizer.ramp=0.5
    data.mask_documents=true data.eod=10 logging.sample_tokens=4)
run 0 "$MUDDPIPE" train run.yaml device=cpu logging.run=host "${often[@]}"

ahead() { # NAME N TRANSPORT arguments...
    local name=$1 n=$2 transport=$3
    shift 3
    PRETEND_HOLD=1 run_pretend 0 "$n" "$transport" train run.yaml logging.run="$name" "${often[@]}" "$@"
    cmp "$name/model/model.safetensors" host/model/model.safetensors || fail "$name: other weights"
}

ahead alone 1 ""
for transport in $wires; do
    ahead "$transport-2" 2 "$transport"
    ahead "$transport-3" 3 "$transport" parallel.schedule=gpipe parallel.recompute=full
done
if [[ $wires == *ucx* ]]; then # UCX with CUDA, which takes addresses of the GPU
    MUDDPIPE_UCX_STAGED=0 MUDDPIPE_UCX_STREAMS=1 ahead ucx-direct 2 ucx
    MUDDPIPE_UCX_STAGED=0 MUDDPIPE_UCX_STREAMS=0 ahead ucx-dry 2 ucx # the host waits at each message
fi
