# on_gpu.sh - what the tests on real GPUs share. To be sourced after common.sh.
#
# They want the program on a GPU or two (ranks share what there is) and skip where it finds none.
# tests/tools/CMakeLists.txt runs them on GPUs of threads too.

probe() { # arguments...: the program on one GPU, what it prints goes to the file out; or this test ends
    local got=0
    timeout -k 5 60 "$MUDDPIPE" "$@" device=cuda >out 2>&1 </dev/null || got=$?
    if ((got != 0)) && grep -q 'error: device=cuda: ' out; then
        echo "skipped: $(grep -o 'device=cuda: .*' out)"
        exit 77
    fi
    ((got == 0)) || fail "exit code $got: $*"
}

run_gpu() { # CODE N arguments...: as run_ranks
    local code=$1 n=$2
    shift 2
    if ((n == 1)); then
        run "$code" "$MUDDPIPE" "$@" device=cuda
    else
        run "$code" mpirun -n "$n" "$MUDDPIPE" "$@" device=cuda parallel.transport=ipc
    fi
}
