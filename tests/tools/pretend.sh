# pretend.sh - what the tests on GPUs of threads share. To be sourced; $PRETEND is muddpipe on such
# GPUs, $MUDDPIPE the same on the host.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
wires="ipc $wires"
if [[ -n ${PRETEND_NCCL:-} ]]; then # the folder of a libnccl.so.2 for such GPUs
    export LD_LIBRARY_PATH=$PRETEND_NCCL${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    wires="$wires nccl"
fi

run_pretend() { # CODE N TRANSPORT arguments...: what it prints goes to the file out
    local code=$1 n=$2 transport=$3
    shift 3
    if ((n == 1)); then
        run "$code" "$PRETEND" "$@" device=cuda
    else
        run "$code" mpirun -n "$n" "$PRETEND" "$@" device=cuda parallel.transport="$transport"
    fi
}
