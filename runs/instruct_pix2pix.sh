#!/usr/bin/env bash
# Makes storybook-instruct: an editor that is trained only on pairs which the data engine generated, from the
# storybook's text-to-image model; and measures it as the embedded editor is measured. Stop it whenever you like: run
# again, it goes on. A GPU is used where there is one. STEPS is what two CPU cores can do; raise it on a GPU.
# What is given goes to the training: STEPS=800 runs/instruct_pix2pix.sh --ema-decay 0.98
# On many GPUs, once the pairs are made: TRAIN="accelerate launch -m wordbrush train" runs/instruct_pix2pix.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup"

TRAIN="${TRAIN:-$WORDBRUSH train}"
PAIRS="${PAIRS:-out/storybook-pairs}"
STORYBOOK=src/wordbrush/assets/storybook
WORK="${WORK:-.cache/storybook/instruct}"

[ -e "$PAIRS" ] || OUT="$PAIRS" runs/data_engine.sh

# shellcheck disable=SC2086  # TRAIN is several words
$TRAIN instruct-pix2pix --data "$PAIRS" --init-from "$STORYBOOK/text_to_image" --output "$WORK" \
  --steps "${STEPS:-6000}" "$@"

# The storybook with this editor in it; the rest is as it was. What it was trained for is in $WORK/model/README.md.
rm -rf "$WORK/storybook-instruct"
cp -r "$STORYBOOK" "$WORK/storybook-instruct"
rm -r "$WORK/storybook-instruct/unet" "$WORK/storybook-instruct/training.json"
cp -r "$WORK/model/unet" "$WORK/storybook-instruct/unet"
"$WORDBRUSH" evaluate storybook --model "$WORK/storybook-instruct" --output "$WORK/report"
"$WORDBRUSH" evaluate storybook --output "$WORK/report-embedded"
