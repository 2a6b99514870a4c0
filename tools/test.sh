#!/bin/bash
# Builds MuddPipe in build/ and runs its tests: tools/test.sh [arguments of ctest].
#
#     tools/test.sh              everything
#     tools/test.sh -L unit      unit tests only; -L mpi, -L script, -L lint
#     tools/test.sh -R schedule  tests whose name matches
set -euo pipefail
cd "$(dirname "$0")/.."

tools/deps.sh

jobs=$(nproc)
generator=()
if [[ ! -f build/CMakeCache.txt ]]; then
    generator=(-G Ninja)
fi
cmake -S . -B build "${generator[@]}" -DMUDDPIPE_TESTS=ON
cmake --build build --parallel "$jobs"
ctest --test-dir build --parallel "$jobs" --output-on-failure --no-tests=error "$@"
