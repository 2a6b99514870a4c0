# shellcheck shell=bash disable=SC2154,SC2034
# gpu_jobs.sh - commands that have limits and rows of a part's report. To be sourced by gpu.sh.
#
# $out is the folder of the part, $limit its seconds; `failed` becomes 1 when something is wrong.
report_takes=${GPU_SH_REPORT_TAKES:-20} # seconds that are kept back for the report and for jobs that must be killed
no_time="no time left"
# How a transport says that this is no machine for it.
refusals='refuses|not in this build|is for ranks of|memory of GPUs|no peer access|needs libnccl'

left() { # seconds in which something may still be done
    echo $((limit - report_takes - SECONDS))
}

# A row of the report; a failure ends the part with 1. Not in a subshell.
record() { # KIND NAME ok|FAILED|skipped|refused WORDS
    printf '%s\t%s\t%s\t%s\n' "$@" >>"$out/checks.tsv"
    if [[ $3 == FAILED ]]; then
        say "FAILED  $1: $2: $4"
        failed=1
    fi
}

count() { # KIND [OUTCOME]: rows
    grep -c "^$1	.*	${2:-[a-zA-Z]*}	" "$out/checks.tsv"
}

# Whether there is time for what takes about SECONDS; if not, the report says so.
fits() { # KIND NAME SECONDS
    local spare
    spare=$(left)
    ((spare < $3)) || return 0
    record "$1" "$2" skipped "$no_time: it takes about $3 s, of $limit s there are $((spare > 0 ? spare : 0))"
    return 1
}

# A command that gets SECONDS, or what is left for the part. What it says goes to LOG, and how it ended
# is the last line there.
limited() { # LOG SECONDS command...
    local log=$1 seconds=$2 from=$SECONDS spare code
    shift 2
    spare=$(left)
    if ((spare < 5)); then
        echo "$no_time" >"$log"
        return 124
    fi
    timeout -k 10 "$((spare < seconds ? spare : seconds))" "$@" >"$log" 2>&1 </dev/null
    code=$?
    if ((code != 124 && code != 137)); then
        echo "exit code $code after $((SECONDS - from)) s"
    elif ((spare < seconds)); then
        echo "$no_time: ended after $((SECONDS - from)) s"
    else
        echo "ended at its limit of $seconds s"
    fi >>"$log"
    return "$code"
}

ran_out() { # LOG: the part's time ended it, or it never began
    [[ $(tail -n 1 "$1" 2>/dev/null) == "$no_time"* ]]
}

complaint() { # LOG: its first error and how it ended
    local error
    error=$(grep -om1 'error: .*' "$1")
    echo "${error:+${error#error: }; }$(tail -n 1 "$1")"
}

launch() { # RANKS: what starts them, into the array `launcher`
    launcher=(env)
    (($1 == 1)) || launcher=(mpirun -n "$1" --oversubscribe --bind-to none)
}

# ---- jobs beside each other ----

# Two at a time, with many cores three: most of a job is the start of CUDA, MPI and the transport.
pool=()
at_once=$(($(nproc) < 32 ? 2 : 3))
running() {
    jobs -rp | grep -cxFf <(printf '%s\n' "${pool[@]}")
}

begin() { # command...: as soon as there is room
    while ((${#pool[@]} > 0 && $(running) >= at_once)); do
        wait -n
    done
    "$@" &
    pool+=($!)
}

end_all() { # of the pool; what else runs in the background goes on
    ((${#pool[@]} == 0)) || wait "${pool[@]}"
    pool=()
}

# ---- data ----

# Token ids as a vocabulary has them: few are frequent. 2 million, llm.c's format.
make_tokens() {
    [[ -s $out/tokens.bin ]] || python3 - "$out/tokens.bin" "${GPU_SH_VOCABULARY:-50432}" <<'PYTHON'
import array, random, struct, sys
random.seed(1)
count = 2_000_000
ids = array.array("H", (int(int(sys.argv[2]) ** random.random()) - 1 for _ in range(count)))
with open(sys.argv[1], "wb") as out:
    out.write(struct.pack("<256i", 20240520, 1, count, *[0] * 253))
    ids.tofile(out)
PYTHON
}

model_file() { # NAME of model/configs, or a file
    if [[ $1 == */* ]]; then echo "$1"; else echo "$root/model/configs/$1.json"; fi
}
