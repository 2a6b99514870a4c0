#!/bin/bash
# The parts of tools/gpu.sh on the host: what passes, what is off, what a transport refuses, what does not
# end, what there is no time for.
source "$(dirname "$0")/common.sh"
source "$(dirname "$0")/gpu_parts.sh"
export GPU_SH_DEVICE=cpu GPU_SH_REPORT_TAKES=3

python3 "$(dirname "$script")/alter.py" "$golden/muddformer-tiny" altered
mkdir build slow other
first=${wires%% *}
export first
cat >build/muddpipe <<'END'
#!/bin/bash
[[ "$*" != *--transports* ]] || exec printf '%s\n' "$first" ipc
exec "$MUDDPIPE" "$@"
END
sed 's/^exec "/[[ "$*" != *gpipe* ]] || exec sleep 60\n&/' build/muddpipe >slow/muddpipe
# The second of two runs has other weights.
sed 's/^exec "/[[ "$*" != *\/second-* \&\& "$*" != *\/curve\/gpu* ]] || set -- "$@" seed=2\n&/' \
    build/muddpipe >other/muddpipe
chmod +x build/muddpipe slow/muddpipe other/muddpipe
fake=$work/bin/compute-sanitizer
part() { # CODE PART BUILD options...
    run "$1" "$gpu" "$2" --no-build --build "$3" --out "$work/results" "${@:4}"
}

part 0 check build
says "golden cases: 4 of 4" "same bits: 6 of 12 layouts, 6 refused" "the same run twice: 2 of 2 equal" \
    "check: done after"
cp results/check/report.md out
says "| muddformer-tiny | logits " "| $first | 2 of 2 | 2 of 2 | 2 of 2 | 2 of 2 | 2 of 2 | 2 of 2 |" \
    "| ipc | refused, 0 of 2 |" "- refused: 0 of 2; transport ipc carries memory of GPUs" "cmocka" \
    "| tiny.json float32, stages: 2 | ok | losses and norms of 4 steps, " "no compute-sanitizer"
[[ -z $(find results -name model.safetensors) ]] || fail "weights were left"

export GPU_SH_SANITIZER=$fake SANITIZER=finds
GPU_SH_CASES="$golden/muddformer-tiny $work/altered/grad.norm.weight" part 1 check other
says "FAILED  golden: grad.norm.weight float32: $work/altered/grad.norm.weight: 1 of 67 comparisons" \
    "FAILED  bits: $first 2 stages, 1f1b: 1 of 2; $work/altered/grad.norm.weight: 1 of 67" "golden cases: 3 of 4" \
    "FAILED  twice: tiny.json float32, stages: 1: losses or norms differ" \
    "FAILED  twice: tiny.json float32, stages: 2: losses or norms differ" \
    "FAILED  sanitizer: memcheck muddformer-tiny float32: Invalid __global__ write of size 4 bytes; " \
    "FAILED  sanitizer: memcheck muddformer-tiny float32 three steps: Invalid __global__ write" \
    "compute-sanitizer: 0 of 3 clean"
grep -q '2 ranks over ipc | skipped | not under compute-sanitizer here: transport ipc carries memory of GPUs' \
    results/check/report.md || fail "not why two ranks do not run"
! grep -q 'ten steps: 1 of 2' out || fail "ten steps, which have no altered gradient, are off"

SANITIZER=refuses GPU_SH_LIMIT=15 part 1 check slow
says "FAILED  bits: $first 2 stages, gpipe: ended at its limit of 15 s" "check: FAILED"
! grep -q 'FAILED.*1f1b' out || fail "what ended is said not to have"
grep -q 'skipped | compute-sanitizer does not run here: Error: no debugger may attach here' \
    results/check/report.md || fail "not why compute-sanitizer does not run"

# The time is up: before anything, and while a job runs.
part 0 check build --limit 7
says "golden cases: 0 of 4" "check: done but for 21 things for which no time was left after "
grep -q '^- skipped: no time left' results/check/report.md || fail "the report does not say what is missing"
SANITIZER=refuses part 0 check slow --limit 24
says "check: done but for "
grep -q "^- skipped: no time left (.*$first 2 stages, gpipe" results/check/report.md ||
    fail "not what was cut off"
part 0 pair build --limit 7
says "pair: done but for 4 things"

part 0 single build
says "tiny on 1: speed" "quickstart on CPU and GPU: 4 steps: losses at most 0.0e+00 apart" "single: done after"
part 1 single other
says "FAILED  curve: quickstart, CPU and GPU: 4 steps: losses at most "
part 0 pair build
says "tiny on 2: speed" "$first: speed"
cp results/pair/report.md out
says "| one way | 32 MiB | GB/s |" "#### tiny on 2: time of a step by operation" "| $first | 2 | 16 x 1 x 32 |" \
    "| ipc | refused | transport ipc carries memory of GPUs"
