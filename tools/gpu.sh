#!/bin/bash
# Builds muddpipe on a machine with GPUs and shows what it does there, in parts of a few minutes each:
#
#     tools/gpu.sh check     is it right: operations and transports against their contracts, the golden
#                            cases, the same bits over 1, 2 and 4 stages, every transport and schedule
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
cases=("$root"/tests/golden/*-tiny*)
[[ -z ${GPU_SH_CASES:-} ]] || read -ra cases <<<"$GPU_SH_CASES"
job_limit=${GPU_SH_LIMIT:-90} # seconds
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
    case $1 in
    --prefix | --out | --build) (($# > 1)) || die "$1 wants a folder behind it" ;;
    --help | -h) usage 0 ;;
    *) die "$1 is no option of it (tools/gpu.sh --help)" ;;
    esac
    case $1 in
    --prefix) prefix=$2 ;;
    --out) out=$2 ;;
    --build) build=$2 ;;
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
        nvidia-smi ${CUDA_VISIBLE_DEVICES:+-i "$CUDA_VISIBLE_DEVICES"} \
            --query-gpu=index,name,memory.total,driver_version --format=csv,noheader |
            sed 's/^/GPU: /'
        say "compiler: $(nvcc --version | grep release)"
        "$muddpipe" --version | sed 's/^/build: /'
        say "transports: $("$muddpipe" bench comm --transports | tr '\n' ' ')"
        say "MPI: $(mpirun --version | head -1)"
    } >"$out/machine.txt" 2>/dev/null
}

gpus() { # that are ours
    if [[ $device != cuda ]]; then
        echo 2
    elif [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
        tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | wc -l
    else
        nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU'
    fi
}

# ---- check ----

record() { # KIND NAME OUTCOME WORDS: a row of the report; a failure ends the part with 1
    printf '%s\t%s\t%s\t%s\n' "$@" >>"$out/checks.tsv"
    if [[ $3 == FAILED ]]; then
        say "FAILED  $1: $2: $4"
        failed=1
    fi
}

count() { # KIND [OUTCOME]
    grep -c "^$1	.*	${2:-[a-zA-Z]*}	" "$out/checks.tsv"
}

# The tests that need a GPU: operations against the CPU's, transports. By the weights that they have in
# cores (PROCESSORS) two or three run at a time.
check_tests() {
    local label=gpu
    if [[ ! -f $build/CTestTestfile.cmake ]]; then
        record tests "ctest -L gpu" skipped "no cmocka (tools/prefix.sh brings it)"
        return
    fi
    [[ $device == cuda ]] || label=lint
    (cd "$build" && ctest -L "$label" -E speed --timeout 120 --parallel 6 \
        --output-junit "$out/ctest.xml") >"$out/ctest.log" 2>&1
    while IFS=$'\t' read -r name outcome words; do
        record tests "$name" "$outcome" "$words"
    done < <(python3 tools/gpu_report.py --tests "$out/ctest.xml")
    (($(count tests) > 0)) || record tests "ctest -L $label" FAILED "$(tail -1 "$out/ctest.log")"
    say "tests: $(count tests ok) of $(count tests), $(count tests skipped) skipped; after $((SECONDS - started)) s"
}

# One `muddpipe check` of all cases; what it says goes to jobs/NAME.log, its end too.
check_job() { # NAME RANKS arguments...
    local log=$out/jobs/$1.log n=$2 launch=() from=$SECONDS
    shift 2
    ((n == 1)) || launch=(mpirun -n "$n" --oversubscribe --bind-to none)
    timeout -k 10 "$job_limit" "${launch[@]}" "$muddpipe" check "${cases[@]}" "$@" \
        "device=$device" >"$log" 2>&1 </dev/null
    case $? in
    124 | 137) echo "ended at its limit of $job_limit s" ;;
    *) echo "exit code $? after $((SECONDS - from)) s" ;;
    esac >>"$log"
}

# Two at a time: most of a job is the start of CUDA, MPI and the transport.
begin_job() { # as check_job
    while (($(jobs -rp | wc -l) >= 2)); do
        wait -n
    done
    check_job "$@" &
}

# What was said of a case that did not pass: the message before the line that names it, or, if there is
# none, the last one and how the job ended.
why() { # LOG CASE
    awk -v name="$2" '
        /error: / && !named {
            sub(/.*error: /, "")
            named = index($0, name " failed (") == 1 || index($0, name " is refused (") == 1
            if (!named && $0 !~ /, so rank [0-9]+ ends too/) said = $0
        }
        { last = $0 }
        END { print named ? said : (said != "" ? said "; " : "") last }' "$1" | cut -c1-240
}

failed_job() { # LOG: its last errors, for whoever watches
    grep -E 'error: |^exit code|^ended at' "$1" | tail -6 | sed 's/^/    /'
    say "    all of it in $1"
}

# One GPU: each case against its limits.
judge_golden() { # COLUMN
    local log=$out/jobs/one_${1// /_}.log case line before=$failed
    failed=0
    for case in "${cases[@]}"; do
        line=$(grep -F "passed: $case, " "$log")
        if [[ -n $line ]]; then
            record golden "${case##*/} $1" ok "${line#*; worst: }"
        else
            record golden "${case##*/} $1" FAILED "$(why "$log" "$case")"
        fi
    done
    ((failed == 0)) || failed_job "$log"
    ((before == 0)) || failed=1
}

# The steps of cases that passed, each with its case.
steps_of() { # LOG
    awk '/^step / { steps[++n] = $0 }
         /^passed: / { for (i = 1; i <= n; i++) print $2, steps[i]; n = 0 }' "$1"
}

# Several stages: all that pass have the bits, or the losses and norms, of one. A transport may refuse
# the machine and a model the number of stages.
judge_layout() { # TRANSPORT COLUMN
    local log=$out/jobs/$1_${2// /_}.log case words='' outcome=ok reason passed
    local known='refuses|cut into at most|not in this build|is for ranks of|memory of GPUs'
    passed=$(grep -oE '^[0-9]+ of [0-9]+ passed' "$log")
    for case in "${cases[@]}"; do
        ! grep -qF "passed: $case, " "$log" || continue
        reason=$(why "$log" "$case")
        if ! grep -qF "error: $case is refused (" "$log" || ! grep -qE "$known" <<<"$reason"; then
            outcome=FAILED
            words=$reason
            break
        fi
        [[ -n $words ]] || words=$reason
    done
    if [[ $outcome == ok && -z $passed ]]; then
        outcome=FAILED
        words=$(tail -1 "$log")
    elif [[ $outcome == ok && $2 == *steps ]] &&
        grep -qvxFf <(steps_of "$out/jobs/one_float32_ten_steps.log") <(steps_of "$log"); then
        outcome=FAILED
        words="other losses or norms than on one stage"
    elif [[ $outcome == ok && -n $words ]]; then
        outcome=refused # for some cases at least
    fi
    record bits "$1 $2" "$outcome" "${passed:+${passed% passed}; }${words:-same bits}"
    [[ $outcome != FAILED ]] || failed_job "$log"
}

check_cases() {
    local ranks transport transports schedule column precision precisions=(float32 bf16)
    [[ $device == cuda ]] || precisions=(float32)
    transports=$("$muddpipe" bench comm --transports)
    rm -rf "$out/jobs" && mkdir -p "$out/jobs"
    begin_job one_float32 1 --save "$out/jobs/bits"
    begin_job one_float32_ten_steps 1 --steps 10
    if [[ $device == cuda ]]; then
        begin_job one_bf16 1 precision=bf16
        begin_job one_bf16_ten_steps 1 precision=bf16 --steps 10
    fi
    wait
    for precision in "${precisions[@]}"; do
        judge_golden "$precision"
        judge_golden "$precision ten steps"
    done
    say "golden cases: $(count golden ok) of $(count golden); after $((SECONDS - started)) s"
    for ranks in 2 4; do
        for transport in $transports; do
            for schedule in 1f1b gpipe; do
                begin_job "${transport}_${ranks}_stages,_$schedule" "$ranks" --same "$out/jobs/bits" \
                    "parallel.transport=$transport" "parallel.schedule=$schedule"
            done
            begin_job "${transport}_${ranks}_stages,_ten_steps" "$ranks" --steps 10 \
                "parallel.transport=$transport"
        done
    done
    wait
    for transport in $transports; do
        for ranks in 2 4; do
            for column in 1f1b gpipe "ten steps"; do
                judge_layout "$transport" "$ranks stages, $column"
            done
        done
    done
    rm -rf "$out/jobs/bits"
    say "same bits: $(count bits ok) of $(count bits) layouts, $(count bits refused) refused; after $((SECONDS - started)) s"
}

run_check() {
    : >"$out/checks.tsv"
    check_tests
    check_cases
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
[[ $part != pair ]] || (($(gpus) >= 2)) || die "pair wants two GPUs; here are $(gpus)"
build_all
describe_machine
"run_$part"
rm -f "$out/tokens.bin"
python3 tools/gpu_report.py "$out" >"$out/report.md" || failed=1
outcome="done"
((failed == 0)) || outcome=FAILED
say "$part: $outcome after $((SECONDS - started)) s; $out/report.md"
exit "$failed"
