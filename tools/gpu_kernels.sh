#!/bin/bash
# Builds the operations for the GPU of this machine with nvcc and gcc alone (no CMake, no libraries but
# CUDA's) and compares them with the CPU's: tools/gpu_kernels.sh [folder], default build/gpu.
#
#     GPU_SPEED=0 tools/gpu_kernels.sh     without the timings
#     GPU_ARCH=sm_90                       what to build for; default: the card that is there
#
# Without cmocka a stand-in of a few lines takes its place.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v nvcc >/dev/null; then
    echo "skipped: no nvcc"
    exit 77
fi
folder=${1:-build/gpu}
arch=${GPU_ARCH:-native}
cuda=$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")
library=$cuda/lib64
[[ -d $library ]] || library=$cuda/lib
mkdir -p "$folder"

common=(-D_GNU_SOURCE -DKERNELS_HAVE_CUDA=1 "-DKERNELS_CUDA_FOLDER=\"$library\"" -I.
    "-I$cuda/include")
c_flags=(-std=c11 -O3 -ffp-contract=off -fno-math-errno -fopenmp "${common[@]}")
cu_flags=(-std=c++17 -O3 "-arch=$arch" -Werror=all-warnings -Xcompiler=-Wall "${common[@]}")

cmocka=()
if ! echo '#include <cmocka.h>' |
    gcc -include stdarg.h -include stddef.h -include stdint.h -include setjmp.h -E - \
        >/dev/null 2>&1; then
    mkdir -p "$folder/cmocka"
    c_flags+=("-I$folder/cmocka")
    cat >"$folder/cmocka/cmocka.h" <<'HEADER'
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
struct CMUnitTest {
    const char *name;
    void (*run)(void **);
};
#define cmocka_unit_test(function) {#function, function}
#define fail_msg(...) (printf("%s:%d: ", __FILE__, __LINE__), printf(__VA_ARGS__), puts(""), exit(1))
#define assert_true(x) ((x) ? (void)0 : fail_msg("not so: %s", #x))
#define assert_non_null(x) assert_true((x) != NULL)
#define assert_int_equal(a, b) assert_true((a) == (b))
#define assert_memory_equal(a, b, n) assert_true(memcmp((a), (b), (n)) == 0)
#define print_message(...) (printf(__VA_ARGS__), (void)fflush(stdout))
#define cmocka_run_group_tests(tests, before, after) \
    cmocka_run(tests, sizeof(tests) / sizeof *(tests))
static inline int cmocka_run(const struct CMUnitTest *tests, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        printf("[ RUN ] %s\n", tests[i].name);
        fflush(stdout);
        tests[i].run(NULL);
        printf("[ OK  ] %s\n", tests[i].name);
    }
    return 0;
}
HEADER
else
    cmocka=(-lcmocka)
fi

# compile OBJECT COMMAND...: one line for xargs
jobs=()
objects=()
job() {
    objects+=("$1")
    jobs+=("$(printf '%q ' "${@:2}" -c -o "$1")")
}
for source in base/status.c base/log.c base/trace.c base/arena.c base/device.c base/device_host.c \
    base/device_cuda.c kernels/kernels.c kernels/cuda/table.c; do
    name=${source//\//_}
    job "$folder/${name%.c}.o" gcc "${c_flags[@]}" "$source"
done
for isa in generic v3 v4; do
    flags=("-DCPU_ISA=$isa")
    [[ $isa == generic ]] || flags+=("-march=x86-64-$isa")
    for source in kernels/cpu/*.c; do
        job "$folder/cpu_${isa}_$(basename "$source" .c).o" gcc "${c_flags[@]}" "${flags[@]}" "$source"
    done
done
for source in kernels/cuda/*.cu; do
    job "$folder/cuda_$(basename "$source" .cu).o" nvcc "${cu_flags[@]}" "$source"
done
printf '%s\0' "${jobs[@]}" | xargs -0 -P "$(nproc)" -I{} sh -c '{}'

status=0
for test in test_cuda test_cuda_speed; do
    if [[ $test == test_cuda_speed && ${GPU_SPEED:-1} == 0 ]]; then
        continue
    fi
    gcc "${c_flags[@]}" "tests/kernels/$test.c" "${objects[@]}" -o "$folder/$test" "-L$library" \
        "-Wl,-rpath,$library" -lcudart "${cmocka[@]}" -lstdc++ -lpthread -ldl -lm
    "$folder/$test" || status=$?
done
exit "$status"
