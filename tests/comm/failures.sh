#!/bin/bash
# What a user sees when a rank is lost: failures.sh MPIEXEC RANKS_PROGRAM TRANSPORT FAILURE [cuda].
#
# Starts the ranks, lets them wait for rank 0, does real harm (kill -9, SIGSTOP, SIGTERM), and then
# looks: does the job end in time, with an error, and does every survivor name the lost rank and its
# own operation?
set -euo pipefail
mpiexec=$1 program=$2 transport=$3 failure=$4 device=${5:-}
operation="step 12: wait for X_3 of microbatch 5 from rank 0"
folder=$(mktemp -d)
trap 'kill -KILL $job 2>/dev/null || true; rm -rf "$folder"' EXIT
job=

fail() {
    echo "$failure over $transport: $1"
    sed 's/^/    /' "$folder/out" "$folder/err"
    exit 1
}

# launch RANKS MODE [mpiexec options]
launch() {
    local ranks=$1 mode=$2
    shift 2
    : >"$folder/out"
    "$mpiexec" -n "$ranks" "$@" ${hosts:+bash "$hosts"} "$program" "$mode" "$transport" \
        ${device:+--device "$device"} >"$folder/out" 2>"$folder/err" &
    job=$!
}

# start RANKS MODE [mpiexec options]: returns when every rank is ready.
start() {
    local ranks=$1
    launch "$@"
    for ((i = 0; i < 200; i++)); do
        [[ $(grep -c ^ready "$folder/out") == "$ranks" ]] && break
        if grep -m 1 ^skipped "$folder/out"; then
            exit 77
        fi
        sleep 0.1
    done
    ((i < 200)) || fail "the ranks did not start"
    sleep 0.3
    began=$(date +%s%N)
}

signal() { # signal NAME RANK
    kill -s "$1" "$(awk -v rank="$2" '$1 == "ready" && $2 == rank {print $3}' "$folder/out")"
}

# ended SECONDS: the job is over by then, not with success.
ended() {
    local code=0
    for ((i = 0; i < $1 * 10; i++)); do
        kill -0 $job 2>/dev/null || break
        sleep 0.1
    done
    ((i < $1 * 10)) || fail "still running after $1 s"
    wait $job || code=$?
    echo "ended with $code after $((($(date +%s%N) - began) / 1000000)) ms"
    [[ $code != 0 || ${tolerant:-} ]] || fail "ended with success"
}

# said RANK TEXT: a line of that rank has the text.
said() {
    grep -F "[rank $1] " "$folder/err" | grep -qF "$2" || fail "rank $1 did not say: $2"
}

case $failure in
kill) # while rank 1 waits for a message, the others in a barrier
    start 3 hang
    signal KILL 2
    ended 10
    said 0 "rank 2 died (killed?) while rank 0 was in $operation"
    said 1 "rank 2 died (killed?) while rank 1 was in $operation"
    ;;
kill_elsewhere) # each rank on a host of its own
    if ! unshare --uts --time --monotonic=1000 --fork true 2>/dev/null; then
        echo "skipped: no right to make namespaces (unshare --uts --time)"
        exit 77
    fi
    export OMPI_MCA_btl=tcp,self
    hosts=$(dirname "$0")/hosts.sh
    start 3 hang
    signal KILL 2
    ended 10
    said 0 "rank 2 died (killed?) while rank 0 was in $operation"
    said 1 "rank 2 died (killed?) while rank 1 was in $operation"
    ;;
kill_sender)
    start 4 hang
    signal KILL 0
    ended 10
    for rank in 1 2 3; do
        said $rank "rank 0 died (killed?) while rank $rank was in $operation"
    done
    ;;
released) # the launcher does nothing: waiting streams go on by themselves
    tolerant=1
    start 4 hang --enable-recovery
    signal KILL 0
    ended 8
    for rank in 1 2 3; do
        said $rank "rank 0 died (killed?) while rank $rank was in $operation"
    done
    ! grep -q "by force" "$folder/err" || fail "a rank was still waiting"
    ;;
stop)
    export HEARTBEAT=2
    start 3 hang
    signal STOP 0
    ended 20
    said 1 "rank 0 has not answered for 2 s (stopped or unreachable) while rank 1 was in $operation"
    said 2 "rank 0 has not answered for 2 s"
    state=$(awk '/^State/ {print $2}' "/proc/$(awk '$2 == 0 {print $3}' "$folder/out")/status" \
        2>/dev/null || true)
    [[ -z $state || $state == Z ]] || fail "rank 0 still exists, in state $state"
    ;;
stop_early) # in MPI_Init, before anybody watches
    export HEARTBEAT=2 START=4 LATE=1
    launch 3 hang
    for ((i = 0; i < 100; i++)); do
        grep -q ^late "$folder/out" && break
        sleep 0.1
    done
    pid=$(awk '/^late/ {print $2}' "$folder/out")
    kill -s STOP "$pid" || fail "rank 0 did not start"
    began=$(date +%s%N)
    ended 30
    grep -q "rank [12]: MPI has not started after 4 s: a rank is stopped" "$folder/err" ||
        fail "no word about the start"
    ! grep -q ^ready "$folder/out" || fail "the group opened without rank 0"
    state=$(awk '/^State/ {print $2}' "/proc/$pid/status" 2>/dev/null || true)
    [[ -z $state || $state == Z ]] || fail "rank 0 still exists, in state $state"
    ;;
start_slow) # within the limit; and the limit is no news once the group is open
    export START=2 LATE=0.5
    start 3 fail
    ended 10
    said 1 "rank 0 gave up"
    ! grep -q "has not started" "$folder/err" || fail "a slow start was ended"
    ;;
term) # one rank, several times: whoever leaves because of it is not to blame
    for victim in 1 3 0 2 1; do
        start 4 hang
        signal TERM $victim
        ended 10
        said $victim "rank $victim ends on SIGTERM"
        for ((rank = 0; rank < 4; rank++)); do
            ((rank == victim)) ||
                said $rank "rank $victim was ended by SIGTERM while rank $rank was in $operation"
        done
        ! grep -q "died" "$folder/err" || fail "a rank is said to have died"
    done
    ;;
term_all) # as a launcher ends a job
    start 3 hang
    kill -s TERM $job
    ended 10
    for rank in 0 1 2; do
        said $rank "rank $rank ends on SIGTERM"
        said $rank "$operation"
    done
    ;;
give_up)
    start 3 fail
    ended 10
    said 0 "the loss of step 12 is not a number"
    said 1 "rank 0 gave up (its own message says why) while rank 1 was in $operation"
    said 2 "rank 0 gave up"
    ;;
leave) # a process that ends without a word
    start 3 exit
    ended 10
    said 1 "rank 0 died"
    said 2 "rank 0 died"
    ;;
force) # the launcher does nothing and the main threads notice nothing
    tolerant=1
    start 3 stuck --enable-recovery
    signal KILL 1
    ended 15
    said 0 "rank 1 died (killed?) while rank 0 was in $operation"
    said 0 "rank 0 is ended by force"
    said 2 "rank 2 is ended by force"
    ;;
*)
    echo "unknown failure $failure"
    exit 2
    ;;
esac
