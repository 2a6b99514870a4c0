#!/bin/bash
# What was once taken for something else, or for success: weights under other names, losses that are no numbers,
# output that did not arrive, a terminal that goes away, a limit on the size of files.
source "$(dirname "$0")/common.sh"
tiny_data
tiny_run

run 0 "$MUDDPIPE" train run.yaml logging.run=made
says "weights: new ones, made from seed 1"
run 0 "$MUDDPIPE" train run.yaml model=made/model logging.run=on data.seq_len=32
says "weights: read from made/model"
for name in weights.safetensors pytorch_model.bin model-00001-of-00002.safetensors consolidated.pth; do
    rm -rf other
    mkdir other
    cp made/model/config.json other
    cp made/model/model.safetensors "other/$name"
    run 1 "$MUDDPIPE" train run.yaml model=other
    says "model other: it has $name, but weights are read from model.safetensors" "model=other/config.json"
done
run 0 "$MUDDPIPE" train run.yaml model=other/config.json logging.run=new optimizer.steps=1
says "weights: new ones"

# Files that are no text; a text under a vocabulary that it cannot fill.
gzip -k -c train.bin >train.gz
tail -c 8000 train.bin >train.u16
run 1 "$MUDDPIPE" train run.yaml data.train=train.u16
says "train.u16: the name says that tokens have several bytes each"
run 1 "$MUDDPIPE" train run.yaml data.train=train.gz
says "train.gz: it begins as gzip does and is no text"
run 0 "$MUDDPIPE" train run.yaml data.train=text data.valid= model.vocab_size=50432 optimizer.steps=1 logging.run=wide
says "no token is above 255, and the vocabulary has 50432"
run 0 "$MUDDPIPE" train run.yaml data.train=text data.valid= optimizer.steps=1 logging.run=narrow
! grep -q 'no token is above' out || fail "a warning for bytes under a vocabulary of bytes"

# A held-out loss of nan.
python3 "$(dirname "$script")/broken.py" "$golden/muddformer-tiny" broken
python3 -c 'import sys; sys.stdout.buffer.write(bytes(i * 7 % 64 for i in range(5000)))' >small.txt
for n in 1 2; do
    run_ranks 1 "$n" eval model=broken/infinite data.valid=small.txt data.seq_len=16
    says "the loss of the held-out sequences 0 to 7 is "
    ! grep -q 'held-out loss nan' out || fail "a loss that is none"
done

# Numbers and names that would become others.
run 1 "$MUDDPIPE" train run.yaml optimizer.lr=1e-400 logging.run=none
says "optimizer.lr must be" "not '1e-400'"
run 1 "$MUDDPIPE" train run.yaml logging.run=$'r\xff'
says "logging.run must be at most" "bytes of UTF-8 text"
run 0 "$MUDDPIPE" train run.yaml logging.run='größe 漢' optimizer.steps=1
run 0 "$MUDDPIPE" train 'größe 漢/config.yaml' logging.run=reread
cp train.bin 'a,b.bin'
run 1 "$MUDDPIPE" train run.yaml data.train='a,b.bin'
says '`a,b.bin` is the name of a file, and a list of several for its comma' "data.train=@FILE"
echo 'a,b.bin' >names
run 0 "$MUDDPIPE" train run.yaml data.train=@names optimizer.steps=1 logging.run=listed
python3 -c '
import struct
for name, order in ("big.bin", ">"), ("little.bin", "<"):
    header = struct.pack(order + "256i", 20240520, 1, 1000, *[0] * 253)
    open(name, "wb").write(header + struct.pack(order + "1000H", *[5] * 1000))'
run 1 "$MUDDPIPE" data inspect big.bin
says "big.bin: an llm.c token file with big-endian numbers"
run 0 "$MUDDPIPE" data inspect little.bin
: >empty.txt
run 1 "$MUDDPIPE" data encode empty.txt empty.bin
says "empty.txt: 0 bytes of text are too few"
run 1 bash -c 'ulimit -s 256; "$0" train run.yaml' "$MUDDPIPE"
says "the stack may have 256 KiB only" "ulimit -s 8192"
run 1 mpirun -n 1 "$MUDDPIPE" train run.yaml parallel.pp=40 parallel.transport=threads
says "without mpirun or srun, as parallel.transport=threads wants it"

# Output that does not arrive.
for command in "plan run.yaml" "ckpt --help" "--help-config" "--version" "data inspect train.bin"; do
    # shellcheck disable=SC2086
    run 1 bash -c '"$0" "$@" >/dev/full' "$MUDDPIPE" $command
    says "could not be written: No space left on device"
done
run 0 bash -c 'set -o pipefail; "$0" train run.yaml optimizer.steps=40 logging.run=piped | head -n 1' "$MUDDPIPE"
[[ -s piped/model/model.safetensors && $(wc -l <piped/metrics.jsonl) == 40 ]] || fail "a run ended with its terminal"
run 1 bash -c 'ulimit -f 100; "$0" train run.yaml logging.run=limited' "$MUDDPIPE"
says "File too large"
[[ ! -e limited/model/model.safetensors ]] || fail "half a model"

# SIGHUP ends in order; one that is ignored stays so.
"$MUDDPIPE" train run.yaml optimizer.steps=1000000 logging.run=hup >hup.out 2>&1 &
job=$!
for ((i = 0; i < 100; i++)); do
    [[ ! -s hup/metrics.jsonl ]] || break
    sleep 0.1
done
kill -HUP "$job"
wait "$job" || fail "exit code $? after SIGHUP"
[[ -s hup/model/model.safetensors ]] || fail "no weights after SIGHUP"
nohup "$MUDDPIPE" train run.yaml optimizer.steps=1000000 logging.run=nohup >nohup.out 2>&1 &
job=$!
trap 'kill -KILL "$job" 2>/dev/null || true; rm -rf "$work"' EXIT
for ((i = 0; i < 100; i++)); do
    [[ ! -s nohup/metrics.jsonl ]] || break
    sleep 0.1
done
kill -HUP "$job"
sleep 1
before=$(wc -l <nohup/metrics.jsonl)
sleep 1
(($(wc -l <nohup/metrics.jsonl) > before)) || fail "nohup's ignoring was not kept"
