#!/bin/bash
# The same tokens in any format and layout train to the same losses, digit for digit; what the keys of
# data do; a run in several files; held-out evaluations.
source "$(dirname "$0")/common.sh"
python3 "$(dirname "$script")/token_files.py" .
tiny_run

losses() { # NAME N key=value...: to NAME.losses what the run in NAME/ wrote
    local name=$1 n=$2
    shift 2
    run_ranks 0 "$n" train run.yaml logging.run="run-$name" data.valid= "$@"
    sed -n 's/.*"loss":\([^,]*\),"grad_norm":\([^,]*\),.*/\1 \2/p' "run-$name/metrics.jsonl" >"$name.losses"
    [[ $(wc -l <"$name.losses") == 4 ]] || fail "$name: not a line for each step"
}

same() { # NAME NAME
    cmp "$1.losses" "$2.losses" || fail "$1 and $2 differ"
}

differ() { # NAME NAME
    ! cmp -s "$1.losses" "$2.losses" || fail "$1 and $2 are the same"
}

# Formats: windows of the text, then documents.
losses llmc 1 data.train=llmc.bin
for other in wide.bin first.bin,second.bin u8.idx u16 i32.bin i64 split.idx part1,part2.idx raw; do
    losses "$other" 1 data.train="$other"
    same llmc "$other"
done
documents=(data.order=documents data.eod=0)
losses documents 1 data.train=llmc.bin "${documents[@]}"
differ llmc documents
for other in first.bin,second.bin u16.idx part1,part2; do
    losses "documents-$other" 1 data.train="$other" "${documents[@]}"
    same documents "documents-$other"
done
losses documents-index 1 data.train=u16.idx data.order=documents
same documents documents-index
losses documents-two 2 data.train=u16 data.order=documents
same documents documents-two

# Masks: by token and by index, on two ranks.
mask=data.mask_documents=true
losses masked 1 data.train=llmc.bin data.eod=0 $mask
differ llmc masked
losses masked-index 1 data.train=i32 $mask
same masked masked-index
losses masked-two 2 data.train=split.idx $mask
same masked masked-two
losses masked-documents 1 data.train=llmc.bin "${documents[@]}" $mask
differ documents masked-documents
losses masked-documents-two 2 data.train=i64.idx data.order=documents $mask
same masked-documents masked-documents-two

# Mixtures; a YAML list and a list in a file are the same.
losses mixture 1 data.train=first.bin:0.25,second.bin:0.75
differ llmc mixture
losses mixture-two 2 data.train=first.bin:1,second.bin:3
same mixture mixture-two
printf '# parts\nfirst.bin:1\n\nsecond.bin:3\n' >parts
losses mixture-file 1 data.train=@parts
same mixture mixture-file
sed 's/train: train.bin/train: ["first.bin:1", "second.bin:3"]/' run.yaml >list.yaml
run 0 "$MUDDPIPE" train list.yaml logging.run=list data.valid=
[[ $(grep -c '"step"' list/metrics.jsonl) == 4 ]] || fail "no run of a YAML list"

# Held-out evaluations every three of four steps: in the lines of their steps and on the screen.
run_ranks 0 2 train run.yaml logging.run=every data.train=u16 data.valid=u8.idx data.valid_every=3
says "held-out loss after step 3: " "held-out loss after step 4: "
evaluated=$(grep '"heldout_loss":' every/metrics.jsonl | sed 's/.*"step":\([0-9]*\),.*/\1/' | tr '\n' ' ')
[[ $evaluated == "3 4 " ]] || fail "evaluated after steps $evaluated"
last=$(sed -n 's/.*"heldout_loss":\([0-9.]*\)}/\1/p' every/metrics.jsonl | tail -1)
run 0 "$MUDDPIPE" eval every/config.yaml model=every/model
says "held-out loss $last nats"

# Refusals.
refused() { # WORDS... -- key=value...
    local words=()
    while [[ $1 != -- ]]; do
        words+=("$1")
        shift
    done
    run 1 "$MUDDPIPE" train run.yaml data.valid= "${@:2}"
    says "${words[@]}"
}
refused "llmc.bin: its format does not say where documents end" "data.eod" "data.order=documents" \
    -- data.train=llmc.bin data.order=documents
refused "raw: its format" "data.mask_documents" -- data.train=u16,raw $mask
refused "data.eod is 256" "vocabulary's 256" -- data.train=llmc.bin data.eod=256
refused "data.valid_every is 3" "data.valid names no" -- data.train=llmc.bin data.valid_every=3
refused "u16.bin: token 2" "position" "vocabulary's 200" -- data.train=u16.idx model.vocab_size=200
refused "data.train: the weight of raw:-1 must be" -- data.train=raw:-1
refused "data.train: raw" "the first file has none" -- data.train=u16,raw:2
