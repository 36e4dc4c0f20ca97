#!/usr/bin/env bash
# Makes every embedded checkpoint from nothing, and measures them. Stop it whenever you like: run again, it goes on.
# A GPU is used where there is one. PAIRS, and the steps below, are what two CPU cores can do; raise them on a GPU.
. "$(dirname "${BASH_SOURCE[0]}")/setup"

WORK="${WORK:-.cache/storybook}"
PAIRS="${PAIRS:-12000}"

"$WORDBRUSH" data storybook "$WORK/edits" --count "$PAIRS"
"$WORDBRUSH" data storybook "$WORK/things" --count "$PAIRS" --kind things
"$WORDBRUSH" data storybook "$WORK/photographs" --count $((PAIRS / 12)) --kind photographs
"$WORDBRUSH" data storybook "$WORK/vision" --count "$PAIRS" --kind vision

EDITS=(--data "$WORK/edits")
if compgen -G "$WORK/photographs/*.npy" > /dev/null; then  # there are none where Debian's packages cannot be had
  EDITS+=(--data "$WORK/photographs")
fi

"$WORDBRUSH" train autoencoder "${EDITS[@]}" --output "$WORK/autoencoder" \
  --steps "${AUTOENCODER_STEPS:-4500}"
"$WORDBRUSH" train clip --data "$WORK/edits" --output "$WORK/clip"

# First on windows where the things and the edits are: they are smaller, and more of them go by.
PARTS=(--autoencoder "$WORK/autoencoder/model" --clip "$WORK/clip/model" --cache-folder "$WORK/latents")
WINDOWS=(--window 96 --batch-size 64 --steps "${WINDOW_STEPS:-2500}")
"$WORDBRUSH" train text-to-image --data "$WORK/edits" "${PARTS[@]}" "${WINDOWS[@]}" \
  --output "$WORK/text-to-image-windows"
"$WORDBRUSH" train text-to-image --data "$WORK/edits" "${PARTS[@]}" --steps "${STEPS:-2500}" \
  --init-from "$WORK/text-to-image-windows/model" --output "$WORK/text-to-image-first"

"$WORDBRUSH" train instruct-pix2pix --data "$WORK/edits" --data "$WORK/things" "${PARTS[@]}" "${WINDOWS[@]}" \
  --init-from "$WORK/text-to-image-first/model" --output "$WORK/editor-windows"
"$WORDBRUSH" train instruct-pix2pix "${EDITS[@]}" "${PARTS[@]}" --steps "${STEPS:-2500}" \
  --init-from "$WORK/editor-windows/model" --output "$WORK/editor"

# What the editor has learned about things serves the text-to-image model, too.
"$WORDBRUSH" train text-to-image --data "$WORK/edits" "${PARTS[@]}" --steps "${CAPTION_STEPS:-500}" \
  --init-from "$WORK/editor/model" --output "$WORK/text-to-image"

# Then all tasks, each told by a learned vector; a share of the edits is told none.
"$WORDBRUSH" train emu-edit "${EDITS[@]}" --data "$WORK/things" --data "$WORK/vision" "${PARTS[@]}" \
  --steps "${TASK_STEPS:-2500}" --any-share 0.3 --init-from "$WORK/editor/model" --output "$WORK/editor-of-tasks"
"$WORDBRUSH" train task-predictor --data data/task_instructions.jsonl --output "$WORK/task-predictor"

"$WORDBRUSH" train recogniser --data "$WORK/edits" --output "$WORK/recogniser" --optimizer muon --steps 3000

"$WORDBRUSH" train segmenter --clip "$WORK/clip/model" --output "$WORK/segmenter"

"$WORDBRUSH" train instruction-writer --output "$WORK/instruction-writer" --steps 4000

"$WORDBRUSH" train assemble "$WORK" src/wordbrush/assets/storybook
"$WORDBRUSH" evaluate storybook --output "$WORK/report"
