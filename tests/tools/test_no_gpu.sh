#!/bin/bash
# No GPU that can be used: device=cuda says why, device=auto computes on the host and says so once.
# $FAKE_CARDS_LIBRARY stands in for drivers and cards; a build without CUDA has $FAKE_CARD_FILE instead, which
# lets a host seem to have one.
source "$(dirname "$0")/common.sh"
tiny_data
tiny_run

refuses() { # WORDS...
    run_ranks 1 2 train run.yaml device=cuda logging.run=none
    says "error: device=cuda: " "(device=cpu computes on the host)" "$@"
    run_ranks 1 1 train run.yaml precision=bf16 logging.run=none
    says "precision=bf16 with device=auto: the host computes in float32 only, and " "$@"
}

falls_back() { # RUN WORDS...: all ranks, with one line
    local name=$1
    shift
    run_ranks 0 2 train run.yaml logging.run="$name"
    says "$@"
    (($(grep -c "computing on the host: cpu-.* not on a GPU: " out) == 1)) ||
        fail "not one line that says so"
    grep -q "computing on the host: cpu-.* not on a GPU: " "$name/rank-1.log" ||
        fail "not in the log of every rank"
    ! grep -q "error: " out || fail "errors where there need be none"
}

if [[ -z ${FAKE_CARDS_LIBRARY:-} ]]; then
    refuses "this program was built without CUDA"
    run_ranks 0 2 train run.yaml logging.run=cpu
    ! grep -q "not on a GPU" out || [[ -e /dev/nvidia0 || -e /dev/nvidiactl ]] || fail "a GPU where there is none"
    export LD_PRELOAD=$FAKE_CARD_FILE
    built="this program was built without CUDA, and this host has an NVIDIA GPU (/dev/nvidia0): configure with -DMUDDPIPE_CUDA=ON"
    refuses "$built"
    falls_back idle "; not on a GPU: $built"
    run_ranks 0 1 train run.yaml device=cpu logging.run=asked
    ! grep -q "not on a GPU" out || fail "an explanation of what was asked for"
    exit 0
fi
export LD_PRELOAD=$FAKE_CARDS_LIBRARY

export FAKE_DRIVER=0
refuses "there is no NVIDIA driver on this host"
falls_back driverless "there is no NVIDIA driver on this host"

export FAKE_DRIVER=12040 FAKE_CARDS=90
refuses "the NVIDIA driver here is for CUDA 12.4, older than the CUDA 13.0 that this program was built with"
falls_back outdated "the NVIDIA driver here is for CUDA 12.4"

export FAKE_DRIVER=13000 FAKE_CARDS=
refuses "no CUDA-capable device is detected"
falls_back cardless "no CUDA-capable device is detected"

export FAKE_CARDS=75
refuses "GPU 0 of 1 is sm_75, and sm_80 or newer is needed"
falls_back old "GPU 0 of 1 is sm_75"
export FAKE_CARDS="90 70"
refuses "GPU 1 of 2 is sm_70, and sm_80 or newer is needed (CUDA_VISIBLE_DEVICES can leave it out)"
falls_back mixed "GPU 1 of 2 is sm_70"
run_ranks 1 2 bench comm device=cuda
says "device=cuda: GPU 1 of 2 is sm_70" "(device=cpu measures the host's memory)"

# What CUDA reads from the environment stands there before MPI, which may know CUDA.
export FAKE_CARDS= FAKE_TELLS=1
CUDA_DEVICE_MAX_CONNECTIONS=3 run_ranks 1 2 train run.yaml device=cuda logging.run=none
says "MPI starts with 32 connections" \
    "warning: CUDA_DEVICE_MAX_CONNECTIONS=3 would let streams wait for each other without end: taken as 32"
CUDA_DEVICE_MAX_CONNECTIONS=12 run_ranks 1 2 train run.yaml device=cuda logging.run=none
says "MPI starts with 12 connections"
unset CUDA_DEVICE_MAX_CONNECTIONS
run_ranks 1 2 train run.yaml device=cuda logging.run=none
says "MPI starts with 32 connections"
