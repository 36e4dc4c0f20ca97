#!/usr/bin/env bash
# Makes a data set of at least 2,000 filtered pairs with the embedded storybook models, and a page to look at it.
# Stop it whenever you like: run again, it goes on.
. "$(dirname "${BASH_SOURCE[0]}")/setup"

CONFIG="${CONFIG:-examples/data/storybook.toml}"
OUT="${OUT:-out/storybook-pairs}"

mkdir -p "$(dirname "$OUT")"
"$WORDBRUSH" data make "$CONFIG" -o "$OUT" --dry-run
"$WORDBRUSH" data make "$CONFIG" -o "$OUT"
"$WORDBRUSH" data validate "$OUT"
"$WORDBRUSH" data stats "$OUT"
"$WORDBRUSH" data show "$OUT" -o "$OUT.html" --force
