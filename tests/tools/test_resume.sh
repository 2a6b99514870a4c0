#!/bin/bash
# Ten steps read the same batches as five and then five from where those stopped: at a learning rate of 0
# the losses are the same, digit for digit. Over several stages, epochs and orders.
source "$(dirname "$0")/common.sh"
python3 "$(dirname "$script")/token_files.py" .
tiny_run
head -c 1500 raw >small # 46 windows: ten steps begin a second epoch
still=(optimizer.lr=0 data.valid=)

train() { # NAME N key=value...
    run_ranks 0 "$2" train run.yaml logging.run="$1" "${still[@]}" "${@:3}"
}

losses() { # NAME: loss and norm of each step
    sed -n 's/.*"loss":\([^,]*\),"grad_norm":\([^,]*\),.*/\1 \2/p' "$1/metrics.jsonl"
}

place() { # NAME: behind the last step
    sed -n 's/.*"sequences":\([0-9]*\),.*/\1/p' "$1/metrics.jsonl" | tail -1
}

resumed() { # NAME key=value...
    local name=$1
    shift
    train "$name" 1 optimizer.steps=10 "$@"
    train "$name-begun" 2 optimizer.steps=5 "$@"
    [[ $(place "$name-begun") == 40 ]] || fail "$name: not 5 steps of 8 sequences"
    train "$name-rest" 3 optimizer.steps=5 data.start=40 model="$name-begun/model" "$@"
    [[ $(place "$name-rest") == 80 ]] || fail "$name: the rest does not go on counting"
    cmp <(losses "$name") <(losses "$name-begun" && losses "$name-rest") || fail "$name: other batches"
    ! cmp -s <(losses "$name-begun") <(losses "$name-rest") || fail "$name: all batches are alike"
}

resumed windows data.train=small
resumed documents data.train=small data.order=documents data.eod=0 data.mask_documents=true
resumed mixture data.train=first.bin:2,second.bin:1

# In microbatches of another size: the place is counted in sequences.
train single 1 data.train=small data.start=72 data.micro_batch=1 parallel.microbatches=8 optimizer.steps=1
python3 - <<'END' || fail "another batch"
import json
last = [json.loads(open(f"{name}/metrics.jsonl").readlines()[-1]) for name in ("windows", "single")]
assert last[0]["sequences"] == last[1]["sequences"] == 80
assert abs(last[0]["loss"] - last[1]["loss"]) < 1e-6, last
END

# Batches that grow: each line has the place behind its own step.
train ramp 2 data.train=small data.start=3 optimizer.ramp_from=1 optimizer.ramp=0.5 optimizer.steps=8
python3 - <<'END' || fail "places do not add up"
import json
place, sizes = 3, set()
for line in open("ramp/metrics.jsonl"):
    step = json.loads(line)
    assert step["tokens"] % 32 == 0
    place += step["tokens"] // 32
    sizes.add(step["tokens"])
    assert step["sequences"] == place, step
assert len(sizes) > 2
END
run 1 "$MUDDPIPE" train run.yaml data.start=-1
says "data.start must be an integer from 0"
