# slurm.sh - a real Slurm of its own on this machine: three nodes of one task, munge, PMIx. To be sourced after
# common.sh. Wants root, slurm-wlm and munge; without one of them the test is skipped, or fails where WANT_SLURM is set.
missing=""
for program in slurmctld slurmd sbatch munged mungekey; do
    command -v "$program" >/dev/null || PATH=$PATH:/usr/sbin
    command -v "$program" >/dev/null || missing+=" $program"
done
((EUID == 0)) || missing+=" root"
if [[ -n $missing ]]; then
    echo "skipped: not here:$missing"
    [[ -z ${WANT_SLURM:-} ]] || exit 1
    exit 77
fi
slurm=$work/slurm
export SLURM_CONF=$slurm/slurm.conf

slurm_down() {
    local pid
    [[ ! -e $SLURM_CONF ]] || timeout 10 scancel --user=root 2>/dev/null || true
    sleep 1
    for pid in $(cat "$slurm"/*.pid 2>/dev/null); do
        kill -KILL "$pid" 2>/dev/null || true
    done
}
trap 'slurm_down; rm -rf "$work"' EXIT

slurm_node() { # NAME: its slurmd
    slurmd -N "$1" || fail "no slurmd for $1: $(tail -n 3 "$slurm/$1.log")"
}

slurm_up() {
    local host port=$((20000 + RANDOM % 20000)) i
    host=$(hostname -s)
    mkdir -p "$slurm"/{ctl,spool}
    chmod 755 "$work" "$slurm"
    mungekey -c -k "$slurm/munge.key"
    munged --force --key-file="$slurm/munge.key" --socket="$slurm/munge.socket" --pid-file="$slurm/munged.pid" \
        --log-file="$slurm/munged.log" --seed-file="$slurm/munge.seed" 2>/dev/null
    cat >"$SLURM_CONF" <<END
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$slurm/munge.socket
CredType=cred/munge
StateSaveLocation=$slurm/ctl
SlurmctldPidFile=$slurm/slurmctld.pid
SlurmctldLogFile=$slurm/slurmctld.log
SlurmdPidFile=$slurm/%n.pid
SlurmdLogFile=$slurm/%n.log
SlurmdSpoolDir=$slurm/spool/%n
TmpFS=$slurm/spool/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=pmix
ReturnToService=2
SlurmdTimeout=5
KillWait=5
MinJobAge=600
JobRequeue=1
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=1,requeue_delay=1
END
    for i in 1 2 3; do
        mkdir -p "$slurm/spool/n$i"
        echo "NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + i)) CPUs=2 RealMemory=1000" \
            >>"$SLURM_CONF"
    done
    echo "PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP" >>"$SLURM_CONF"
    slurmctld || fail "no slurmctld"
    for i in 1 2 3; do
        slurm_node "n$i"
    done
    for ((i = 0; i < 100; i++)); do
        [[ $(sinfo -h -t idle -o %D 2>/dev/null) != 3 ]] || return 0
        sleep 0.2
    done
    sinfo
    fail "the nodes do not come up: $(tail -n 3 "$slurm/slurmctld.log")"
}

node_dies() { # NAME: its slurmd, its tasks, and what started them
    local pid parent
    for pid in $(pgrep -x muddpipe || true); do
        if grep -zqx "SLURMD_NODENAME=$1" "/proc/$pid/environ" 2>/dev/null; then
            parent=$(ps -o ppid= -p "$pid")
            kill -KILL "$pid" $parent 2>/dev/null || true
        fi
    done
    kill -KILL "$(cat "$slurm/$1.pid")"
}

job_state() { # JOB
    scontrol show job "$1" 2>/dev/null | sed -n 's/.*JobState=\([A-Z_]*\).*/\1/p'
}

job_ends() { # JOB STATE SECONDS
    local i
    for ((i = 0; i < $3 * 5; i++)); do
        [[ $(job_state "$1") != "$2" ]] || return 0
        sleep 0.2
    done
    cat slurm-*.out >out 2>/dev/null || true
    fail "job $1 is $(job_state "$1") after $3 s, not $2"
}
