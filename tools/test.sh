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
run=(--test-dir build --output-on-failure)
failed=""
tests() { # N arguments of ctest...: so many at once; what fails is added to `failed`
    local log=build/Testing/Temporary/LastTestsFailed.log
    rm -f "$log"
    ctest "${run[@]}" --no-tests=error --parallel "$1" "${@:2}" && return
    [[ -s $log ]] || exit 1
    failed+=$(sed 's/^[0-9]*://' "$log")$'\n'
}
if (($# > 0)); then
    tests "$jobs" "$@"
else
    # Most wait about half of their time, for ranks and for each other: more at once than there are cores. Those that
    # depend on the moment come after, and the ones with the tightest limits count as two (PROCESSORS). Each that wants
    # a GPU would start its ranks to find that there is none.
    gpu='|gpu'
    [[ ! -e /dev/nvidiactl ]] || gpu=""
    tests "$((jobs + jobs / 2))" -LE "^(timing$gpu)\$"
    tests "$((jobs + jobs / 2))" -L '^timing$' -LE "^(none$gpu)\$"
fi
[[ -n $failed ]] || exit 0

# A second try for what depends on the moment (test_timing in cmake/tests.cmake): a launcher that ends a
# job may lose the last lines of a rank (seen once in some ten runs), and a loaded machine is slow. All
# else fails at once.
twice=$(ctest --test-dir build -N -L '^timing$' | sed -n 's/^ *Test *#[0-9]*: //p')
failed=${failed%$'\n'}
if grep -vxFf <(echo "$twice") <<<"$failed" >&2; then
    echo "test.sh: these failed, and have no second try" >&2
    exit 1
fi
echo "test.sh: a second try for $(tr '\n' ' ' <<<"$failed")"
again=$(sed 's/[.+]/\\&/g' <<<"$failed" | paste -sd '|')
ctest "${run[@]}" -R "^($again)\$"
