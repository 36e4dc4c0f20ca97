#!/usr/bin/env bash
# InstructPix2Pix's figure 8: at equal directional similarity, how much of the picture does each method keep?
# On held-out storybook edits, at the native size and at twice that. Stop it whenever you like: run again, it goes on.
# What is given goes to the evaluation: runs/figure8.sh --sweep instruct-pix2pix:image_scale=1,2,4
# At full size, as in the paper:
#   EDITORS=instruct-pix2pix=timbrooks/instruct-pix2pix,sdedit=stable-diffusion-v1-5/stable-diffusion-v1-5 \
#   CLIP=openai/clip-vit-large-patch14 STEPS=100 NUM=5000 DATA=(its data set) runs/figure8.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup"

OUT="${OUT:-out/figure8}"

"$WORDBRUSH" evaluate curves \
  --model "${MODEL:-storybook}" \
  --editors "${EDITORS:-instruct-pix2pix,sdedit}" \
  --clip "${CLIP:-storybook}" \
  --num "${NUM:-200}" \
  --scales "${SCALES:-1,2}" \
  --steps "${STEPS:-20}" \
  --output "$OUT" \
  ${TEXT_SCALE:+--text-scale "$TEXT_SCALE"} \
  ${DATA:+--data "$DATA"} \
  "$@"
