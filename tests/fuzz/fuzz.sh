#!/bin/bash
# Fuzzes the readers of files that people bring: fuzz.sh [SECONDS a reader, 600] [READER...]
#
# Builds with clang, libFuzzer, and the address and undefined-behaviour sanitizers in build-fuzz/. What is found lies
# there as crash-*; inputs that reach new code are kept in build-fuzz/corpus/.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-600}
readers=("${@:2}")
((${#readers[@]} > 0)) || readers=(manifest safetensors index config idx llmc yaml schedule)

CC=clang cmake -S . -B build-fuzz -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DMUDDPIPE_CUDA=OFF -DMUDDPIPE_TESTS=OFF \
    -DMUDDPIPE_FUZZ=ON -DMUDDPIPE_OPENMP=OFF -DMUDDPIPE_SANITIZE=fuzzer-no-link,address,undefined >/dev/null
cmake --build build-fuzz --target fuzz
cd build-fuzz
status=0
for reader in "${readers[@]}"; do
    mkdir -p "corpus/$reader"
    FUZZ=$reader UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
        ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1 \
        ./tests/fuzz/fuzz -max_total_time="$seconds" -timeout=20 -rss_limit_mb=3000 -max_len=20000 \
        -artifact_prefix="crash-$reader-" -print_final_stats=1 "corpus/$reader" "../tests/fuzz/corpus/$reader" \
        >"fuzz-$reader.log" 2>&1 || { status=1; echo "fuzz: $reader: found something: build-fuzz/fuzz-$reader.log"; }
    echo "$reader: $(sed -n 's/^stat::number_of_executed_units: *//p' "fuzz-$reader.log") inputs," \
        "$(grep -o 'cov: [0-9]*' "fuzz-$reader.log" | tail -n 1)"
done
exit $status
