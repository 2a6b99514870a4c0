# jobs.sh - runs of $job_ranks ranks (four) that are ended from outside. To be sourced after common.sh.
mpirun --version 2>/dev/null | grep -q 'Open MPI' || {
    echo "skipped: written for Open MPI's mpirun"
    exit 77
}
program=$MUDDPIPE
job=""
trap '[[ -z $job ]] || kill -KILL $job ${pids:-} 2>/dev/null || true; rm -rf "$work"' EXIT

lines() {
    if [[ -f run/metrics.jsonl ]]; then wc -l <run/metrics.jsonl; else echo 0; fi
}

start() { # key=value...: a run of some hours; returns in its fourth step or later
    local i
    rm -rf run
    mpirun -n "${job_ranks:-4}" "$program" train run.yaml optimizer.steps=1000000 logging.run=run $wire "$@" \
        >out 2>&1 </dev/null &
    job=$!
    for ((i = 0; i < 300 && $(lines) < 3; i++)); do
        sleep 0.1
    done
    (($(lines) >= 3)) || fail "no steps in 30 s"
    pids=$(pgrep -P "$job")
}

pid_of() { # RANK
    local pid
    for pid in $pids; do
        if grep -zqx "OMPI_COMM_WORLD_RANK=$1" "/proc/$pid/environ"; then
            echo "$pid"
        fi
    done
}

alive() { # PID: neither gone nor a zombie
    [[ -d /proc/$1 ]] && ! grep -q '^State:.*Z' "/proc/$1/status" 2>/dev/null
}

ends() { # SECONDS: the whole job is gone by then; sets code
    local limit=$((SECONDS + $1)) pid
    for pid in $job $pids; do
        while alive "$pid"; do
            ((SECONDS < limit)) || fail "process $pid is still there after $1 s"
            sleep 0.1
        done
    done
    code=0
    wait "$job" || code=$?
    job=""
}

clean() { # the run folder: whole lines, no half files
    [[ -z $(find run -name '*.part*') ]] || fail "half a file: $(find run -name '*.part*')"
    python3 - <<'END' || fail "metrics.jsonl is damaged"
import json
text = open("run/metrics.jsonl").read()
assert text.endswith("\n")
steps = [json.loads(line)["step"] for line in text.splitlines()]
assert steps == list(range(1, len(steps) + 1))
END
}

doing='in step [0-9]*: [a-zA-Z]' # an operation, in the program's own words
