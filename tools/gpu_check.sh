#!/bin/bash
# Builds muddpipe on a machine with a GPU and compares it with the golden cases there:
# tools/gpu_check.sh [FOLDER], default build-gpu. Needs a prefix (tools/prefix.sh) in $PREFIX, or the
# libraries installed. One stage on one GPU; with a UCX built for CUDA also two and four stages on it.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build-gpu}

if [[ -n ${PREFIX:-} ]]; then
    PREFIX=$(cd "$PREFIX" && pwd)
    export CMAKE_PREFIX_PATH=$PREFIX/libucx:$PREFIX/usr
    PKG_CONFIG_PATH=$(dirname "$(find "$PREFIX/usr" -name yaml-0.1.pc)")
    export PKG_CONFIG_PATH
    # Libraries that libraries of the prefix load.
    export LD_LIBRARY_PATH=$PREFIX/libucx/lib:$(dirname "$PKG_CONFIG_PATH")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
fi
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)
cmake -S . -B "$build" -DMUDDPIPE_TESTS=OFF -DMUDDPIPE_CUDA=ON \
    -DCMAKE_CUDA_ARCHITECTURES="$capability" >"$build.log" 2>&1 || { cat "$build.log"; exit 1; }
tail -8 "$build.log"
cmake --build "$build" --target muddpipe --parallel "$(nproc)" >"$build.log" 2>&1 ||
    { tail -50 "$build.log"; exit 1; }

export CUDA_DEVICE_MAX_CONNECTIONS=32 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
failed=0
try() { # WORDS: runs them, tells the worst errors and the outcome
    if "$@" >"$build.out" 2>&1; then
        printf '%s\n' "ok      ${*: -3}: $(sort -k2 -g -r "$build.out" | grep limit | head -1)"
    else
        printf '%s\n' "FAILED  $*"
        tail -5 "$build.out"
        failed=1
    fi
}
for case in tests/golden/*-tiny*; do
    try "$build/muddpipe" check "$case" device=cuda
    try "$build/muddpipe" check "$case" --steps 10 device=cuda
done
# Several stages on the GPUs there are, over a UCX built for CUDA: the same bits as one stage.
export UCX_MEMTYPE_CACHE=n
for case in tests/golden/muddformer-{tiny,k2-tiny,blocks-tiny,ppn-tiny}; do
    "$build/muddpipe" check "$case" device=cuda --save "$build.one" >/dev/null || failed=1
    for ranks in 2 4; do
        for schedule in 1f1b gpipe; do
            try mpirun -n "$ranks" --oversubscribe --bind-to none "$build/muddpipe" check "$case" \
                --save "$build.many" device=cuda parallel.transport=ucx parallel.schedule="$schedule"
            cmp "$build.one" "$build.many" || failed=1
        done
    done
done
exit "$failed"
