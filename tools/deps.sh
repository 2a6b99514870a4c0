#!/bin/bash
# Sees to the libraries and tools that a build needs: installs what is missing on Debian and Ubuntu,
# says what is missing elsewhere. Root (or sudo) is wanted only if something has to be installed.
# `tools/deps.sh quickstart` leaves out what only the tests use.
set -euo pipefail

packages=(
    build-essential cmake ninja-build pkg-config
    libopenmpi-dev openmpi-bin libucx-dev
    libyaml-dev libjansson-dev libxxhash-dev libzstd-dev
    libprotobuf-c-dev protobuf-c-compiler
    libdnnl-dev
)
tools=(cc cmake ninja pkg-config mpicc mpirun protoc-c)
libraries=(yaml-0.1 jansson libxxhash libzstd libprotobuf-c)
if [[ ${1:-} != quickstart ]]; then
    packages+=(python3 procps libcmocka-dev)
    tools+=(python3 pgrep)
    libraries+=(cmocka)
fi

# What CMakeLists.txt cannot do without, wherever it comes from.
find_missing() {
    local tool library
    for tool in "${tools[@]}"; do
        command -v "$tool" >/dev/null || echo "$tool"
    done
    for library in "${libraries[@]}"; do
        pkg-config --exists "$library" 2>/dev/null || echo "$library"
    done
}

give_up() {
    echo "deps: not found: $(find_missing | xargs)" >&2
    echo "deps: install them, or build them in a prefix of your own and add that to PATH," \
        "CMAKE_PREFIX_PATH and PKG_CONFIG_PATH" >&2
    exit 1
}

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
    [[ -z $(find_missing) ]] || give_up
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
    if [[ -z $(find_missing) ]]; then
        echo "deps: going on without the packages ${missing[*]}"
        exit 0
    fi
    command -v sudo >/dev/null || give_up
    as_root=(sudo)
fi

apt_get() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq "$@"
}
install_missing() {
    apt_get install -y --no-install-recommends "${missing[@]}" >/dev/null
}
echo "deps: installing ${missing[*]}"
# Lists may be absent (fresh containers) or too old for the mirror.
if ! compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null || ! install_missing; then
    apt_get update
    install_missing
fi
