#!/bin/bash
# Kills a training job that saves every few steps, again and again, at random moments: kills.sh [ROUNDS]
#
# Every round starts the job where the last one left it, on another number of ranks and under another schedule, and
# ends it with SIGKILL (one rank or all of them) after a random time. Every checkpoint that is there afterwards
# must be whole, none that was said to be saved may be missing unless a newer one is there, and at the end the run goes
# on undisturbed: its weights must be those of a run that was never killed. Without an argument 200 rounds.
# MUDDPIPE is the program.
set -euo pipefail
rounds=${1:-200}
program=${MUDDPIPE:-build/muddpipe}
program=$(realpath "$program")
work=$(mktemp -d "${TMPDIR:-/tmp}/muddpipe-kills.XXXXXX")
trap 'kill -KILL $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT
cd "$work"
cp "$program" muddpipe # under a name that no other job has
program=$work/muddpipe
RANDOM=${SEED:-1}
steps=${STEPS:-400}

seq 1 4000 | awk '{ printf "line %d of %d, %s\n", $1, NR * 7 % 13, substr("abcdefghij", NR % 9) }' >text
"$program" data encode text train.bin >/dev/null
cat >run.yaml <<END
model: {n_layer: 4, n_head: 2, dim: 32, intermediate_size: 256, vocab_size: 256, block_size: 32}
data: {train: train.bin, micro_batch: 2}
parallel: {microbatches: 4}
optimizer: {steps: $steps, lr: 1e-3}
checkpoint: {every: 3, resume: auto}
logging: {run: run}
END
layouts=("1" "2" "2 parallel.schedule=zb-v" "3" "3 parallel.schedule=interleaved" "2 parallel.schedule=gpipe")
ranks_of() { # a layout's words: sets n and keys
    read -r n keys <<<"$1"
}
start() {
    # shellcheck disable=SC2086
    mpirun -n "$n" "$program" train run.yaml ${wire:-} $keys "$@"
}
newest() {
    ls run/checkpoints 2>/dev/null | sed -n 's/^step-//p' | sort -n | tail -1
}

"$program" train run.yaml checkpoint.resume=none checkpoint.every=0 logging.run=plain >plain.out 2>&1
killed=0 finished=0 said=0
for ((round = 1; round <= rounds; round++)); do
    ranks_of "${layouts[RANDOM % ${#layouts[@]}]}"
    start >out 2>&1 </dev/null &
    job=$!
    sleep "$(awk -v r="$RANDOM" 'BEGIN { printf "%.3f", 0.3 + 1.7 * r / 32768 }')"
    victims=$(pgrep -P "$job" || true)
    if ((RANDOM % 2)); then
        victims=$(shuf -n 1 --random-source=<(yes "$RANDOM") <<<"$victims")
    else
        victims="$victims $job"
    fi
    # shellcheck disable=SC2086
    kill -KILL $victims 2>/dev/null && killed=$((killed + 1)) || true
    code=0
    wait "$job" 2>/dev/null || code=$?
    while pgrep -f "^$program" >/dev/null; do # the others end by themselves
        sleep 0.05
    done
    for folder in run/checkpoints/step-*; do
        [[ ! -d $folder ]] || "$program" ckpt verify "$folder" >verified 2>&1 || {
            cat verified out
            echo "kills: round $round: $folder is not whole" >&2
            exit 1
        }
    done
    last=$(sed -n 's/.*saved run\/checkpoints\/step-\([0-9]*\) .*/\1/p' out | tail -1)
    said=$((${last:-0} > said ? last : said))
    [[ $(newest) -ge $said ]] || {
        echo "kills: round $round: step $said was said to be saved, and the newest is $(newest)" >&2
        exit 1
    }
    if ((code == 0)); then # at its end: once more from the middle
        finished=$((finished + 1))
        cmp run/model/model.safetensors plain/model/model.safetensors
        rm -rf run
        said=0
    fi
done
ranks_of "2"
start >out 2>&1 </dev/null || {
    cat out
    echo "kills: the run does not go on after the last kill" >&2
    exit 1
}
cmp run/model/model.safetensors plain/model/model.safetensors || {
    echo "kills: other weights than those of the run that was never killed" >&2
    exit 1
}
echo "kills: $rounds rounds, $killed killed, $finished came to their end; every checkpoint whole, the weights the same"
