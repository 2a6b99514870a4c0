# shellcheck shell=bash disable=SC2154
# gpu_check.sh - the part `check`. To be sourced by gpu.sh.
#
# First the tests, then the golden cases in every layout, and beside the cases what needs little of the
# machine: compute-sanitizer, and runs that must repeat to the bit.
cases=("$root"/tests/golden/*-tiny*)
[[ -z ${GPU_SH_CASES:-} ]] || read -ra cases <<<"$GPU_SH_CASES"
job_limit=${GPU_SH_LIMIT:-90} # seconds
twice_model=${GPU_SH_TWICE:-muddformer-405m}
read -ra twice_options <<<"${GPU_SH_TWICE_OPTIONS:-data.seq_len=2048}"
sanitizer=${GPU_SH_SANITIZER:-}

# ---- tests ----

# The tests that need a GPU: operations against the CPU's, transports. By the weights that they have in
# cores (PROCESSORS) two or three run at a time. They may take two thirds of what is left.
check_tests() {
    local label=gpu select name outcome words
    if [[ ! -f $build/CTestTestfile.cmake ]]; then
        record tests "ctest -L gpu" skipped "no cmocka (tools/prefix.sh brings it)"
        return
    fi
    [[ $device == cuda ]] || label=lint
    fits tests "ctest -L $label" 30 || return
    select=(-L "$label" -E speed)
    (cd "$build" && ctest -N "${select[@]}") >"$out/ctest-all.log" 2>&1
    (cd "$build" && ctest "${select[@]}" --timeout 120 --parallel 6 --output-junit "$out/ctest.xml" \
        --stop-time "$(date -d "+$(($(left) * 2 / 3)) seconds" +%H:%M:%S)") >"$out/ctest.log" 2>&1
    while IFS=$'\t' read -r name outcome words; do
        record tests "$name" "$outcome" "$words"
    done < <(python3 tests/acceptance/gpu_report.py --tests "$out")
    (($(count tests) > 0)) || record tests "ctest -L $label" FAILED "$(tail -n 1 "$out/ctest.log")"
    say "tests: $(count tests ok) of $(count tests), $(count tests skipped) skipped; after $SECONDS s"
}

# ---- golden cases ----

# One `muddpipe check` of all cases.
check_job() { # NAME RANKS arguments...
    local log=$out/jobs/$1.log launcher
    launch "$2"
    shift 2
    limited "$log" "$job_limit" "${launcher[@]}" "$muddpipe" check "${cases[@]}" "$@" "device=$device"
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

# Whether it was not tried: a transport may refuse the machine, and a model the number of stages.
refused() { # LOG CASE
    grep -qF "error: $2 is refused (" "$1" && grep -qE "$refusals|cut into at most" <<<"$(why "$1" "$2")"
}

# Each case against its limits.
judge_golden() { # KIND JOB COLUMN
    local log=$out/jobs/$2.log case line before=$failed
    failed=0
    for case in "${cases[@]}"; do
        line=$(grep -F "passed: $case, " "$log")
        if [[ -n $line ]]; then
            record "$1" "${case##*/} $3" ok "${line#*; worst: }"
        elif ran_out "$log"; then
            record "$1" "${case##*/} $3" skipped "$no_time"
        elif [[ $1 == stages ]] && refused "$log" "$case"; then
            record "$1" "${case##*/} $3" refused "$(why "$log" "$case")"
        else
            record "$1" "${case##*/} $3" FAILED "$(why "$log" "$case")"
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

# Several stages: all that pass have the bits, or the losses and norms, of one.
judge_layout() { # TRANSPORT COLUMN
    local log=$out/jobs/$1_${2// /_}.log case words='' outcome=ok reason passed
    if ran_out "$log" && ! grep -q ' failed (' "$log"; then
        record bits "$1 $2" skipped "$no_time"
        return
    fi
    passed=$(grep -oE '^[0-9]+ of [0-9]+ passed' "$log")
    for case in "${cases[@]}"; do
        ! grep -qF "passed: $case, " "$log" || continue
        reason=$(why "$log" "$case")
        if ! refused "$log" "$case"; then
            outcome=FAILED
            words=$reason
            break
        fi
        [[ -n $words ]] || words=$reason
    done
    if [[ $outcome == ok && -z $passed ]]; then
        outcome=FAILED
        words=$(tail -n 1 "$log")
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

check_one() {
    local precision precisions=(float32 bf16)
    [[ $device == cuda ]] || precisions=(float32)
    begin check_job one_float32 1 --save "$out/jobs/bits"
    begin check_job one_float32_ten_steps 1 --steps 10
    if [[ $device == cuda ]]; then
        begin check_job one_bf16 1 precision=bf16
        begin check_job one_bf16_ten_steps 1 precision=bf16 --steps 10
    fi
    end_all
    for precision in "${precisions[@]}"; do
        judge_golden golden "one_$precision" "$precision"
        judge_golden golden "one_${precision}_ten_steps" "$precision ten steps"
    done
    say "golden cases: $(count golden ok) of $(count golden); after $SECONDS s"
}

# bf16 over ipc, against the limits of one GPU. The host has none.
begin_stages() {
    local ranks
    for ranks in 2 4; do
        [[ $device == cuda ]] || continue
        begin check_job "bf16_${ranks}_stages" "$ranks" precision=bf16 parallel.transport=ipc
        begin check_job "bf16_${ranks}_stages_ten_steps" "$ranks" precision=bf16 --steps 10 \
            parallel.transport=ipc
    done
}

judge_stages() {
    local ranks
    [[ $device == cuda ]] || return 0
    for ranks in 2 4; do
        judge_golden stages "bf16_${ranks}_stages" "$ranks stages"
        judge_golden stages "bf16_${ranks}_stages_ten_steps" "$ranks stages, ten steps"
    done
    say "golden cases in bf16 over ipc: $(count stages ok) of $(count stages); after $SECONDS s"
}

check_layouts() {
    local ranks transport transports schedule column
    transports=$("$muddpipe" bench comm --transports)
    begin_stages
    for ranks in 2 4; do
        for transport in $transports; do
            for schedule in 1f1b gpipe; do
                begin check_job "${transport}_${ranks}_stages,_$schedule" "$ranks" \
                    --same "$out/jobs/bits" "parallel.transport=$transport" \
                    "parallel.schedule=$schedule"
            done
            begin check_job "${transport}_${ranks}_stages,_ten_steps" "$ranks" --steps 10 \
                "parallel.transport=$transport"
        done
    done
    end_all
    judge_stages
    for transport in $transports; do
        for ranks in 2 4; do
            for column in 1f1b gpipe "ten steps"; do
                judge_layout "$transport" "$ranks stages, $column"
            done
        done
    done
    say "same bits: $(count bits ok) of $(count bits) layouts, $(count bits refused) refused; after $SECONDS s"
}

# ---- runs that repeat themselves ----

# Two runs of one layout, the second with the algorithms that the first one measured.
run_twice() { # RANKS
    local turn launcher
    launch "$1"
    for turn in first second; do
        limited "$out/twice/$turn-$1.log" 90 "${launcher[@]}" "$muddpipe" train \
            "$(model_file "$twice_model")" "data.train=$out/tokens.bin" "device=$device" \
            "precision=$precision" deterministic=true "kernels.algorithms=$out/twice/table-$1.txt" \
            parallel.microbatches=4 optimizer.steps=4 optimizer.warmup=0.5 \
            logging.export=true "logging.run=$out/twice/$turn-$1" "${twice_options[@]}"
    done
}

judge_twice() { # RANKS
    local first=$out/twice/first-$1 second=$out/twice/second-$1 turn outcome=FAILED words size steps measured
    local name="${twice_model##*/} $precision, stages: $1"
    for turn in "$first" "$second"; do
        if ran_out "$turn.log"; then
            record twice "$name" skipped "$no_time"
            return
        elif ! grep -q '^exit code 0 ' "$turn.log"; then
            record twice "$name" FAILED "$(complaint "$turn.log")"
            return
        fi
    done
    size=$(stat -c %s "$first/model/model.safetensors")
    steps=$(wc -l <"$first/metrics.jsonl")
    measured=$(grep -c product= "$first/algorithms.txt" 2>/dev/null) || measured=0
    if ! cmp -s <(cut -d, -f1-3 "$first/metrics.jsonl") <(cut -d, -f1-3 "$second/metrics.jsonl"); then
        words="losses or norms differ"
    elif ! cmp -s "$first/model/model.safetensors" "$second/model/model.safetensors"; then
        words="losses and norms of $steps steps are the same, the weights after them differ"
    elif [[ $device == cuda ]] && ((measured == 0)); then
        words="no algorithm was measured: $first/algorithms.txt"
    else
        outcome=ok
        words="losses and norms of $steps steps, $((size >> 10)) KiB of weights; $measured algorithms measured"
    fi
    record twice "$name" "$outcome" "$words"
}

# ---- compute-sanitizer ----

sanitize() { # NAME TOOL command...
    local log=$out/sanitizer/$1.log
    "$sanitizer" --version >/dev/null 2>&1 || return
    limited "$log" 60 env "${last_gpu[@]}" "$sanitizer" --tool "$2" --error-exitcode 99 "${@:3}"
}

# Two ranks that write into each other's memory, where the tool goes along with that. MPI and transports
# ask CUDA about pointers of the host, which is no error of theirs: accesses alone count.
sanitize_ranks() {
    local case launcher
    "$sanitizer" --version >/dev/null 2>&1 || return
    launch 2
    for case in "${cases[@]}"; do
        [[ $case == */muddformer-tiny ]] || continue
        limited "$out/sanitizer/ranks/memcheck ${case##*/} $precision, 2 ranks over ipc.log" 60 \
            "${launcher[@]}" "$sanitizer" --tool memcheck --error-exitcode 99 --report-api-errors no \
            "$muddpipe" check "$case" "precision=$precision" "device=$device" parallel.transport=ipc
    done
}

# memcheck on every operation and on whole steps, racecheck on the aggregate; little enough to run on one
# GPU beside everything else.
sanitize_all() {
    local test=$build/tests/test_kernels_cuda steps=$precision case precision operation
    for case in "${cases[@]}"; do
        [[ $case =~ /(muddformer(-ppn)?|depth-attention-blocks|hyper-mhc)-tiny$ ]] || continue
        for precision in float32 bf16; do
            [[ $device == cuda || $precision == float32 ]] || continue
            sanitize "memcheck ${case##*/} $precision" memcheck "$muddpipe" check "$case" \
                "precision=$precision" "device=$device"
        done
        [[ $case != */muddformer-tiny ]] ||
            sanitize "memcheck ${case##*/} $steps three steps" memcheck "$muddpipe" check "$case" \
                --steps 3 "precision=$steps" "device=$device"
    done
    [[ -x $test ]] || return
    while read -r operation; do
        sanitize "memcheck operation $operation" memcheck "$test" "$operation"
    done < <(sed -n 's/^ *{"\([a-z_]*\)", [0-9].*/\1/p' tests/kernels/cases.h | sort -u)
    for operation in mudd depth streams; do
        sanitize "racecheck operation $operation" racecheck "$test" $operation
    done
}

# What the tool said first, but for the line with its name.
said_first() { # LOG
    grep -E '^=+ +[A-Z]' "$1" | grep -vE '= (COMPUTE-SANITIZER|[A-Z]+ SUMMARY)' | head -n 1 |
        sed 's/^=* *//'
}

# The job of sanitize_ranks. What the tool or the case finds is a failure; any other end may be the tool's
# own, with which ranks are slow and some calls of CUDA are not to be had.
judge_ranks() { # LOG
    local log=$1 name found clean reason
    name=$(basename "$log" .log)
    found=$(grep -oE 'ERROR SUMMARY: [1-9].*' "$log" | head -n 1)
    clean=$(grep -oE 'ERROR SUMMARY: 0 errors' "$log" | wc -l)
    reason=$(said_first "$log")
    if [[ -n $found ]] || grep -qE ' failed \((mismatch|not finite)\)|a bug in MuddPipe' "$log"; then
        record sanitizer "$name" FAILED "${reason:+$reason; }${found:+$found; }$(complaint "$log")"
        failed_job "$log"
    elif ran_out "$log"; then
        record sanitizer "$name" skipped "$no_time"
    elif ((clean == 2)) && grep -q '^exit code 0 ' "$log"; then
        record sanitizer "$name" ok "0 errors on both"
    else
        record sanitizer "$name" skipped "not under compute-sanitizer here: ${reason:+$reason; }$(complaint "$log")"
    fi
}

judge_sanitizer() {
    local log name summary reason
    for log in "$out"/sanitizer/ranks/*.log; do
        [[ ! -e $log ]] || judge_ranks "$log"
    done
    for log in "$out"/sanitizer/*.log; do
        [[ -e $log ]] || continue
        name=$(basename "$log" .log)
        summary=$(grep -oE '[A-Z]+ SUMMARY: .*' "$log" | tail -n 1)
        reason=$(said_first "$log")
        if ran_out "$log"; then
            record sanitizer "$name" skipped "$no_time"
        elif [[ $summary =~ SUMMARY:\ 0\ (errors|hazards) ]] && grep -q '^exit code 0 ' "$log"; then
            record sanitizer "$name" ok "${summary#* SUMMARY: }"
        elif grep -q '^exit code 77 ' "$log"; then
            record sanitizer "$name" skipped "$(sed -n 's/^skipped: //p' "$log")"
        elif [[ -z $summary ]] && ! grep -q '^ended at' "$log"; then
            record sanitizer "$name" skipped "compute-sanitizer does not run here: ${reason:-$(tail -n 1 "$log")}"
        else
            record sanitizer "$name" FAILED "${reason:+$reason; }${summary:+$summary; }$(tail -n 1 "$log")"
            failed_job "$log"
        fi
    done
    (($(count sanitizer) > 0)) ||
        record sanitizer all skipped "no compute-sanitizer that runs (it comes with CUDA's toolkit)"
    say "compute-sanitizer: $(count sanitizer ok) of $(count sanitizer) clean; after $SECONDS s"
}

find_sanitizer() {
    local nvcc
    nvcc=$(readlink -f "$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)")
    [[ -n $sanitizer || $device != cuda ]] ||
        sanitizer=$(PATH=$PATH:${nvcc%/*}:/usr/local/cuda/bin command -v compute-sanitizer)
    last_gpu=()
    if [[ $device == cuda ]] && (($(gpus) > 1)); then
        last_gpu=("CUDA_VISIBLE_DEVICES=$(seq 0 $(($(gpus) - 1)) | tail -n 1)")
        [[ -z ${CUDA_VISIBLE_DEVICES:-} ]] || last_gpu=("CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES##*,}")
    fi
}

# ---- all of it ----

run_check() {
    local beside
    check_tests
    rm -rf "$out/jobs" "$out/twice" "$out/sanitizer"
    mkdir -p "$out/jobs" "$out/twice" "$out/sanitizer/ranks"
    find_sanitizer
    make_tokens
    sanitize_all &
    beside=($!)
    { run_twice 1; run_twice 2; sanitize_ranks; } &
    beside+=($!)
    check_one
    check_layouts
    wait "${beside[@]}"
    judge_sanitizer
    judge_twice 1
    judge_twice 2
    say "the same run twice: $(count twice ok) of $(count twice) equal; after $SECONDS s"
    rm -rf "$out"/jobs/bits "$out"/twice/*/model
}
