#!/bin/bash
# Says which files clang-format would change; with --fix, changes them. Skipped (77) where
# clang-format is missing.
set -euo pipefail
cd "$(dirname "$0")/../.."

if ! command -v clang-format >/dev/null; then
    echo "skipped: clang-format is not installed"
    exit 77
fi
mapfile -t files < <(find base kernels comm data schedule model runtime tools tests \
    \( -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' \) | sort)
if [[ ${1:-} == --fix ]]; then
    clang-format -i "${files[@]}"
    exit
fi
failed=0
for file in "${files[@]}"; do
    if ! clang-format --dry-run --Werror "$file" 2>/dev/null; then
        echo "not formatted: $file (tools/lint/format.sh --fix)"
        failed=1
    fi
done
exit "$failed"
