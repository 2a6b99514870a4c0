# gpu_parts.sh - what the tests of tools/gpu.sh share: small models, and stand-ins for nvidia-smi and
# compute-sanitizer. To be sourced after common.sh.
gpu=$MUDDPIPE_SOURCE/tools/gpu.sh
limit=200
cat >tiny.json <<'END_JSON'
{"model_type": "muddformer", "n_layer": 4, "n_head": 2, "dim": 32, "intermediate_size": 256,
 "vocab_size": 256, "block_size": 32}
END_JSON
export GPU_SH_VOCABULARY=256 GPU_SH_SINGLE=$work/tiny.json GPU_SH_PAIR=$work/tiny.json
export GPU_SH_TWICE=$work/tiny.json GPU_SH_TWICE_OPTIONS=data.seq_len=32
export GPU_SH_BENCH="--repeats 1 device=cpu"
export GPU_SH_CURVE="optimizer.steps=4 data.micro_batch=1 parallel.microbatches=2 model.n_layer=2
    model.dim=32 model.n_head=2"
export GPU_SH_CASES="$golden/muddformer-tiny $golden/pythia-tiny"

mkdir bin
cat >bin/nvidia-smi <<'END_SH'
#!/bin/bash
case $* in
"topo -m") printf '\t\e[4mGPU0\tGPU1\tNIC0\e[0m\nGPU0\t X \t%s\tSYS\nGPU1\tPIX\t X \tSYS\n' "$LINK" ;;
*--query-gpu=index*) printf '%s, a GPU of threads, 8192 MiB, 0\n' 0 1 ;;
*--list-gpus*) printf 'GPU %s: of threads\n' 0 1 ;;
esac
END_SH
# SANITIZER=finds: something; refuses: to run.
cat >bin/compute-sanitizer <<'END_SH'
#!/bin/bash
[[ $1 != --version ]] || exit 0
echo "========= COMPUTE-SANITIZER"
if [[ $SANITIZER == refuses ]]; then
    echo "========= Error: no debugger may attach here"
    exit 1
fi
while [[ $1 == --* ]]; do
    shift 2
done
"$@" || exit
if [[ $SANITIZER == finds ]]; then
    echo "========= Invalid __global__ write of size 4 bytes"
    echo "========= ERROR SUMMARY: 1 error"
    exit 99
fi
echo "========= ERROR SUMMARY: 0 errors"
END_SH
chmod +x bin/*
