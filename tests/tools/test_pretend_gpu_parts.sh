#!/bin/bash
# The parts of tools/gpu.sh on GPUs of threads.
source "$(dirname "$0")/pretend.sh"
source "$(dirname "$0")/gpu_parts.sh"
export PATH=$work/bin:$PATH LINK=PIX SANITIZER=finds_nothing
mkdir build
ln -s "$PRETEND" build/muddpipe

for part in check single pair; do
    run 0 "$gpu" $part --no-build --build build --out results
    says "$part: done after"
    ! grep -q FAILED out || fail "a failure, but an end as if there were none"
done
run 0 "$gpu" report results
cp out report
for transport in $wires; do
    says "| $transport | 2 of 2 | 2 of 2 | 2 of 2 | 2 of 2 | 2 of 2 | 2 of 2 |" "| $transport | 2 | 16 x 1 x 32 | bf16 |"
done
says "link: PIX" "| memcheck muddformer-tiny bf16 | ok | 0 errors |" \
    "| memcheck muddformer-tiny bf16 three steps | ok | 0 errors |" \
    "| memcheck muddformer-tiny bf16, 2 ranks over ipc | ok | 0 errors on both |" \
    "cut into stages, over ipc: the error that comes nearest to its limit: 8 ok" \
    "| case | 2 stages | 2 stages, ten steps | 4 stages | 4 stages, ten steps |" \
    "| tiny.json bf16, stages: 1 | ok | losses and norms of 4 steps, " \
    "| tiny.json bf16, stages: 2 | ok | losses and norms of 4 steps, " \
    "| quickstart, CPU and GPU | ok | 4 steps: losses at most 0.0e+00 apart" \
    "#### tiny on 1: time of a step by operation" "#### tiny on 2: time of a step by operation, transport ipc" \
    "(through the host)" " (+0."
! grep -q 'build included' out || fail "a build is said to be included"

# What is found in two ranks ends the part too.
export SANITIZER=finds
run 1 "$gpu" check --no-build --build build --out results
says "FAILED  sanitizer: memcheck muddformer-tiny bf16, 2 ranks over ipc: Invalid __global__ write of size 4 bytes; " \
    "check: FAILED after"
! grep 'FAILED  ' out | grep -v 'FAILED  sanitizer: ' || fail "more than it found is said to be wrong"
