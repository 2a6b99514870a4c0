#!/usr/bin/env python3
"""Checks who includes whom.

Rooms stand on floors: a file includes only its own room, or the door `<room>/<room>.h` of a room
on a lower floor; base/ has no door, all its headers are public. A foreign library's header is
included only in that library's folder. What makes the host wait for a GPU, or takes its memory, is called
only where a step never comes by. `layers.py` checks the tree, `layers.py --self-test` that
every rule can fail.
"""

import fnmatch
import pathlib
import re
import sys

FLOORS = {
    "base": 0,
    "kernels": 1,
    "comm": 1,
    "data": 1,
    "schedule": 1,
    "model": 2,
    "runtime": 3,
    "tools": 4,
    "tests": 4,
}

# Header pattern -> the files that may include it.
LIBRARIES = {
    "mpi.h": ["comm/group/*", "comm/mpi/*"],
    "ucp/*": ["comm/ucx/*"],
    "ucs/*": ["comm/ucx/*"],
    "uct/*": ["comm/ucx/*"],
    "nccl.h": ["comm/nccl/*"],
    "yaml.h": ["base/config*.c"],
    "jansson.h": ["base/json.c"],
    "cblas.h": ["kernels/gemm_openblas.c", "kernels/*/gemm_openblas.c"],
    "openblas*": ["kernels/gemm_openblas.c", "kernels/*/gemm_openblas.c"],
    "dnnl*": ["kernels/gemm_dnnl.c", "kernels/*/gemm_dnnl.c"],
    "oneapi/*": ["kernels/gemm_dnnl.c", "kernels/*/gemm_dnnl.c"],
    "cublas*": ["kernels/cuda/*"],
    "cudnn*": ["kernels/cuda/*_cudnn.cu"],
    "cuda*.h": ["kernels/cuda/*", "base/device_cuda*", "comm/*"],
    "zstd.h": ["runtime/checkpoint/*"],
    "protobuf-c/*": ["runtime/checkpoint/*"],
    "xxhash.h": ["base/hash*"],
    "cmocka.h": ["tests/*"],
}

# Behind device.h tests watch over these (tests/comm/pretend.h); kernels are where they cannot see.
WAITING = re.compile(r"\bcuda(?:\w*Synchronize|Malloc\w*|Free\w*|Host(?:Alloc|Register|Unregister)|"
                     r"Memcpy|Memset|(?:Stream|Event)(?:Create|Destroy)\w*)\s*\(")
MAY_WAIT = ["base/device_cuda*", "kernels/cuda/algorithms.cu", "tests/*"]

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)


def allowed(path, patterns):
    return any(fnmatch.fnmatch(path, pattern) for pattern in patterns)


def check_library(path, header):
    for pattern, folders in LIBRARIES.items():
        if fnmatch.fnmatch(header, pattern) and not allowed(path, folders):
            return f"{header} may only be included in {', '.join(folders)}"
    return None


def check_room(path, header):
    room, other = path.split("/")[0], header.split("/")[0]
    if room == "tests" and "/" not in header:
        return None  # a neighbour in the same folder
    if other not in FLOORS:
        return f'"{header}" is not a path from the root of the tree'
    if other == room:
        return None
    if room == "tests":
        return None  # tests look into rooms, past their doors
    if FLOORS[other] >= FLOORS[room]:
        return f"{room}/ may not see {other}/: its floor is not below"
    if other != "base" and header != f"{other}/{other}.h":
        return f"{header} is private: the door is {other}/{other}.h"
    return None


def check_file(path, text):
    """Complaints about one file, as (line, message)."""
    complaints = []
    for match in INCLUDE.finditer(text):
        line = text.count("\n", 0, match.start(2)) + 1
        foreign, header = match.group(1) == "<", match.group(2)
        message = check_library(path, header)
        if message is None and not foreign:
            message = check_room(path, header)
        if message is not None:
            complaints.append((line, message))
    if not allowed(path, MAY_WAIT):
        for match in WAITING.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            complaints.append((line, f"{match.group(0)} may only be called in {', '.join(MAY_WAIT)}"))
    return complaints


def check_tree(root):
    failed = 0
    for room in FLOORS:
        for path in sorted((root / room).rglob("*")):
            if path.suffix not in (".c", ".h", ".cu", ".cuh", ".def"):
                continue
            name = path.relative_to(root).as_posix()
            for line, message in check_file(name, path.read_text(encoding="utf-8")):
                print(f"{name}:{line}: {message}")
                failed = 1
    return failed


def self_test():
    cases = [
        ("base/log.c", '#include "kernels/kernels.h"', False),
        ("kernels/gemm.c", '#include "comm/comm.h"', False),
        ("model/block.c", '#include "schedule/schedule.h"', True),
        ("schedule/check.c", '#include "model/model.h"', False),
        ("runtime/worker.c", '#include "comm/transport.h"', False),
        ("runtime/worker.c", '#include "comm/comm.h"', True),
        ("runtime/worker.c", '#include "base/arena.h"', True),
        ("runtime/worker.c", "#include <mpi.h>", False),
        ("comm/mpi/mpi.c", "#include <mpi.h>", True),
        ("comm/mpi/mpi.c", '#include "mpi.h"', False),
        ("comm/mpi/mpi.c", "#include <ucp/api/ucp.h>", False),
        ("model/config.c", "#include <jansson.h>", False),
        ("kernels/gemm_dnnl.c", "#include <cblas.h>", False),
        ("kernels/cuda/matmul.cu", "#include <cublas_v2.h>", True),
        ("kernels/cuda/attention_cudnn.cu", "#include <cudnn_frontend.h>", True),
        ("kernels/cuda/table.c", "#include <cudnn.h>", False),
        ("model/head.c", "  #  include <cuda_runtime.h>", False),
        ("tests/comm/test_loop.c", '#include "comm/transport.h"', True),
        ("base/log.c", '#include "log.h"', False),
        ("tests/comm/ranks.c", '#include "contract.h"', True),
        ("base/log.c", "#include <stdio.h>", True),
        ("kernels/cuda/norm.cu", "    cudaStreamSynchronize(stream);", False),
        ("kernels/cuda/norm.cu", "    cudaMallocAsync(&memory, bytes, stream);", False),
        ("kernels/cuda/norm.cu", "    cudaMemcpyAsync(to, from, bytes, kind, stream);", True),
        ("comm/nccl/nccl.c", "    cudaEventDestroy(event);", False),
        ("base/device_cuda.c", "    cudaFree(memory);", True),
    ]
    failed = 0
    for path, text, expected in cases:
        if (not check_file(path, "\n" + text + "\n")) != expected:
            print(f"self-test: {path} with {text}: expected {'pass' if expected else 'refusal'}")
            failed = 1
    return failed


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    return check_tree(pathlib.Path(__file__).resolve().parents[2])


sys.exit(main())
