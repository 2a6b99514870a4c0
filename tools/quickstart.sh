#!/bin/bash
# Trains a small MUDDFormer on four pipeline stages of this machine: tools/quickstart.sh [key=value ...]
#
# Sees to libraries, build and text (a free English dictionary, or the file that TEXT names) first;
# what is already there is kept. RANKS is the number of stages, 4 unless set. Ctrl-C ends the run
# after its step, with its weights written; a second Ctrl-C ends it at once.
set -euo pipefail
cd "$(dirname "$0")/.."

ranks=${RANKS:-4}
data=build/data
text_bytes=12000000 # of the dictionary; whole entries from A to about E

# ---- build ----

tools/deps.sh quickstart
generator=()
if [[ ! -f build/CMakeCache.txt ]] && command -v ninja >/dev/null; then
    generator=(-G Ninja)
fi
mkdir -p "$data"
if ! { cmake -S . -B build "${generator[@]}" -DCMAKE_BUILD_TYPE=Release &&
    cmake --build build --target muddpipe --parallel "$(nproc)"; } >build/quickstart.log 2>&1; then
    cat build/quickstart.log
    echo "quickstart: the build failed (build/quickstart.log)" >&2
    exit 1
fi

# ---- text ----

download() { # into the current folder, without installing and without root
    apt-get download -qq dict-gcide 2>/dev/null && return
    # Perhaps the lists of packages are missing.
    if ((EUID == 0)); then
        apt-get update -qq
    else
        sudo -n apt-get update -qq
    fi
    apt-get download -qq dict-gcide
}

dictionary() { # the first bytes of the dictionary, on standard output
    local file=/usr/share/dictd/gcide.dict.dz
    if [[ ! -f $file ]]; then
        (cd "$data" && download >&2 && dpkg -x dict-gcide_*.deb package && rm dict-gcide_*.deb) ||
            return
        file=$data/package$file
    fi
    # dictzip is gzip; head ends it early.
    { zcat <"$file" 2>/dev/null || true; } | head -c "$text_bytes"
}

encode() { # NAME TEXT
    build/muddpipe data encode --force "$2" "$data/$1-train.bin" --valid 0.02 "$data/$1-valid.bin"
}

if [[ -n ${TEXT:-} ]]; then
    encode text "$TEXT"
    set -- data.train="$data/text-train.bin" data.valid="$data/text-valid.bin" "$@"
elif [[ ! -f $data/gcide-train.bin || ! -f $data/gcide-valid.bin ]]; then
    if ! dictionary >"$data/gcide.txt" || [[ ! -s $data/gcide.txt ]]; then
        echo "quickstart: the Debian package dict-gcide cannot be had here; bring an English" \
            "text of a few MB: TEXT=book.txt tools/quickstart.sh" >&2
        exit 1
    fi
    encode gcide "$data/gcide.txt"
    rm -rf "$data/gcide.txt" "$data/package"
fi

# ---- run ----

launch=(mpirun -n "$ranks")
if mpirun --version 2>/dev/null | grep -q 'Open MPI'; then
    launch+=(--oversubscribe --bind-to none)
    ((EUID != 0)) || launch+=(--allow-run-as-root)
fi
export OMP_WAIT_POLICY=passive # ranks may share cores: who waits, sleeps
export UCX_WARN_UNUSED_ENV_VARS=n

# In a session of its own, so that the terminal's Ctrl-C comes here and not to the launcher.
setsid "${launch[@]}" build/muddpipe train tools/quickstart.yaml "$@" &
job=$!
signals=0
stop() { # signal of the first time, then TERM
    signals=$((signals + 1))
    if ((signals == 1)) && [[ $1 == USR1 ]]; then
        echo "quickstart: finishing this step, then writing the weights (Ctrl-C again: at once)" >&2
        kill -USR1 "$job" 2>/dev/null || true
    else
        kill -TERM "$job" 2>/dev/null || true
    fi
}
trap 'stop USR1' INT
trap 'stop TERM' TERM HUP

while true; do
    before=$signals
    code=0
    wait "$job" || code=$?
    ((signals > before)) || exit "$code" # else a signal ended the wait, not the job
done
