#!/bin/bash
# muddpipe data: what it writes against an independent writer, what it refuses; wrong command lines end
# with 2.
set -euo pipefail
folder=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

expect() { # CODE WORDS command...
    local code=$1 words=$2 got=0
    shift 2
    "$@" >out 2>&1 </dev/null || got=$?
    if ((got != code)) || ! grep -qF -- "$words" out; then
        echo "$*: exit code $got instead of $code, or no '$words' in:"
        cat out
        exit 1
    fi
}

seq 1 2000 >text
expect 0 "train.bin: 8004 tokens" "$MUDDPIPE" data encode text train.bin --valid 0.1 valid.bin
expect 0 "tokens         889" "$MUDDPIPE" data inspect valid.bin
expect 0 "llm.c .bin, u16" "$MUDDPIPE" data inspect train.bin
expect 0 "bytes, each a token" "$MUDDPIPE" data inspect text
expect 0 "all below 58" "$MUDDPIPE" data check train.bin --vocab 58
mkfifo fifo.bin fifo.idx
for name in fifo fifo.bin fifo.idx; do
    expect 1 "fifo" timeout 20 "$MUDDPIPE" data inspect $name
done
expect 1 "token 57" "$MUDDPIPE" data check train.bin --vocab 57
expect 1 "cannot open" "$MUDDPIPE" data encode none other.bin
expect 1 "too few" "$MUDDPIPE" data encode /dev/null other.bin
expect 1 "train.bin exists already" "$MUDDPIPE" data encode text train.bin
expect 1 "valid.bin exists already" "$MUDDPIPE" data encode text other.bin --valid 0.1 valid.bin
expect 1 "must end in .bin (llm.c) or .idx" "$MUDDPIPE" data encode text other.txt
[[ $(echo other*) == "other*" ]] || { echo "left behind:" other*; exit 1; }
expect 0 "train.bin: 8004 tokens" "$MUDDPIPE" data encode --force text train.bin --valid 0.1 valid.bin
expect 0 "two.idx: 17786 tokens in 2 documents" "$MUDDPIPE" data encode text text two.idx
expect 0 "8893 tokens" bash -c '"$0" data encode - all.bin <text' "$MUDDPIPE"
cmp <(tail -c +1025 all.bin | tr -d '\0') text
truncate -s -1 train.bin
expect 1 "cut off" "$MUDDPIPE" data inspect train.bin
expect 2 "usage" "$MUDDPIPE" data
expect 2 "usage" "$MUDDPIPE" data encode text
expect 2 "usage" "$MUDDPIPE" data encode text out.bin --valid 7 v.bin
expect 2 "usage" "$MUDDPIPE" data check text --vocab many
expect 2 "did you mean data" "$MUDDPIPE" dato
expect 0 "muddpipe" "$MUDDPIPE" --version

# Formats, both ways, byte for byte.
mkdir files
python3 "$folder/token_files.py" files
same() { # FILE FILE
    cmp "$1" "$2" || { echo "$1 and $2 differ"; exit 1; }
}
data() { # WORDS arguments...
    expect 0 "$1" "$MUDDPIPE" data "${@:2}"
}
data "tokens in 120 documents" convert files/llmc.bin a.idx --eod 0
same a.bin files/u16.bin
same a.idx files/u16.idx
for name in u8 u16.bin i32.idx i64 split part1.idx,files/part2; do
    data "back.bin: " convert "files/$name" back.bin --force
    same back.bin files/llmc.bin
done
data "a.idx: " convert files/split a.idx --force --eod 0 # each document ends with it: none is added
same a.idx files/u16.idx
data "in 1 documents" convert files/first.bin,files/second.bin,files/raw a.idx --force
data "put behind 120 documents" convert files/u16 ended.bin --eod 70000
data "llm.c .bin, u32" inspect ended.bin
data "documents      120, each up to a token 70000; 3 to 202 tokens" inspect ended.bin --eod 70000
data "documents      120; 2 to 201 tokens" inspect files/i32.idx
data "documents      not told" inspect files/llmc.bin
data "all below 250" check files/split --vocab 250 --eod 0
expect 1 "document 0 does not end with the token 5" "$MUDDPIPE" data check files/split --vocab 250 --eod 5
expect 1 "--eod is compared with an index" "$MUDDPIPE" data check files/raw --vocab 250 --eod 0
expect 1 "exists already" "$MUDDPIPE" data convert files/llmc.bin a.idx
expect 1 "take no weights" "$MUDDPIPE" data convert files/raw:2,files/raw:3 b.bin
expect 1 "take no weights" "$MUDDPIPE" data convert files/raw:0.5 b.bin
printf x >one
data "one.bin: 1 tokens" convert one one.bin
data "one.idx: 1 tokens in 1 documents" convert one.bin one.idx --eod 120 --force
expect 1 "one.bin: its 1 tokens cannot be cut" "$MUDDPIPE" data split one.bin o.bin --valid 0.5 p.bin
python3 -c 'import struct, sys; sys.stdout.buffer.write(struct.pack("<256i", 20240520, 1, *[0] * 254))' >none.bin
expect 1 "none.bin: there is no token in it" "$MUDDPIPE" data convert none.bin b.bin
expect 1 "none.bin and the files after it: there is no token in it" "$MUDDPIPE" data convert none.bin,none.bin b.bin
head -c 900 files/u8.idx >cut.idx
cp files/u8.bin cut.bin
expect 1 "cut.idx: its header announces" "$MUDDPIPE" data inspect cut

# Splitting: the parts are the whole again, and are cut where they should be.
data "head.idx: " split files/u16 head.idx --valid 0.1 tail.idx
data "all below 250" check tail.idx --vocab 250 --eod 0
data "whole.idx: " convert head.idx,tail.idx whole.idx
same whole.idx files/u16.idx
expect 1 "head.bin would be taken for the other half of head.idx" "$MUDDPIPE" data split files/llmc.bin \
    head.bin --valid 0.1 tail.bin --eod 0 --force
rm head.idx tail.idx whole.idx
data "head.bin: " split files/llmc.bin head.bin --valid 0.1 tail.bin --eod 0 --force
same <(tail -c 2 head.bin | od -An -tu2) <(echo "     0")
data "whole.bin: " convert head.bin,tail.bin whole.bin --force
same whole.bin files/llmc.bin
data "head.bin: " split files/llmc.bin head.bin --valid 0.1 tail.bin --seq-len 64 --force
size=$(stat -c %s head.bin)
(((size - 1024) / 2 % 64 == 1)) || { echo "not cut behind a window"; exit 1; }
expect 1 "cannot be cut" "$MUDDPIPE" data split two.idx h.bin --valid 0.5 t.bin --seq-len 100000
expect 1 "is to hold both parts" "$MUDDPIPE" data split files/u16 same.bin --valid 0.5 same.bin
expect 1 "is to hold both parts" "$MUDDPIPE" data split files/u16 same.bin --valid 0.5 ./same.bin
expect 1 "one part would be empty" "$MUDDPIPE" data split files/llmc.bin h.bin --valid 0.00001 t.bin
expect 2 "usage" "$MUDDPIPE" data split files/u16 h.bin
expect 2 "usage" "$MUDDPIPE" data convert files/u16 h.bin --eod
expect 2 "no such option" "$MUDDPIPE" data convert files/u16 h.bin --vocab 5
for what in encode convert split inspect check; do
    data "usage: muddpipe data $what" "$what" --help
done
data "muddpipe data split" --help
[[ $(find . -name '*.part') == "" ]] || { echo "unfinished files were left"; exit 1; }
