#!/bin/bash
# Several folders in one `muddpipe check`: each has its turn whatever becomes of the others, --save and
# --same have a file for each, a lost rank ends it all.
source "$(dirname "$0")/common.sh"
source "$(dirname "$0")/jobs.sh"
three=("$golden"/{muddformer-tiny,muddformer-k2-tiny,transformerpp-tiny})
python3 "$(dirname "$script")/alter.py" "$golden/muddformer-tiny" altered
python3 "$(dirname "$script")/broken.py" "$golden/muddformer-tiny" broken

run 0 "$MUDDPIPE" check "${three[@]}" --save kept
says "passed: ${three[0]}, 1 stage" "passed: ${three[2]}, 1 stage" "; worst: " "3 of 3 passed"
[[ $(ls kept) == $'muddformer-k2-tiny.safetensors\nmuddformer-tiny.safetensors\ntransformerpp-tiny.safetensors' ]] ||
    fail "other files than one for each case: $(ls kept)"

all_same() { # N key=value...
    run_ranks 0 "$1" check "${three[@]}" --same kept "${@:2}"
    says "3 of 3 passed"
    (($(grep -c '^same bits as kept/' out) == 3)) || fail "not three times the same bits"
}
for n in 1 2 4; do
    for transport in $wires; do
        all_same "$n" parallel.transport="$transport"
    done
done
all_same 1 parallel.transport=threads parallel.pp=3 parallel.schedule=gpipe
run_ranks 0 2 check "${three[@]}" --steps 10
says "step  10  loss " "3 of 3 passed"

# One folder: a file, or one of a folder's.
run 0 "$MUDDPIPE" check "${three[0]}/" --save one.safetensors
cmp one.safetensors kept/muddformer-tiny.safetensors || fail "other bytes alone"
for place in kept one.safetensors; do
    run_ranks 0 2 check "${three[0]}/" --same "$place"
    says "same bits as "
    ! grep -q ' of .* passed' out || fail "one case is counted"
done

# Bits that differ by the least there is, and a zero's sign: the first tensor is named.
other_bits() { # CASE TENSOR [sign]: flips a bit of its last value; of its first zero
    python3 - "$@" <<'END2'
import json, struct, sys
path = f"other/{sys.argv[1]}.safetensors"
data = bytearray(open(path, "rb").read())
(size,) = struct.unpack_from("<Q", data)
begin, end = (8 + size + at for at in json.loads(data[8:8 + size])[sys.argv[2]]["data_offsets"])
if len(sys.argv) > 3:
    at = next(at for at in range(begin, end, 4) if data[at:at + 4] == bytes(4))
    data[at + 3] ^= 0x80
else:
    data[end - 4] ^= 1
open(path, "wb").write(data)
END2
}
cp -r kept other
other_bits muddformer-k2-tiny grad.output.weight
other_bits muddformer-k2-tiny grad.norm.weight
for n in 1 2 4; do
    run_ranks 1 "$n" check "${three[@]}" --same other
    says "${three[1]}: other bits than in other/muddformer-k2-tiny.safetensors: 2 of 83 tensors, the first \`grad." \
        ", off by " "2 of 3 passed; failed: muddformer-k2-tiny"
    ! grep -q ' FAILED$' out || fail "off from the reference"
done
rm -r other && cp -r kept other
other_bits muddformer-tiny grad.tok_embeddings.weight sign # of a token that the case has not
run_ranks 1 2 check "${three[0]}" --same other
says "1 of 67 tensors, the first \`grad.tok_embeddings.weight\`, off by "
cp kept/muddformer-k2-tiny.safetensors other/muddformer-tiny.safetensors
run 1 "$MUDDPIPE" check "${three[@]}" --same other
says "holds 83 tensors where this case has 67" "2 of 3 passed; refused: muddformer-tiny"
rm other/*k2*
run 1 "$MUDDPIPE" check "${three[@]}" --same other
says "other/muddformer-k2-tiny.safetensors: " "1 of 3 passed; failed: muddformer-k2-tiny; refused: muddformer-tiny"

# What is off, broken, missing, or broken on one rank alone; the rest passes.
mixed=("${three[0]}" altered/grad.norm.weight broken/missing none broken/json_heads broken/infinite "${three[2]}")
for n in 1 2 4; do
    run_ranks 1 "$n" check "${mixed[@]}"
    says "altered/grad.norm.weight: 1 of 67 comparisons" "altered/grad.norm.weight failed (" \
        "broken/missing is refused (" "broken/infinite failed (" "passed: ${three[2]}, $n stage" \
        "2 of 7 passed; failed: grad.norm.weight, none, infinite; refused: missing, json_heads"
    ! grep -q 'gave up\|died' out || fail "not a quiet end"
done
run 1 "$MUDDPIPE" check "${mixed[@]}" --steps 2 parallel.transport=threads parallel.pp=2
says "3 of 7 passed; failed: none, infinite; refused: missing, json_heads"
run 1 "$MUDDPIPE" check "${three[@]}" parallel.transport=threads parallel.pp=11
says "11 stages, but the model can be cut into at most 10" "passed: ${three[1]}, 11 stages" \
    "; refused: muddformer-tiny"

# Command lines.
run 2 "$MUDDPIPE" check
run 2 "$MUDDPIPE" check "${three[@]}" broken/../"$(basename "$golden")"/muddformer-tiny/ --save kept
says "of different names"
run 2 "$MUDDPIPE" check "${three[@]}" --steps 2 --save kept
says "not for --steps"
run 1 "$MUDDPIPE" check "${three[@]}" --save none/kept
says "--save: cannot make the folder none/kept"

# A lost rank is the end of all.
mapfile -t many < <(for ((i = 0; i < 1000; i++)); do echo "${three[0]}"; done)
rm out # which says `passed`
mpirun -n 2 "$MUDDPIPE" check "${many[@]}" $wire >out 2>&1 </dev/null &
job=$!
for ((i = 0; i < 300; i++)); do
    ! grep -qs '^passed' out || break
    sleep 0.1
done
pids=$(pgrep -P "$job")
kill -KILL "$(pid_of 1)"
ends 10
((code != 0)) || fail "exit code 0 after SIGKILL"
says "error: rank 1 died"
! grep -q 'of 1000 passed' out || fail "went on without rank 1"

# Ctrl-C ends it between two cases.
rm out
"$MUDDPIPE" check "${many[@]}" parallel.transport=threads parallel.pp=2 >out 2>&1 </dev/null &
job=$!
pids=
for ((i = 0; i < 300; i++)); do
    ! grep -qs '^passed' out || break
    sleep 0.1
done
kill -USR1 "$job"
ends 10
((code == 1)) || fail "exit code $code after SIGUSR1"
says "stopped by a signal after "
