#!/bin/bash
# Bad input ends every rank within seconds, with exit code 1 and a message that names place and remedy.
source "$(dirname "$0")/common.sh"
limit=20 # seconds; a hang fails
tiny_data
tiny_run
python3 "$(dirname "$script")/broken.py" "$golden/muddformer-tiny" broken

alone() { # WORDS... -- arguments...
    local words=()
    while [[ $1 != -- ]]; do
        words+=("$1")
        shift
    done
    run 1 "$MUDDPIPE" "${@:2}"
    says "${words[@]}"
}

both() { # WORDS... -- arguments...: alone, and each of two ranks says so
    local words=() said
    alone "$@"
    while [[ $1 != -- ]]; do
        words+=("$1")
        shift
    done
    run_ranks 1 2 "${@:2}"
    said=$(grep -cF -- "${words[0]}" out || true)
    ((said == 2)) || fail "${words[0]}: $said of 2 ranks say so"
    says "${words[@]}"
    ! grep -qi -e 'signal' -e 'gave up' out || fail "not a quiet end"
}

# Keys, types and ranges: from arguments and from files.
both "argument 2: unknown key paralel.microbatches; did you mean parallel.microbatches?" \
    -- train run.yaml paralel.microbatches=2
alone "argument 2: optimizer.steps must be an integer of at least 1, not 'many'" \
    -- train run.yaml optimizer.steps=many
alone "argument 2: optimizer.steps must be an integer of at least 1, not '0'" \
    -- train run.yaml optimizer.steps=0
alone "argument 2: " "model.n_head must be an integer" -- train run.yaml model.n_head=x
alone "argument 2: " "dense.key_dilation" -- train run.yaml dense.key_dilatoin=2
alone "optimizer.beta2 must be a number of at least 0 and below 1 (" -- train run.yaml optimizer.beta2=1
alone "optimizer.eps must be a number above 0 and at most 1 (" -- train run.yaml optimizer.eps=0
alone "unknown key a.b.c.d; \`muddpipe --help-config\` lists the keys" -- train run.yaml a.b.c.d=1
alone "parallel.schedule must be" -- train run.yaml parallel.schedule=random
sed 's/steps/step/' run.yaml >typo.yaml
both "typo.yaml:4:13: unknown key optimizer.step; did you mean optimizer.steps?" -- train typo.yaml
sed 's/microbatches: 4/microbatches: four/' run.yaml >type.yaml
alone "type.yaml:3:26: parallel.microbatches must be an integer" -- train type.yaml
sed 's/n_layer: 4/n_layers: 4/' run.yaml >model.yaml
both "model.yaml:1:9: unknown key model.n_layers; did you mean model.n_layer?" -- train model.yaml
echo "model: {" >broken.yaml
alone "broken.yaml:" -- train broken.yaml
alone "none.yaml: cannot open" -- train none.yaml

# bf16 is for GPUs. Where there is one, only the host refuses it.
both "precision=bf16 with device=cpu: the host computes in float32 only" \
    "use precision=float32, or device=cuda" -- train run.yaml precision=bf16 device=cpu
CUDA_VISIBLE_DEVICES= alone "precision=bf16 with device=auto: the host computes in float32 only, and " \
    -- train run.yaml precision=bf16
run 0 "$MUDDPIPE" plan run.yaml precision=bf16 parallel.recompute=full
says "precision bf16, recompute full"

# Layouts.
alone "11 stages" "at most 10" "parallel.pp=10" \
    -- train run.yaml parallel.pp=11 parallel.transport=threads
run_ranks 1 11 train run.yaml
(($(grep -c "11 stages, but the model can be cut into at most 10" out) == 11)) || fail "not all ranks"
alone "adds up to 9 units" "has 10" \
    -- train run.yaml parallel.partition=5,4 parallel.transport=threads parallel.pp=2
alone "choose one" "dense.sources" -- train run.yaml dense.window=2 dense.block_size=2
both "n_head 3" "divides dim" -- train run.yaml model.n_head=3
alone "run.yaml and the command line: model: n_head 3" -- train run.yaml model.n_head=3
sed 's/n_head: 2/n_head: 3/' run.yaml >heads.yaml
alone "heads.yaml: model: n_head 3" -- train heads.yaml
alone "broken/json_heads/config.json: model: n_head 3" -- check broken/json_heads
alone "n_local_heads 3 must divide n_head 2" -- train run.yaml model.n_local_heads=3
alone "optimizer.ramp_from is 5, but a full step has 4 microbatches" -- train run.yaml optimizer.ramp_from=5
alone "optimizer.warmup 0.6 and optimizer.decay 0.5 are more than all steps" "a decay of 0.4" \
    -- train run.yaml optimizer.schedule=wsd optimizer.warmup=0.6 optimizer.decay=0.5
alone "logging.sample_tokens must be an integer from 0 to 1048576" \
    -- train run.yaml logging.sample_tokens=4294967297
alone "samples are bytes: the vocabulary of 130 is too small" \
    -- train run.yaml logging.sample_tokens=3 model.vocab_size=130
alone "model: mudd_postnorm_ways is not used" "data.train names no" \
    -- train run.yaml model.mudd_postnorm_ways=r data.train=
alone "model: depth_attention_block is not used" "data.train names no" \
    -- train run.yaml model.depth_attention_block=2 data.train=
while read -r words; do # what has no effect, and patterns larger than the model, are pointed out
    read -ra arguments
    run 0 "$MUDDPIPE" plan run.yaml "${arguments[@]}"
    says "warning: run.yaml and the command line: $words"
done <<'END'
dense: key_residue is not used
dense.key_residue=query
dense: block_summary is not used
dense.block_summary=mean
dense: inner is not used
dense.inner=8 model.dynamic_dense=false
model.dense is false: the pattern of dense connections is not used
model.dense=false dense.sources=3=0
model.dense is false: the pattern of dense connections is not used
model.dense=false model.dense_ways=r
model: mudd_postnorm_ways names no way that is formed
model.mudd_postnorm=true model.dense_ways=qv
dense: key_dilation 4 in 4 layers: no key but X_0 and the newest is read
dense.key_dilation=4
dense: query_period 5 in 4 layers: only the last layer has an aggregate
dense.query_period=5
dense: window 4 in 4 layers: every key is read
dense.window=4
dense: block_size 9 in 4 layers: every key is read
dense.block_size=9
END
run_ranks 0 2 train run.yaml dense.window=9 data.order=documents data.eod=255 data.valid= logging.run=large
(($(grep -c "warning: .*dense: window 9 in 4 layers" out) == 1)) || fail "not one warning"
(($(grep -c "warning: train.bin: no token 255 ends a document here" out) == 1)) || fail "not one warning"
run_ranks 0 2 train run.yaml data.mask_documents=true data.eod=255 data.valid= logging.run=masked
(($(grep -c "warning: train.bin: no token 255 ends a document here" out) == 1)) || fail "not one warning"
run 0 "$MUDDPIPE" plan run.yaml "dense.sources=3:vr=0; 3:q=0,3; 4:vr=0,4;"
! grep -q warning out || fail "a warning without need"
run 0 "$MUDDPIPE" train run.yaml data.seq_len=1 logging.sample_tokens=5 data.valid= logging.run=one
alone "data.seq_len is 64" "block_size 32" -- train run.yaml data.seq_len=64
run 1 mpirun -n 2 "$MUDDPIPE" train run.yaml parallel.transport=threads
says "transport threads is for ranks of one process" "ucx or mpi"

# parallel.pp against the ranks started: the line that the message gives works as it stands.
launch_line() { # command...
    run 1 "$@"
    sed -n 's/.*run `\([^`]*\)`.*/\1/p' out | head -1
}
line=$(launch_line "$MUDDPIPE" train run.yaml parallel.pp=2 "logging.sample_prompt=it's" "$wire")
run 0 bash -c "$line logging.run=line1"
says "2 stages"
line=$(launch_line mpirun -n 2 "$MUDDPIPE" train run.yaml parallel.pp=3 "$wire")
(($(grep -c "parallel.pp is 3 but 2 ranks were started: run" out) == 2)) || fail "not both ranks"
run 0 bash -c "$line logging.run=line2"
says "3 stages"

# Different configurations on the ranks.
run 1 mpirun -n 1 "$MUDDPIPE" train run.yaml "$wire" : \
    -n 1 "$MUDDPIPE" train run.yaml "$wire" optimizer.lr=1
says "[rank 1] error: this rank was started with another configuration than rank 0: \`lr: 1\`" \
    "[rank 0] error: rank 1 failed"
sed 's/n_layer: 4/n_layer: 5/' run.yaml >five.yaml
run 1 mpirun -n 1 "$MUDDPIPE" train run.yaml "$wire" : -n 1 "$MUDDPIPE" train five.yaml "$wire"
says "\`n_layer: 5\` here, \`n_layer: 4\` there" "[rank 0] error: rank 1 failed"

# Token files.
both "cannot open token file none.bin" -- train run.yaml data.train=none.bin
alone "data.train names no token file" "data encode" -- train run.yaml data.train=
head -c 5000 train.bin >cut.bin
both "cut.bin: its header announces" "5000: cut off" -- train run.yaml data.train=cut.bin
head -c 100 train.bin >header.bin
alone "header.bin: " "cut off" -- train run.yaml data.train=header.bin
: >empty.bin
alone "empty.bin: the file is empty" -- train run.yaml data.train=empty.bin
both "train.bin: token 1" "is not below the vocabulary's 64" -- train run.yaml model.vocab_size=64
head -c 20 text >short.txt
alone "short.txt: its 20 tokens are too few" "data.seq_len" -- train run.yaml data.train=short.txt
alone "valid.bin: token 1" -- eval broken/shape data.valid=valid.bin data.seq_len=32

# Weights.
both "broken/cut/model.safetensors: " "cut off" -- check broken/cut
for name in cut_header endless; do
    alone "broken/$name/model.safetensors: " "cut off" -- check broken/$name
done
for name in missing shape size dtype extra; do
    victim=layers.1.attention.wo.weight
    [[ $name != extra ]] || victim=layers.9.attention.wo.weight
    alone "broken/$name/model.safetensors: " "$victim" -- check broken/$name
done
for name in missing shape; do # found by the one rank that owns the tensor
    run_ranks 1 2 check broken/$name
    says "broken/$name/model.safetensors: " "layers.1.attention.wo.weight" "[rank 0] error: " "[rank 1] error: "
done
says "[16, 64]" "[32, 32]"
for name in four_bytes no_json empty; do
    alone "broken/$name/model.safetensors: " -- check broken/$name
done
alone "none: No such file or directory" -- check none
mkdir whole && cp -r "$golden/muddformer-tiny" whole/model # as a run's folder has it
both "model whole/: a folder without a config.json, but whole/model has one" -- eval whole/
for command in eval train plan check "train run.yaml model=whole"; do
    read -ra command <<<"$command"
    ((${#command[@]} > 1)) || command+=(whole)
    alone "but whole/model has one" -- "${command[@]}"
done
echo '{"model": {"vocab": {"a": 0}}}' >tokenizer.json
run 1 python3 "$MUDDPIPE_SOURCE/tools/text_to_tokens.py" tokenizer.json --copy-to whole
says "but whole/model has one"
mkdir bare
alone "cannot open bare/config.json" -- eval bare

# config.json.
both "broken/json_cut/config.json:" "not valid JSON" -- check broken/json_cut
alone "broken/json_type/config.json:3:2: n_head must be an integer" -- check broken/json_type
alone "broken/json_range/config.json:3:2: n_head must be" -- check broken/json_range
alone "broken/json_twice/config.json:" "duplicate" -- check broken/json_twice
alone "broken/json_typo/config.json:3:2: unknown key n_haed" "did you mean n_head" \
    -- check broken/json_typo
alone "n_head 3" "dim" -- check broken/json_heads
alone "broken/json_list/config.json" -- check broken/json_list
alone "broken/json_empty/config.json" -- check broken/json_empty
alone "tokens.safetensors: token 64 at [0, 0]" -- check broken/token_big
alone "tokens.safetensors: token -1 at [0, 0]" -- check broken/token_negative
alone "tokens.safetensors: " "cut off" -- check broken/tokens_cut

# More threads than the host has cores, by both ranks together, or by one that may use one core: said once.
threads=$(getconf _NPROCESSORS_ONLN)
threads=$((threads < 2 ? 2 : threads < 1024 ? threads : 1024)) # 1024: the most that the key takes
run_ranks 0 2 train run.yaml parallel.threads=$threads optimizer.steps=1 data.valid= logging.run=threads
(($(grep -c "warning: the 2 ranks of this host start $threads threads each, but it has" out) == 1)) || fail "not one warning"
core=$(taskset -cp $$ | sed 's/.*: *\([0-9]*\).*/\1/')
run 0 taskset -c "$core" "$MUDDPIPE" train run.yaml parallel.threads=4 optimizer.steps=1 data.valid= logging.run=one_core
says "start" "4 threads" "1 core"

# A run folder that cannot be made, or is there already.
listing=$(run_ranks 0 2 train run.yaml logging.run=there && ls there)
run_ranks 1 2 train run.yaml logging.run=there
says "the run folder there exists already" "logging.run" "[rank 1] error: rank 0 failed"
[[ $(ls there) == "$listing" ]] || fail "the run folder was touched"
alone "run folder /proc/none" -- train run.yaml logging.run=/proc/none
