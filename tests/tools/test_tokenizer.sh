#!/bin/bash
# tools/text_to_tokens.py: texts to both formats, decoded again by the package; training on them; the
# tokenizer beside the weights. Skipped where the Python package tokenizers is missing.
source "$(dirname "$0")/common.sh"
encode=$MUDDPIPE_SOURCE/tools/text_to_tokens.py

if ! python3 -c 'import tokenizers' 2>/dev/null; then
    # What happens then is tested all the same: a message, not a traceback.
    echo '{"model": {"vocab": {"a": 0}}}' >tokenizer.json
    echo a >a.txt
    run 1 python3 "$encode" tokenizer.json a.txt a.bin
    says "pip install tokenizers"
    echo "skipped: the Python package tokenizers is not installed"
    exit 77
fi

seq 1 3000 | awk '{ printf "{\"text\": \"line %d of %d, größer\", \"n\": %d}\n", $1, NR % 13, NR }' >a.jsonl
seq 1 500 | awk '{ printf "Row %d:\n  %s.\n", $1, substr("abcdefghij", NR % 9) }' >b.txt
gzip -k b.txt
python3 - <<'END_PYTHON'
from tokenizers import Tokenizer, models, pre_tokenizers, decoders, trainers
t = Tokenizer(models.BPE())
t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
t.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
t.train(["a.jsonl", "b.txt"], trainers.BpeTrainer(
    vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False))
t.save("tokenizer.json")
END_PYTHON
run 0 python3 "$encode" tokenizer.json a.jsonl b.txt.gz train.idx --eod '<|end|>'
says "in 3001 documents" "data.eod=0"
rm train.idx
run 0 python3 "$encode" tokenizer.json a.jsonl b.txt train.bin --eod '<|end|>' --force
run 0 "$MUDDPIPE" data inspect train.bin --eod 0
says "llm.c .bin, u16" "documents      3001"
run 0 python3 "$encode" --eod '<|end|>' tokenizer.json a.jsonl b.txt pair.idx

# A special token spelled out is text; a byte order mark is none of it; what is no text is refused with its place.
printf '{"text": "a <|end|> b"}\n' >spelled.jsonl
run 0 python3 "$encode" tokenizer.json spelled.jsonl spelled.bin --eod '<|end|>'
run 0 "$MUDDPIPE" data inspect spelled.bin --eod 0
says "documents      1"
printf '\xef\xbb\xbf{"text": "a <|end|> b"}\n' >marked.jsonl
run 0 python3 "$encode" tokenizer.json marked.jsonl marked.bin --eod '<|end|>'
cmp spelled.bin marked.bin || fail "a byte order mark is taken for text"
printf '{"text": "a"}\n{"text": "b\\ud800"}\n' >half.jsonl
run 1 python3 "$encode" tokenizer.json half.jsonl half.bin
says "half.jsonl:2: no text: " "half of a surrogate pair"
echo '[{"text": "a"}]' >array.json
run 1 python3 "$encode" tokenizer.json array.json array.bin
says "array.json: JSON would be tokenized with its brackets"
run 0 "$MUDDPIPE" data check pair --vocab 400 --eod 0
run 0 "$MUDDPIPE" data convert pair same.bin
cmp train.bin same.bin || fail "the formats differ"
python3 - <<'END_PYTHON'
import json, struct
from tokenizers import Tokenizer
t = Tokenizer.from_file("tokenizer.json")
data = open("train.bin", "rb").read()[1024:]
ids = struct.unpack(f"<{len(data) // 2}H", data)
texts, text = [], []
for i in ids:
    if i == 0:
        texts.append(t.decode(text))
        text = []
    else:
        text.append(i)
wanted = [json.loads(line)["text"] for line in open("a.jsonl", encoding="utf-8")]
assert texts == wanted + [open("b.txt", encoding="utf-8").read()]
END_PYTHON
run 1 python3 "$encode" tokenizer.json a.jsonl train.bin
says "train.bin exists already"
run 1 python3 "$encode" tokenizer.json a.jsonl pair.bin --force
says "other half of pair.idx"
printf '\377' >latin.txt
head -c 60 b.txt.gz >cut.txt.gz
for name in latin.txt cut.txt.gz; do
    run 1 python3 "$encode" tokenizer.json $name other.bin
    says "$name: no whole UTF-8 text"
done
: >empty.txt
run 1 python3 "$encode" tokenizer.json empty.txt other.bin
says "the texts are empty"
run 1 python3 "$encode" tokenizer.json a.jsonl other.bin --eod nothing
says "has no token 'nothing'"
run 1 python3 "$encode" tokenizer.json a.jsonl other.bin --key words
says "a.jsonl:1: no object with a text under 'words'"
run 2 python3 "$encode" tokenizer.json a.jsonl
[[ ! -e other.bin && ! -e other.bin.part ]] || fail "a file was left"

tiny_run
run 0 "$MUDDPIPE" train run.yaml model.vocab_size=400 data.train=pair data.valid= \
    data.order=documents data.mask_documents=true logging.run=run
run 0 python3 "$encode" tokenizer.json --copy-to run/model
cmp tokenizer.json run/model/tokenizer.json || fail "not the same tokenizer"
run 1 python3 "$encode" tokenizer.json --copy-to run
says "run: no config.json there, but run/model has one"
mkdir bare
run 1 python3 "$encode" tokenizer.json --copy-to bare
says "bare: no config.json with a vocab_size"
sed -i 's/"vocab_size": 400/"vocab_size": 399/' run/model/config.json
run 1 python3 "$encode" tokenizer.json --copy-to run/model --force
says "ids up to 399" "a vocabulary of 399"
