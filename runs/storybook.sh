#!/usr/bin/env bash
# Makes every embedded checkpoint from nothing, and measures them. Stop it whenever you like: run again, it goes on.
# A GPU is used where there is one. PAIRS, and the steps below, are what two CPU cores can do; raise them on a GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# glibc gives freed memory back at every free; on many virtual machines that costs more than the arithmetic.
export MALLOC_MMAP_THRESHOLD_=34359738368 MALLOC_TRIM_THRESHOLD_=34359738368
export MALLOC_TOP_PAD_=1073741824 MALLOC_ARENA_MAX=1

WORDBRUSH="${WORDBRUSH:-.venv/bin/wordbrush}"
WORK="${WORK:-.cache/storybook}"
PAIRS="${PAIRS:-12000}"

"$WORDBRUSH" data storybook "$WORK/edits" --count "$PAIRS"
"$WORDBRUSH" data storybook "$WORK/photographs" --count $((PAIRS / 12)) --kind photographs

"$WORDBRUSH" train autoencoder --data "$WORK/edits" --data "$WORK/photographs" --output "$WORK/autoencoder" \
  --steps "${AUTOENCODER_STEPS:-4500}"
"$WORDBRUSH" train clip --data "$WORK/edits" --output "$WORK/clip"
"$WORDBRUSH" train text-to-image --data "$WORK/edits" --output "$WORK/text-to-image" \
  --autoencoder "$WORK/autoencoder/model" --clip "$WORK/clip/model"
"$WORDBRUSH" train instruct-pix2pix --data "$WORK/edits" --data "$WORK/photographs" --output "$WORK/editor" \
  --autoencoder "$WORK/autoencoder/model" --clip "$WORK/clip/model" --init-from "$WORK/text-to-image/model"
"$WORDBRUSH" train recogniser --data "$WORK/edits" --output "$WORK/recogniser"

"$WORDBRUSH" train assemble "$WORK" src/wordbrush/assets/storybook
"$WORDBRUSH" evaluate storybook --output "$WORK/report"
