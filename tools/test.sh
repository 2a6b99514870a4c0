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
# Tests wait for ranks, heartbeats and limits about half of their time: half as many more at once than cores.
run=(--test-dir build --parallel "$((jobs + jobs / 2))" --output-on-failure)
# Each of those that want a GPU would start its ranks to find that there is none; who asks for them gets them.
(($# > 0)) || [[ -e /dev/nvidiactl ]] || run+=(-LE '^gpu$')
log=build/Testing/Temporary/LastTestsFailed.log
rm -f "$log"
ctest "${run[@]}" --no-tests=error "$@" && exit

# A second try for what depends on the moment (test_timing in cmake/tests.cmake): a launcher that ends a
# job may lose the last lines of a rank (seen once in some ten runs), and a loaded machine is slow. All
# else fails at once.
failed=$(sed 's/^[0-9]*://' "$log" 2>/dev/null) && [[ -n $failed ]] || exit 1
twice=$(ctest --test-dir build -N -L '^timing$' | sed -n 's/^ *Test *#[0-9]*: //p')
if grep -vxFf <(echo "$twice") <<<"$failed" >&2; then
    echo "test.sh: these failed, and have no second try" >&2
    exit 1
fi
echo "test.sh: a second try for $(tr '\n' ' ' <<<"$failed")"
ctest "${run[@]}" --parallel 1 --rerun-failed
