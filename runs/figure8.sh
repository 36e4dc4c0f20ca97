#!/usr/bin/env bash
# InstructPix2Pix's figure 8: at equal directional similarity, how much of the picture does each method keep?
# On held-out storybook edits, at the native size and at twice that. Stop it whenever you like: run again, it goes on.
# At full size, as in the paper:
#   EDITORS=instruct-pix2pix=timbrooks/instruct-pix2pix,sdedit=stable-diffusion-v1-5/stable-diffusion-v1-5 \
#   CLIP=openai/clip-vit-large-patch14 STEPS=100 NUM=5000 DATA=(its data set) runs/figure8.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# glibc gives freed memory back at every free; on many virtual machines that costs more than the arithmetic.
export MALLOC_MMAP_THRESHOLD_=34359738368 MALLOC_TRIM_THRESHOLD_=34359738368
export MALLOC_TOP_PAD_=1073741824 MALLOC_ARENA_MAX=1

WORDBRUSH="${WORDBRUSH:-.venv/bin/wordbrush}"
OUT="${OUT:-out/figure8}"

"$WORDBRUSH" evaluate curves \
  --model "${MODEL:-storybook}" \
  --editors "${EDITORS:-instruct-pix2pix,sdedit}" \
  --clip "${CLIP:-storybook}" \
  --num "${NUM:-200}" \
  --scales "${SCALES:-1,2}" \
  --steps "${STEPS:-20}" \
  --text-scale "${TEXT_SCALE:-7.5}" \
  --output "$OUT" \
  ${DATA:+--data "$DATA"}
