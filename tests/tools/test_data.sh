#!/bin/bash
# muddpipe data: what encode writes, inspect and check read; wrong command lines end with 2.
set -euo pipefail
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
expect 1 "token 57" "$MUDDPIPE" data check train.bin --vocab 57
expect 1 "cannot open" "$MUDDPIPE" data encode none train.bin
expect 1 "too few" "$MUDDPIPE" data encode /dev/null train.bin
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
