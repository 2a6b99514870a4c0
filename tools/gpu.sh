#!/bin/bash
# Builds muddpipe on a machine with GPUs and shows what it does there, in parts of a few minutes each:
#
#     tools/gpu.sh check     is it right: operations and transports against their contracts, the golden
#                            cases, the same bits over 1, 2 and 4 stages and every transport
#     tools/gpu.sh single    one GPU: speed of every operation, 1.4B MUDDFormer and Transformer++
#     tools/gpu.sh pair      two GPUs: transports, 1.4B and 6.9B, with traces
#     tools/gpu.sh report DIR...   merges what the parts left into one report on stdout
#
#     --prefix DIR   libraries that tools/prefix.sh fetched; else those that are installed
#     --out DIR      where results go: DIR/check, DIR/single, DIR/pair (default gpu-results)
#     --build DIR    where to build (default build-gpu)
#     --no-build     take what is there already
#
# Needs nvcc, CMake, Python 3, MPI and a driver, no root; on a cluster run it inside salloc. A part that
# finds something wrong ends with 1 and says what.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd) || exit 2
export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-32}
export UCX_WARN_UNUSED_ENV_VARS=n OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
# For trying the script itself out where there is no GPU.
device=${GPU_SH_DEVICE:-cuda}
precision=bf16
[[ $device == cuda ]] || precision=float32
read -ra models_single <<<"${GPU_SH_SINGLE:-muddformer-1.4b transformerpp-1.4b}"
read -ra bench_options <<<"${GPU_SH_BENCH:-}"
read -ra models_pair <<<"${GPU_SH_PAIR:-muddformer-1.4b transformerpp-1.4b muddformer-6.9b}"

say() {
    printf '%s\n' "$*"
}

die() {
    say "gpu: $*" >&2
    exit 2
}

usage() {
    sed -n 's/^# \{0,1\}//; 2,16p' "$root/tools/gpu.sh"
    exit "$1"
}

part=${1:-}
case $part in
check | single | pair) ;;
report)
    shift
    (($# > 0)) || usage 2
    exec python3 "$root/tools/gpu_report.py" "$@"
    ;;
--help | -h) usage 0 ;;
*) usage 2 ;;
esac
shift
prefix='' out=gpu-results build=build-gpu builds=yes
while (($# > 0)); do
    if [[ $1 == --no-build ]]; then
        builds=no
        shift
        continue
    fi
    (($# > 1)) || die "$1 wants a folder behind it"
    case $1 in
    --prefix) prefix=$2 ;;
    --out) out=$2 ;;
    --build) build=$2 ;;
    *) usage 2 ;;
    esac
    shift 2
done
mkdir -p "$out/$part" || exit 2
out=$(realpath "$out/$part")
build=$(realpath -m "$build")
muddpipe=$build/muddpipe
[[ -z $prefix ]] || prefix=$(realpath -m "$prefix")
cd "$root" || exit 2
started=$SECONDS
failed=0

# ---- building ----

use_prefix() {
    [[ -n $prefix ]] || return 0
    [[ -d $prefix/usr ]] || die "$prefix is no folder of tools/prefix.sh"
    export CMAKE_PREFIX_PATH=$prefix/libucx:$prefix/usr
    PKG_CONFIG_PATH=$(dirname "$(find "$prefix/usr" -name yaml-0.1.pc)")
    export PKG_CONFIG_PATH
    # Libraries that libraries of the prefix load.
    LD_LIBRARY_PATH=$prefix/libucx/lib:$(dirname "$PKG_CONFIG_PATH")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    export LD_LIBRARY_PATH
}

quiet() { # LOG command...: its output only if it fails
    local log=$1
    shift
    "$@" >"$log" 2>&1 || {
        tail -40 "$log"
        die "failed: $* (all of it in $log)"
    }
}

build_all() {
    local options=(-DMUDDPIPE_CUDA=ON) targets=(muddpipe)
    if [[ $device == cuda ]]; then
        command -v nvidia-smi >/dev/null || die "no nvidia-smi: is this a machine with GPUs?"
        options+=("-DCMAKE_CUDA_ARCHITECTURES=$(nvidia-smi --query-gpu=compute_cap \
            --format=csv,noheader | head -1 | tr -d .)")
    else
        options=(-DMUDDPIPE_CUDA=OFF)
    fi
    if [[ $builds == no ]]; then
        [[ -x $muddpipe ]] || die "--no-build, but there is no $muddpipe"
        return
    fi
    say "building in $build"
    quiet "$out/configure.log" cmake -S . -B "$build" -DMUDDPIPE_TESTS=AUTO "${options[@]}"
    grep -E 'MuddPipe|transports|GPU:' "$out/configure.log"
    [[ $part == pair ]] || targets=(all)
    quiet "$out/build.log" cmake --build "$build" --parallel "$(nproc)" --target "${targets[@]}"
    say "built after $((SECONDS - started)) s"
}

describe_machine() {
    {
        say "commit: $(git describe --always --dirty 2>/dev/null || echo unknown)"
        say "host: $(uname -n), $(nproc) cores"
        nvidia-smi --query-gpu=index,name,memory.total,driver_version --format=csv,noheader |
            sed 's/^/GPU: /'
        say "compiler: $(nvcc --version | grep release)"
        "$muddpipe" --version | sed 's/^/build: /'
        say "transports: $("$muddpipe" bench comm --transports | tr '\n' ' ')"
        say "MPI: $(mpirun --version | head -1)"
    } >"$out/machine.txt" 2>/dev/null
}

gpus() {
    [[ $device == cuda ]] && nvidia-smi --list-gpus | wc -l || echo 2
}

# ---- check ----

# What `muddpipe check` printed: the error that comes nearest to its limit, or the last step's.
worst() { # FILE
    awk '/\(limit / { limit = $NF; sub(/\)/, "", limit)
                      if ($2 / limit > most) { most = $2 / limit; line = $0 } }
         /off by/ { last = $0 }
         END { print line != "" ? line : last }' "$1" | tr -s ' ' | tr -d '"'
}

record() { # KIND NAME OUTCOME WORDS: a row of the report; a failure ends the part with 1
    printf '%s\t%s\t%s\t%s\n' "$@" >>"$out/checks.tsv"
    if [[ $3 == FAILED ]]; then
        say "FAILED  $1: $2: $4"
        failed=1
    fi
}

golden() { # NAME arguments...: one case, in a file of its own, for several at once
    local name=$1 log
    shift
    log=$out/golden/${name//[ \/]/_}
    if timeout 120 "$muddpipe" check "$@" "device=$device" >"$log" 2>&1; then
        printf 'golden\t%s\tok\t%s\n' "$name" "$(worst "$log")" >"$log.tsv"
    else
        printf 'golden\t%s\tFAILED\t%s\n' "$name" "$(tail -1 "$log")" >"$log.tsv"
    fi
}

check_golden() {
    local case precision jobs=0
    rm -rf "$out/golden" && mkdir -p "$out/golden"
    for case in tests/golden/*-tiny*; do
        for precision in float32 bf16; do
            [[ $device == cuda || $precision == float32 ]] || continue
            golden "$(basename "$case") $precision" "$case" "precision=$precision" &
            golden "$(basename "$case") $precision ten steps" "$case" --steps 10 \
                "precision=$precision" &
            jobs=$((jobs + 2))
            ((jobs % 4 == 0)) && wait
        done
    done
    wait
    while IFS=$'\t' read -r kind name outcome words; do
        record "$kind" "$name" "$outcome" "$words"
    done < <(cat "$out"/golden/*.tsv)
    say "golden cases: $(grep -c '^golden.*	ok	' "$out/checks.tsv") of $(grep -c '^golden' "$out/checks.tsv")"
}

same_bits() { # CASE RANKS TRANSPORT SCHEDULE: against one stage
    local name log=$out/bits.log
    name="$(basename "$1"), $2 stages, $4, $3"
    rm -f "$out/many"
    if timeout 90 mpirun -n "$2" --oversubscribe --bind-to none "$muddpipe" check "$1" --save \
        "$out/many" "device=$device" "parallel.transport=$3" "parallel.schedule=$4" >"$log" 2>&1; then
        if cmp -s "$out/one" "$out/many"; then
            record bits "$name" ok "$(worst "$log")"
        else
            record bits "$name" FAILED "other bits than one stage"
        fi
    elif grep -qE 'refuses|not in this build|transport [a-z]+ is for|carries memory' "$log"; then
        record bits "$name" refused "$(grep -m1 -oE 'error: .*' "$log" | cut -c8-160)"
    else
        record bits "$name" FAILED "$(grep -m1 error: "$log" | cut -c1-200)"
    fi
}

check_bits() {
    local case transport transports
    transports=$("$muddpipe" bench comm --transports)
    for case in tests/golden/muddformer-{tiny,k2-tiny,blocks-tiny,ppn-tiny}; do
        "$muddpipe" check "$case" --save "$out/one" "device=$device" >"$out/bits.log" 2>&1 ||
            record bits "$(basename "$case"), one stage" FAILED "$(tail -1 "$out/bits.log")"
        for transport in $transports; do
            same_bits "$case" 2 "$transport" 1f1b
            [[ $case == *muddformer-tiny || $case == *blocks* ]] || continue
            same_bits "$case" 4 "$transport" gpipe
        done
    done
    rm -f "$out/one" "$out/many"
    say "same bits: $(grep -c '^bits.*	ok	' "$out/checks.tsv") of $(grep -c '^bits' "$out/checks.tsv"), $(grep -c '^bits.*	refused	' "$out/checks.tsv") refused by a transport"
}

check_tests() { # the tests that need a GPU: operations against the CPU's, transports
    local label=gpu
    if [[ ! -f $build/CTestTestfile.cmake ]]; then
        record tests "ctest -L gpu" skipped "no cmocka (tools/prefix.sh brings it)"
        return
    fi
    [[ $device == cuda ]] || label=lint
    (cd "$build" && ctest -L "$label" -E speed --timeout 120) >"$out/ctest.log" 2>&1
    while read -r name outcome; do
        case $outcome in
        Passed) record tests "$name" ok "" ;;
        *Skipped) record tests "$name" skipped "it says why in ctest.log" ;;
        *) record tests "$name" FAILED "see ctest.log" ;;
        esac
    done < <(sed -nE 's/^ *[0-9]+\/[0-9]+ Test +#[0-9]+: ([^ ]+) [ .]*(\**)? *([A-Za-z]+).*/\1 \2\3/p' \
        "$out/ctest.log")
    say "tests: $(grep -c '^tests.*	ok	' "$out/checks.tsv") of $(grep -c '^tests' "$out/checks.tsv")"
}

run_check() {
    : >"$out/checks.tsv"
    check_tests
    check_golden
    check_bits
}

# ---- single and pair ----

# Token ids as a vocabulary has them: few are frequent. 2 million, llm.c's format.
make_tokens() {
    [[ -s $out/tokens.bin ]] || python3 - "$out/tokens.bin" <<'END'
import array, random, struct, sys
random.seed(1)
count = 2_000_000
ids = array.array("H", (int(50432 ** random.random()) - 1 for _ in range(count)))
with open(sys.argv[1], "wb") as out:
    out.write(struct.pack("<256i", 20240520, 1, count, *[0] * 253))
    ids.tofile(out)
END
}

# Ten steps, two of them recorded; keeps less of what the backward needs where it does not fit.
train() { # RANKS MODEL LIMIT arguments...
    local n=$1 model=$2 limit=$3 run recompute launch=()
    shift 3
    run=$out/runs/$model-$n
    ((n == 1)) || launch=(mpirun -n "$n" --oversubscribe --bind-to none)
    for recompute in none selective full; do
        rm -rf "$run" && mkdir -p "$out/runs"
        if timeout "$limit" "${launch[@]}" "$muddpipe" train "model/configs/$model.json" \
            "data.train=$out/tokens.bin" "device=$device" "parallel.recompute=$recompute" \
            optimizer.steps=10 optimizer.warmup=0.5 profile.first_step=7 profile.steps=2 \
            logging.card_every=2 logging.export=false "logging.run=$run" "$@" >"$run.out" 2>&1; then
            say "$model on $n: $(grep '^speed' "$run.out" | tr -s ' ')"
            return
        fi
        grep -q 'needs .* GiB' "$run.out" || break
    done
    say "FAILED  $model on $n ranks: $(grep -m1 error: "$run.out" || tail -1 "$run.out")"
    failed=1
}

run_single() {
    local model test=$build/tests/test_kernels_cuda_speed
    if [[ -x $test ]]; then
        timeout 240 "$test" >"$out/kernels.log" 2>&1
        case $? in
        0) say "operations timed: $out/kernels.log" ;;
        77) tail -1 "$out/kernels.log" ;;
        *) say "FAILED  timings of operations: $(tail -1 "$out/kernels.log")" && failed=1 ;;
        esac
    fi
    make_tokens
    for model in "${models_single[@]}"; do
        train 1 "$model" 150 "precision=$precision" parallel.microbatches=8
    done
}

run_pair() {
    local model
    (($(gpus) >= 2)) || die "pair wants two GPUs, and there is one"
    mpirun -n 2 --oversubscribe --bind-to none timeout 150 "$muddpipe" bench comm "device=$device" \
        --json "$out/bench.jsonl" "${bench_options[@]}" 2>&1 | tee "$out/bench.log"
    ((PIPESTATUS[0] == 0)) || failed=1
    make_tokens
    for model in "${models_pair[@]}"; do
        train 2 "$model" 150 "precision=$precision" parallel.microbatches=16
    done
}

# ---- all ----

use_prefix
build_all
describe_machine
"run_$part"
rm -f "$out/tokens.bin"
python3 tools/gpu_report.py "$out" >"$out/report.md" || failed=1
outcome="done"
((failed == 0)) || outcome=FAILED
say "$part: $outcome after $((SECONDS - started)) s; $out/report.md"
exit "$failed"
