#!/usr/bin/env bash
# Makes a data set of at least 2,000 filtered pairs with the embedded storybook models, and a page to look at it.
# Stop it whenever you like: run again, it goes on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# glibc gives freed memory back at every free; on many virtual machines that costs more than the arithmetic.
export MALLOC_MMAP_THRESHOLD_=34359738368 MALLOC_TRIM_THRESHOLD_=34359738368
export MALLOC_TOP_PAD_=1073741824 MALLOC_ARENA_MAX=1

WORDBRUSH="${WORDBRUSH:-.venv/bin/wordbrush}"
CONFIG="${CONFIG:-examples/data/storybook.toml}"
OUT="${OUT:-out/storybook-pairs}"

mkdir -p "$(dirname "$OUT")"
"$WORDBRUSH" data make "$CONFIG" -o "$OUT" --dry-run
"$WORDBRUSH" data make "$CONFIG" -o "$OUT"
"$WORDBRUSH" data validate "$OUT"
"$WORDBRUSH" data stats "$OUT"
"$WORDBRUSH" data show "$OUT" -o "$OUT.html" --force
