#!/bin/bash
# Gets what muddpipe needs into a folder, without root:
#
#     tools/prefix.sh FOLDER [--ucx-cuda] [--cudnn] [--cuda 12|13]
#
# From packages of this Debian or Ubuntu (unpacked, not installed) and from Python wheels:
#     --ucx-cuda   UCX with CUDA (libucx-cu12 or -cu13; one node: it has no InfiniBand, on a cluster use the
#                  site's own UCX)
#     --cudnn      what attention by cuDNN is built with: cudnn-frontend's headers (nvidia-cudnn-frontend)
#                  and, unless CUDA's toolkit has them, cuDNN's own (nvidia-cudnn-cu12 or -cu13: 350 MB are
#                  downloaded, 1 MB kept). The library itself is looked for when the program starts: of the
#                  toolkit, or in LD_LIBRARY_PATH, a PyTorch's nvidia/cudnn/lib for example.
#     --cuda 12    wheels for that CUDA: of the machine that will run it. Unless said, that of nvcc here; 13
#                  where there is none.
# A site's own MPI, CUDA and NCCL are taken where they are. The folder may be copied to a machine without a
# network; build there with
#
#     export CMAKE_PREFIX_PATH=FOLDER/libucx:FOLDER/usr PKG_CONFIG_PATH=FOLDER/usr/lib/<arch>/pkgconfig
#     cmake -S . -B build
set -euo pipefail

usage="usage: tools/prefix.sh FOLDER [--ucx-cuda] [--cudnn] [--cuda 12|13]"
case ${1:-} in
--help | -h)
    sed -n 's/^# \{0,1\}//; 2,19p' "$0"
    exit 0
    ;;
'' | -*)
    echo "$usage" >&2
    exit 2
    ;;
esac
folder=$1
shift
ucx=no
cudnn=no
cuda=''
while (($# > 0)); do
    case "$1 ${2:-}" in
    --ucx-cuda\ *) ucx=yes ;;
    --cudnn\ *) cudnn=yes ;;
    '--cuda 12' | '--cuda 13')
        cuda=$2
        shift
        ;;
    *)
        echo "$usage" >&2
        exit 2
        ;;
    esac
    shift
done

nvcc=$(command -v "${CUDACXX:-nvcc}" || echo /usr/bin/nvcc)
cuda_chosen() { # of the wheels, and a line that says why
    local release
    release=$("$nvcc" --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p') || true
    if [[ -n $cuda ]]; then
        echo "prefix: wheels for CUDA $cuda, as told"
    elif [[ -z $release ]]; then
        cuda=13
        echo "prefix: wheels for CUDA $cuda: there is no nvcc here (--cuda 12 if that machine has CUDA 12)"
    elif [[ ${release%%.*} == 12 || ${release%%.*} == 13 ]]; then
        cuda=${release%%.*}
        echo "prefix: wheels for CUDA $cuda, as nvcc is $release"
    else
        echo "prefix: no wheels for CUDA $release, which nvcc is, only for 12 and 13; take the UCX and" \
            "cuDNN of the site, or say --cuda 12|13" >&2
        exit 1
    fi
}
[[ $ucx$cudnn != *yes* ]] || cuda_chosen
machine=$(uname -m) # whose wheels are fetched
if [[ $ucx$cudnn == *yes* && $machine != x86_64 && $machine != aarch64 ]]; then
    echo "prefix: no wheels for $machine, only for x86_64 and aarch64; leave --ucx-cuda and --cudnn out" \
        "and build with the UCX and cuDNN of the site" >&2
    exit 1
fi
packages=(libyaml-dev libyaml-0-2 libjansson-dev libjansson4 libxxhash-dev libxxhash0
    libcmocka-dev libcmocka0 libprotobuf-c-dev libprotobuf-c1 libzstd-dev libzstd1 protobuf-c-compiler)

command -v apt-get >/dev/null || {
    echo "prefix: no apt-get here; make the folder on a Debian or Ubuntu machine and copy it" >&2
    exit 1
}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"

# Names of the compiler's own libraries have the release in them.
mapfile -t of_compiler < <(apt-cache depends protobuf-c-compiler | sed -n 's/^ *Depends: \(libproto[a-z0-9]*\)$/\1/p')
apt-get download -q "${packages[@]}" "${of_compiler[@]}" >download.log 2>&1 || {
    cat download.log
    echo "prefix: packages cannot be had; are the package lists there (apt-get update)?" >&2
    exit 1
}
for package in *.deb; do
    dpkg -x "$package" packages
done
rm -rf packages/usr/share
find packages/usr/bin -mindepth 1 ! -name protoc-c ! -name protoc-gen-c -delete
find packages -name '*.a' -delete

# pkg-config files name their place relative to themselves, so that the folder can move.
find packages -name '*.pc' -exec sed -i \
    -e 's|^prefix=.*|prefix=${pcfiledir}/../../..|' \
    -e 's|\([ =]\)\(-[IL]\)\?/usr/|\1\2${pcfiledir}/../../../|g' {} +
cp -R packages/usr "$folder"

# wheel NAME: unpacks a Python wheel into unpacked/
wheel() {
    rm -rf unpacked wheels
    python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 \
        --platform "manylinux_2_28_$machine" --platform "manylinux_2_27_$machine" \
        --platform "manylinux_2_17_$machine" -d wheels "$1" || {
        echo "prefix: the wheel $1 cannot be had (pip and a network are needed); make the folder" \
            "where it can and copy it" >&2
        exit 1
    }
    python3 -m zipfile -e wheels/*.whl unpacked
}

if [[ $ucx == yes ]]; then
    wheel "libucx-cu$cuda"
    [[ -e unpacked/libucx/lib/ucx/libuct_cuda.so ]] || {
        echo "prefix: the wheel libucx-cu$cuda has no CUDA in it (lib/ucx/libuct_cuda.so)" >&2
        exit 1
    }
    rm -rf "$folder/libucx"
    mv unpacked/libucx "$folder/libucx"
    rm -rf "$folder"/libucx/bin/io_demo "$folder"/libucx/bin/*daemon
    find "$folder/libucx" -name '*.a' -delete
    find "$folder/libucx" -name '*.so*' -type f -exec strip --strip-unneeded {} + 2>/dev/null || true
    chmod -R u+w "$folder/libucx"
    chmod +x "$folder"/libucx/bin/*
fi

if [[ $cudnn == yes ]]; then
    wheel nvidia-cudnn-frontend
    mkdir -p "$folder/usr/include"
    cp -R unpacked/include/. "$folder/usr/include/"
    toolkit=$(dirname "$(dirname "$(readlink -m "$nvcc")")")
    header=include/cudnn_graph.h
    if [[ ! -e $toolkit/$header && ! -e /usr/$header && ! -e /usr/local/$header ]]; then
        wheel "nvidia-cudnn-cu$cuda"
        cp unpacked/nvidia/cudnn/include/*.h "$folder/usr/include/"
    fi
    chmod -R u+w "$folder/usr/include"
fi
du -sh "$folder"
echo "prefix: done; to build with it:"
echo "  export CMAKE_PREFIX_PATH=$folder/libucx:$folder/usr"
echo "  export PKG_CONFIG_PATH=$(dirname "$(find "$folder/usr" -name yaml-0.1.pc)")"
