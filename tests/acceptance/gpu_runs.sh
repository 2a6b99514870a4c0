# shellcheck shell=bash disable=SC2154
# gpu_runs.sh - the parts `single` and `pair`. To be sourced by gpu.sh.
read -ra models_single <<<"${GPU_SH_SINGLE:-muddformer-1.4b transformerpp-1.4b}"
read -ra models_pair <<<"${GPU_SH_PAIR:-muddformer-1.4b transformerpp-1.4b muddformer-6.9b}"
read -ra bench_options <<<"${GPU_SH_BENCH:-}"
read -ra curve_options <<<"${GPU_SH_CURVE:-optimizer.steps=20}"
run_limit=150 # seconds

# ---- training ----

# A run from random weights, which leaves RUN.out and the folder RUN. Keeps less of what the backward
# needs where it does not fit. Whether it ended well.
train() { # RUN RANKS MODEL arguments...
    local run=$1 model launcher recompute
    model=$(model_file "$3")
    launch "$2"
    shift 3
    mkdir -p "${run%/*}"
    for recompute in none selective full; do
        rm -rf "$run"
        limited "$run.out" "$run_limit" "${launcher[@]}" "$muddpipe" train "$model" \
            "data.train=$out/tokens.bin" "device=$device" "precision=$precision" \
            "parallel.recompute=$recompute" optimizer.warmup=0.5 logging.card_every=2 \
            logging.export=false "logging.run=$run" "$@" && return
        grep -q 'needs .* GiB' "$run.out" || return 1
    done
    return 1
}

speed_of() { # RUN
    grep '^speed' "$1.out" | tr -s ' '
}

# One that is in the report only if it was made: what came of it is said, and RUN.out put aside if there
# was no time for it.
tell() { # KIND NAME RUN
    if grep -q '^exit code 0 ' "$3.out"; then
        say "$2: $(speed_of "$3")"
    elif ran_out "$3.out"; then
        record "$1" "$2" skipped "$(tail -n 1 "$3.out")"
        mv "$3.out" "$3.log"
    else
        record "$1" "$2" FAILED "$(complaint "$3.out")"
    fi
}

# Ten steps, two of them recorded.
train_model() { # RANKS MODEL MICROBATCHES SECONDS
    local name=${2##*/} run
    name=${name%.json}
    run=$out/runs/$name-$1
    fits runs "$name on $1" "$4" || return
    train "$run" "$1" "$2" "parallel.microbatches=$3" optimizer.steps=10 profile.first_step=7 \
        profile.steps=2
    tell runs "$name on $1" "$run"
}

# The quickstart's model on the CPU and on the GPU, in float32: losses within 1e-4 of each other.
compare_curves() {
    local folder=$out/curve place where=$device words
    fits curve "quickstart, CPU and GPU" 40 || return
    rm -rf "$folder" && mkdir -p "$folder"
    cat README.md docs/*.md ./*/*.[ch] >"$folder/text"
    limited "$folder/encode.out" 30 "$muddpipe" data encode "$folder/text" "$folder/text.bin"
    for place in cpu gpu; do
        [[ $place == gpu ]] || where=cpu
        limited "$folder/$place.out" 120 "$muddpipe" train tools/quickstart.yaml "device=$where" \
            precision=float32 "data.train=$folder/text.bin" data.valid= logging.sample_tokens=0 \
            logging.export=false "logging.run=$folder/$place" "${curve_options[@]}"
        where=$device
        if ran_out "$folder/$place.out"; then
            record curve "quickstart, CPU and GPU" skipped "$(tail -n 1 "$folder/$place.out")"
            return
        elif ! grep -q '^exit code 0 ' "$folder/$place.out"; then
            record curve "quickstart, $place" FAILED "$(complaint "$folder/$place.out")"
            return
        fi
    done
    words=$(python3 tests/acceptance/gpu_report.py --losses "$folder"/{cpu,gpu}/metrics.jsonl)
    record curve "quickstart, CPU and GPU" "${words%%$'\t'*}" "${words#*$'\t'}"
    say "quickstart on CPU and GPU: ${words#*$'\t'}"
}

time_kernels() {
    local test=$build/tests/test_kernels_cuda_speed
    [[ -x $test ]] || return 0
    fits runs "timings of operations" 20 || return 0
    if limited "$out/kernels.log" 240 "$test"; then
        say "operations timed: $out/kernels.log"
    elif ran_out "$out/kernels.log"; then
        record runs "timings of operations" skipped "$(tail -n 1 "$out/kernels.log")"
    elif grep -q '^exit code 77 ' "$out/kernels.log"; then
        record runs "timings of operations" skipped "$(sed -n 's/^skipped: //p' "$out/kernels.log")"
    else
        record runs "timings of operations" FAILED "$(tail -n 1 "$out/kernels.log")"
    fi
}

run_single() {
    local model
    rm -rf "$out/runs"
    time_kernels
    make_tokens
    for model in "${models_single[@]}"; do
        train_model 1 "$model" 8 20
    done
    compare_curves
}

# ---- two GPUs ----

bench_transports() {
    local launcher
    fits runs "bench comm" 40 || return
    launch 2
    limited "$out/bench.log" 150 "${launcher[@]}" "$muddpipe" bench comm "device=$device" \
        --json "$out/bench.jsonl" "${bench_options[@]}"
    cat "$out/bench.log"
    if ran_out "$out/bench.log"; then
        record runs "bench comm" skipped "$(tail -n 1 "$out/bench.log")"
    elif ! grep -q '^exit code 0 ' "$out/bench.log"; then
        record runs "bench comm" FAILED "$(complaint "$out/bench.log")"
    fi
}

# Eight steps of the first model over one transport. A transport may refuse the machine.
train_over() { # NAME TRANSPORT SECONDS
    local run=$out/over/$1-2 words
    fits over "$1" "$3" || return
    if ! train "$run" 2 "${models_pair[0]}" parallel.microbatches=16 optimizer.steps=8 \
        "parallel.transport=$2"; then
        words=$(grep -om1 'error: .*' "$run.out")
        if grep -qE "$refusals" <<<"$words"; then
            record over "$1" refused "${words#error: }"
            mv "$run.out" "$run.log"
            return
        fi
    fi
    tell over "$1" "$run"
}

# One after the other: UCX is slow while other programs start.
train_over_all() {
    local transports transport
    rm -rf "$out/over"
    transports=$("$muddpipe" bench comm --transports)
    for transport in ipc ucx nccl mpi; do
        grep -qx "$transport" <<<"$transports" || continue
        train_over "$transport" "$transport" "$([[ $transport == mpi ]] && echo 35 || echo 20)"
    done
    # Unless that is what it did already.
    if [[ $device == cuda && -e $out/over/ucx-2.out ]] &&
        ! grep -q 'its host: [1-9]' "$out/over/ucx-2.out"; then
        MUDDPIPE_UCX_STAGED=1 train_over ucx-through-host ucx 35
    fi
}

run_pair() {
    local model
    rm -rf "$out/runs"
    bench_transports
    make_tokens
    for model in "${models_pair[@]}"; do
        train_model 2 "$model" 16 "$([[ $model == *6.9b* ]] && echo 70 || echo 30)"
    done
    train_over_all
}
