#!/bin/bash
# Compiles each header alone, as C11: headers.sh COMPILER [flags]. A header of a library that is not
# there (found by its own #include failing) is skipped with a line.
set -euo pipefail
cd "$(dirname "$0")/../.."

compiler=${1:-cc}
shift || true
failed=0
while read -r header; do
    if ! output=$(printf '#include "%s"\n' "$header" |
        "$compiler" -std=c11 -D_GNU_SOURCE -DCPU_ISA=generic -I. "$@" -Wall -Wextra -Wshadow \
            -Wconversion -Werror -fsyntax-only -x c - 2>&1); then
        if [[ $output =~ fatal\ error:\ ([^/\"]+/[^\"]*|[a-z_]+)\.h: ]]; then
            echo "skipped $header: ${BASH_REMATCH[0]} not found"
            continue
        fi
        echo "$header does not compile alone:"
        echo "$output"
        failed=1
    fi
done < <(find base kernels comm data schedule model runtime tools -name '*.h' | sort)
exit "$failed"
