#!/bin/bash
# cluster/train.sbatch under a real Slurm: a time limit, a requeue, a node that dies, a slip of the user's. Wherever the
# run goes on, it ends with the weights of one that nobody has interrupted.
source "$(dirname "$0")/common.sh"
source "$(dirname "$0")/slurm.sh"
tiny_data
tiny_run
template=$MUDDPIPE_SOURCE/cluster/train.sbatch
steps=3000
keys=(parallel.threads=1 optimizer.steps=$steps data.valid= checkpoint.every_s=2 parallel.transport="${wires%% *}")
slurm_up
run 0 "$MUDDPIPE" train run.yaml "${keys[@]}" logging.run=plain parallel.transport=auto

submit() { # RUN sbatch options... -- keys...: sets job
    local name=$1 options=()
    shift
    while [[ $1 != -- ]]; do
        options+=("$1")
        shift
    done
    job=$(sbatch --parsable --ntasks-per-node=1 --cpus-per-task=1 --job-name="$name" "${options[@]}" "$template" \
        run.yaml "${keys[@]}" logging.run="$name" "${@:2}")
}

started() { # RUN: a checkpoint is there
    local i
    for ((i = 0; i < 300; i++)); do
        ! compgen -G "$1/checkpoints/step-*" >/dev/null || return 0
        sleep 0.1
    done
    cat slurm-*.out >out
    fail "$1: no checkpoint in 30 s"
}

whole() { # RUN STEPS: it has made each of them once
    python3 - "$1" "$2" <<'END' || fail "$1: holes or doubles in metrics.jsonl"
import json, sys
steps = [json.loads(line)["step"] for line in open(sys.argv[1] + "/metrics.jsonl")]
assert steps == list(range(1, int(sys.argv[2]) + 1))
END
}

same() { # RUN
    cmp "$1/model/model.safetensors" plain/model/model.safetensors || fail "$1: other weights"
    whole "$1" "$steps"
}

# The time is up: the step is finished and saved, and the job that follows goes on. Slurm counts in minutes and sends the
# signal up to one earlier: so that no machine is too quick for that, the run has no end until it has a checkpoint.
cat >endless <<END
#!/bin/bash
run=\$(printf '%s\n' "\$@" | sed -n 's/^logging.run=//p' | tail -n 1)
last=\$(ls "\$run/checkpoints" 2>/dev/null | sed -n 's/^step-//p' | sort -n | tail -n 1)
exec "$MUDDPIPE" "\$@" optimizer.steps=\$((\${last:-1000000} + 50))
END
chmod +x endless
MUDDPIPE=$work/endless MUDDPIPE_FOLLOW_OPTIONS=--time=10 submit limit --nodes=2 --time=1 --signal=B:USR1@55 --
first=$job
job_ends "$first" FAILED 100
grep -q "asked to stop" "slurm-$first.out" || fail "not by a signal"
follower=$(sed -n 's/.*: job \([0-9]*\) follows if.*/\1/p' "slurm-$first.out")
job_ends "$follower" COMPLETED 60
after=$(sed -n 's/.*resumed after step \([0-9]*\).*/\1/p' "slurm-$follower.out" | head -n 1)
[[ -n $after ]] || fail "the job that follows did not go on"
whole limit "$((after + 50))"
last=$(sed -n 's/.*: job \([0-9]*\) follows if.*/\1/p' "slurm-$follower.out")
[[ -z $last || $(job_state "$last") == CANCELLED ]] || fail "a job still waits for a run that is at its end"

# The same job again.
MUDDPIPE_FOLLOW=requeue submit again --nodes=2 --time=10 --
started again
scancel --signal=USR1 --batch "$job"
job_ends "$job" PENDING 60
sleep 3 # until its steps are gone
scontrol update "JobId=$job" StartTime=now # Slurm would wait two minutes
job_ends "$job" COMPLETED 60
grep -q "requeued" "slurm-$job.out" || fail "not requeued"
grep -q "resumed after step " "slurm-$job.out" || fail "the requeued job did not go on"
same again

# A node dies: the job goes on with the spare one.
MUDDPIPE=$work/endless MUDDPIPE_SPARES=1 MUDDPIPE_FOLLOW=none MUDDPIPE_PROBE_S=8 submit dies --nodes=3 --time=10 --
started dies
node_dies n2
job_ends "$job" COMPLETED 90
cp "slurm-$job.out" out
grep -q ": again from step [1-9][0-9]*, without: n2" "slurm-$job.out" || fail "not without the node that died"
after=$(sed -n 's/.*resumed after step \([0-9]*\).*/\1/p' "slurm-$job.out" | tail -n 1)
[[ -n $after ]] || fail "the run did not go on"
whole dies "$((after + 50))"
slurm_node n2
for ((i = 0; i < 300; i++)); do # or a job would be given the others
    [[ $(sinfo -h -n n2 -o %T) == idle ]] && break
    sleep 0.1
done
((i < 300)) || fail "n2 has not come back: $(sinfo -h -n n2 -o %T)"

# A node that preflight names is left out; with no spare for it the job ends. (What preflight itself finds depends on
# the moment here, where nodes share two cores: so its verdict is made up.)
run 0 srun --mpi=pmix --nodes=2 --ntasks=2 bash -c '"$0" preflight parallel.threads=1 "$1" || (($? == 1))' "$MUDDPIPE" "$wire"
says "   0  n1  " "   1  n2  " "pairs between hosts: 1, each way"
cat >named.sh <<END
#!/bin/bash
[[ \$1 != preflight ]] || { echo "WRONG    host n2 (rank 1): made up"; exit 1; }
exec "$MUDDPIPE" "\$@"
END
chmod +x named.sh
export MUDDPIPE_PREFLIGHT=yes MUDDPIPE_FOLLOW=none
MUDDPIPE=$work/named.sh MUDDPIPE_SPARES=1 submit fit --nodes=3 --time=10 -- optimizer.steps=20
job_ends "$job" COMPLETED 60
grep -q "preflight: left out: n2" "slurm-$job.out" || fail "not without the node that preflight named"
MUDDPIPE=$work/named.sh submit unfit --nodes=2 --time=10 --
job_ends "$job" FAILED 60
grep -q "preflight: not fit: n2; spare: 0" "slurm-$job.out" || fail "started on a node that is not fit"
unset MUDDPIPE_PREFLIGHT MUDDPIPE_FOLLOW

# A slip is not tried again and again.
submit slip --nodes=2 --time=10 -- model.n_layer=0
job_ends "$job" FAILED 60
grep -q "no checkpoint since: not tried again" "slurm-$job.out" || fail "tried again"
[[ -z $(squeue -h -t PD) ]] || fail "a job waits for nothing"

# A sweep of six: four come to their end, two lose their loss; submitted again, only these are tried.
cat >grid.yaml <<END
folder: widths
base: run.yaml
keys:
  model.dim: [32, 64]
  optimizer.lr: [3e-4, 1e-3, 1e18]
  optimizer.steps: [30]
  optimizer.warmup: [0]
  data.valid: ["valid.bin"]
END
sweep=$MUDDPIPE_SOURCE/cluster/sweep
export MUDDPIPE_SWEEP=$sweep
run 0 "$sweep" list grid.yaml
says "run-005 model.dim=64 optimizer.lr=1e18"
run 0 "$sweep" submit grid.yaml --time=20
says "6 of 6 runs, in widths"
for ((i = 0; i < 300; i++)); do
    [[ -n $(squeue -h) ]] || break
    sleep 0.2
done
run 0 "$sweep" collect widths
python3 - <<'END' || fail "the table"
import csv
rows = list(csv.DictReader(open("widths/sweep.csv")))
assert [row["state"] for row in rows] == ["done", "done", "failed"] * 2, [row["state"] for row in rows]
assert all(row["steps"] == "30" and 3 < float(row["heldout_loss"]) < 6 for row in rows if row["state"] == "done"), rows
END
run 0 "$sweep" submit grid.yaml --time=20
says "2 of 6 runs, in widths"
scancel --user=root
for words in "model.dim: [32; rm]" "model.dim: [\$(id)]" "logging.run: [a]" "Model: [1]"; do
    printf 'folder: bad\nkeys:\n  %s\n' "$words" >bad.yaml
    run 1 "$sweep" submit bad.yaml
    says "bad.yaml:3: "
done
