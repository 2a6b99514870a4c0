#!/bin/bash
# Builds muddpipe on a machine with GPUs and shows what it does there, in parts of a few minutes each:
#
#     tools/gpu.sh check     is it right: operations and transports against their contracts, the golden
#                            cases, the same bits over 1, 2 and 4 stages, every transport and schedule, bf16
#                            over 1, 2 and 4 stages, two deterministic bf16 runs with the same bits,
#                            compute-sanitizer
#     tools/gpu.sh single    one GPU: speed of every operation, the loss of the CPU in float32, 1.4B
#                            MUDDFormer and Transformer++
#     tools/gpu.sh pair      two GPUs: transports alone and under 1.4B, 1.4B and 6.9B with traces
#     tools/gpu.sh report DIR...   merges what the parts left into one report on stdout
#
#     --prefix DIR   libraries that tools/prefix.sh fetched; else those that are installed
#     --out DIR      where results go: DIR/check, DIR/single, DIR/pair (default gpu-results)
#     --build DIR    where to build (default build-gpu)
#     --no-build     take what is there already
#     --limit S      seconds for the part, build and report included (default 460): what no longer fits is
#                    left out, and the report says so
#
# Needs nvcc, CMake, Python 3, MPI and a driver, no root; on a cluster run it inside salloc. A part that
# finds something wrong ends with 1 and says what: a check that fails, memory that is more than 2 % off
# what was predicted, dense traffic over NVLink of which more than 1 % of a step is exposed, two runs that
# should be equal and are not.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd) || exit 2
# What a part does. gpu_jobs.sh: commands with limits, rows of the report.
# shellcheck source=tests/acceptance/gpu_jobs.sh
source "$root/tests/acceptance/gpu_jobs.sh"
# shellcheck source=tests/acceptance/gpu_check.sh
source "$root/tests/acceptance/gpu_check.sh"
# shellcheck source=tests/acceptance/gpu_runs.sh
source "$root/tests/acceptance/gpu_runs.sh"
export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-32}
# An MPI that uses UCX too may start it first, and its cache may take memory of GPUs for the host's.
export UCX_MEMTYPE_CACHE=${UCX_MEMTYPE_CACHE:-n}
export UCX_WARN_UNUSED_ENV_VARS=n OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
device=${GPU_SH_DEVICE:-cuda} # cpu: for trying the script itself out where there is no GPU
precision=bf16
[[ $device == cuda ]] || precision=float32

say() {
    printf '%s\n' "$*"
}

die() {
    say "gpu: $*" >&2
    exit 2
}

usage() {
    sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$root/tools/gpu.sh"
    exit "$1"
}

part=${1:-}
case $part in
check | single | pair) ;;
report)
    shift
    (($# > 0)) || usage 2
    exec python3 "$root/tests/acceptance/gpu_report.py" "$@"
    ;;
--help | -h) usage 0 ;;
*) usage 2 ;;
esac
shift
prefix='' out=gpu-results build=build-gpu builds=yes limit=460
while (($# > 0)); do
    case $1 in
    --prefix | --out | --build | --limit) (($# > 1)) || die "$1 wants something behind it" ;;
    --no-build) ;;
    --help | -h) usage 0 ;;
    *) die "$1 is no option of it (tools/gpu.sh --help)" ;;
    esac
    case $1 in
    --no-build) builds=no ;;
    --prefix) prefix=$2 ;;
    --out) out=$2 ;;
    --build) build=$2 ;;
    --limit) limit=$2 ;;
    esac
    [[ $1 == --no-build ]] || shift
    shift
done
[[ $limit =~ ^[1-9][0-9]*$ ]] || die "--limit wants seconds, not $limit"
mkdir -p "$out/$part" || exit 2
out=$(realpath "$out/$part")
build=$(realpath -m "$build")
muddpipe=$build/muddpipe
[[ -z $prefix ]] || prefix=$(realpath -m "$prefix")
cd "$root" || exit 2
SECONDS=0 # that the part has taken
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
    limited "$log" "$limit" "$@" && return
    tail -40 "$log"
    ! ran_out "$log" ||
        die "no time left to build: another call goes on where it was (--limit S gives more)"
    die "failed: $* (all of it in $log)"
}

build_all() {
    local options=(-DMUDDPIPE_CUDA=ON) targets=(muddpipe)
    if [[ $device == cuda ]]; then
        command -v nvidia-smi >/dev/null || die "no nvidia-smi: is this a machine with GPUs?"
        options+=("-DCMAKE_CUDA_ARCHITECTURES=$(nvidia-smi --query-gpu=compute_cap \
            --format=csv,noheader | head -n 1 | tr -d .)")
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
    [[ $part == pair ]] || targets=(gpu_tests) # and what they start
    quiet "$out/build.log" cmake --build "$build" --parallel "$(nproc)" --target "${targets[@]}"
    say "built after $SECONDS s"
}

# ---- the machine ----

gpus() { # that are ours
    if [[ $device != cuda ]]; then
        echo 2
    elif [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
        tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | wc -l
    else
        nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU'
    fi
}

# How the first two of them are joined, in nvidia-smi's words: NV18 is 18 links of NVLink, PIX or SYS a
# way over PCIe.
link() {
    local ours=${CUDA_VISIBLE_DEVICES:-0,1} a b
    [[ $ours =~ ^([0-9]+),([0-9]+) ]] || ours=0,1
    IFS=, read -r a b _ <<<"$ours"
    nvidia-smi topo -m 2>/dev/null | awk -v row="GPU$a" -v column="$((b + 2))" '
        $1 == row && $column ~ /^[A-Z]+[0-9]*$/ { print $column; found = 1 }
        END { if (!found) print "unknown" }'
}

# With -dirty behind it, what differs from that commit: so many files, and the first of them.
commit() {
    local files
    files=$(git diff --name-only HEAD 2>/dev/null)
    [[ -z $files ]] || files=" ($(wc -l <<<"$files") files differ: $(head -n 4 <<<"$files" | paste -sd ' '))"
    say "$(git describe --always --dirty 2>/dev/null || echo unknown)$files"
}

describe_machine() {
    {
        say "commit: $(commit)"
        say "host: $(uname -n), $(nproc) cores"
        nvidia-smi ${CUDA_VISIBLE_DEVICES:+-i "$CUDA_VISIBLE_DEVICES"} \
            --query-gpu=index,name,memory.total,driver_version --format=csv,noheader |
            sed 's/^/GPU: /'
        [[ $device != cuda ]] || (($(gpus) < 2)) || say "link: $(link)"
        say "compiler: $(nvcc --version | grep release)"
        "$muddpipe" --version | sed 's/^/build: /'
        say "transports: $("$muddpipe" bench comm --transports | tr '\n' ' ')"
        say "MPI: $(mpirun --version | head -n 1)"
    } >"$out/machine.txt" 2>/dev/null
}

# ---- all ----

use_prefix
[[ $part != pair ]] || (($(gpus) >= 2)) || die "pair wants two GPUs; here are $(gpus)"
build_all
describe_machine
: >"$out/checks.tsv"
"run_$part"
rm -f "$out/tokens.bin"
built=""
[[ $builds == no ]] || built=", build included"
say "time: $SECONDS s of $limit s$built" >>"$out/machine.txt"
python3 tests/acceptance/gpu_report.py "$out" >"$out/report.md" || failed=1
outcome="done"
left_out=$(grep -c "	skipped	$no_time" "$out/checks.tsv")
((left_out == 0)) || outcome="done but for $left_out things for which no time was left"
((failed == 0)) || outcome=FAILED
say "$part: $outcome after $SECONDS s; $out/report.md"
exit "$failed"
