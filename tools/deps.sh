#!/bin/bash
# Sees to the libraries and tools that a build needs: installs what is missing on Debian and Ubuntu,
# says what is missing elsewhere. Root (or sudo) is wanted only if something has to be installed.
set -euo pipefail

packages=(
    build-essential cmake ninja-build pkg-config python3
    libopenmpi-dev openmpi-bin libucx-dev
    libyaml-dev libjansson-dev libxxhash-dev libzstd-dev
    libprotobuf-c-dev protobuf-c-compiler
    libdnnl-dev libcmocka-dev
)

# Without dpkg: what CMakeLists.txt cannot do without.
check_by_hand() {
    local missing=() tool library
    for tool in cc cmake ninja pkg-config python3 mpicc mpirun; do
        command -v "$tool" >/dev/null || missing+=("$tool")
    done
    if command -v pkg-config >/dev/null; then
        for library in yaml-0.1 jansson libxxhash libzstd libprotobuf-c cmocka; do
            pkg-config --exists "$library" || missing+=("$library")
        done
    fi
    if ((${#missing[@]} > 0)); then
        echo "deps: not found: ${missing[*]}" >&2
        echo "deps: install them (in a prefix of your own: add it to PATH, CMAKE_PREFIX_PATH and" \
            "PKG_CONFIG_PATH); docs and cmake/dependencies.cmake name all libraries" >&2
        exit 1
    fi
}

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
    check_by_hand
    exit 0
fi

missing=()
for package in "${packages[@]}"; do
    status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
    [[ $status == *" installed" ]] || missing+=("$package")
done
((${#missing[@]} > 0)) || exit 0

as_root=()
if ((EUID != 0)); then
    if ! command -v sudo >/dev/null; then
        # Perhaps everything is there, built by hand or by modules.
        check_by_hand
        exit 0
    fi
    as_root=(sudo)
fi
echo "deps: installing ${missing[*]}"
apt() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq "$@"
}
install() {
    apt install -y --no-install-recommends "${missing[@]}" >/dev/null
}
# Lists may be absent (fresh containers) or too old for the mirror.
if ! compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null || ! install; then
    apt update
    install
fi
