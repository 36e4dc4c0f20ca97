#!/usr/bin/env bash
# Makes an editor of many tasks, as Emu Edit's (2311.10089), and measures what the paper does:
#   OUT/tasks           the true task, the predicted one, no task embeddings, no vision tasks; and the embedded editor
#   OUT/task-predictor  what instructions are taken for
#   OUT/data            grounded pairs against InstructPix2Pix's, from the same captions
#   OUT/super-resolution, inpainting, contours   unseen tasks, learned from 1, 10 and 100 examples, and an expert's
#   OUT/turns           eight turns on one picture
# The editor is WORK/editor-tasks/model. The arms of a comparison begin alike, have as many samples and the same noise
# schedule. They begin as the text-to-image model, for the embedded editor has seen exact pairs, and knows the tasks.
# Stop it whenever you like: run again, it goes on. A GPU is used where there is one. The steps below are what two CPU
# cores do in a night, at 20 to 40 samples a second; raise them on a GPU. I2EBENCH=FOLDER asks I2EBench's questions, too.
. "$(dirname "${BASH_SOURCE[0]}")/setup"

WORK="${WORK:-.cache/emu-edit}"
OUT="${OUT:-out/emu-edit}"
STORYBOOK="${STORYBOOK:-.cache/storybook}"              # of runs/storybook.sh, whose edits and latents are used again
EMBEDDED=src/wordbrush/assets/storybook
START="${START:-$EMBEDDED/text_to_image}"
CONFIG="${CONFIG:-examples/data/storybook.toml}"
PAIRS="${PAIRS:-12000}"                                 # edits of scenes, as many of things, and of vision tasks
STEPS="${STEPS:-2500}"                                  # of the editor and of each arm of OUT/tasks
BATCH="${BATCH:-32}"
PREDICTOR_STEPS="${PREDICTOR_STEPS:-3000}"
SEGMENTER_STEPS="${SEGMENTER_STEPS:-2000}"
CAPTIONS="${CAPTIONS:-400}"                             # caption pairs, of which both data engines make pairs
DATA_STEPS="${DATA_STEPS:-800}"                         # of both editors that learn from these
EXPERT_EXAMPLES="${EXPERT_EXAMPLES:-2000}"              # of each unseen task
EXPERT_STEPS="${EXPERT_STEPS:-400}"
INVERSION_STEPS="${INVERSION_STEPS:-200}"
NUM="${NUM:-48}"                                        # held-out edits of each task
SESSIONS="${SESSIONS:-20}"
UNSEEN="${UNSEEN:-super-resolution inpainting contours}"

NO_VISION="detect=0, segment=0, depth=0, sketch=0, segmentation=0"
EDITOR="$WORK/editor-tasks/model"

mkdir -p "$WORK"
"$WORDBRUSH" data storybook "$STORYBOOK/edits" --count "$PAIRS"
"$WORDBRUSH" data storybook "$STORYBOOK/things" --count "$PAIRS" --kind things
"$WORDBRUSH" data storybook "$STORYBOOK/vision" --count "$PAIRS" --kind vision

"$WORDBRUSH" train task-predictor --data data/task_instructions.jsonl --output "$WORK/task-predictor" \
  --steps "$PREDICTOR_STEPS"
"$WORDBRUSH" evaluate task-predictor --model "$WORK/task-predictor/model" --data data/task_instructions.jsonl \
  --output "$OUT/task-predictor" ${I2EBENCH:+--i2ebench "$I2EBENCH"}

# arm RECIPE NAME [OPTION...]: an editor from the common start.
arm() {
  local recipe="$1" name="$2"
  shift 2
  "$WORDBRUSH" train "$recipe" --data "$STORYBOOK/edits" --data "$STORYBOOK/things" --data "$STORYBOOK/vision" \
    --init-from "$START" --output "$WORK/editor-$name" --cache-folder "$STORYBOOK/latents" \
    --steps "$STEPS" --batch-size "$BATCH" --mixed-precision auto "$@"
}
arm emu-edit tasks
arm emu-edit no-vision --task-weights "$NO_VISION"
arm instruct-pix2pix no-tasks --zero-terminal-snr --prediction-type v_prediction
[ -e "$EDITOR/task_predictor" ] || cp -r "$WORK/task-predictor/model" "$EDITOR/task_predictor"

"$WORDBRUSH" evaluate tasks --num "$NUM" --output "$OUT/tasks" \
  --model "many tasks=$EDITOR" \
  --model "no task embeddings=$WORK/editor-no-tasks/model" \
  --model "no vision tasks=$WORK/editor-no-vision/model" \
  --model "the embedded editor=$EMBEDDED"

# Pairs of both engines, from the same captions; then an editor from each, and both on the same edits.
REGIONS='operations = ["replace", "remove", "add", "recolour", "background"]'
sed -e "s/^count = .*/count = $CAPTIONS/" -e "s/^operations = .*/$REGIONS/" "$CONFIG" > "$WORK/plain.toml"
{ cat "$WORK/plain.toml"; printf '\n[grounded]\ngrounder = "%s"\n' "$WORK/segmenter/model"; } > "$WORK/grounded.toml"
"$WORDBRUSH" train segmenter --clip "$EMBEDDED" --output "$WORK/segmenter" --steps "$SEGMENTER_STEPS" \
  --mixed-precision auto
for engine in plain grounded; do
  "$WORDBRUSH" data make "$WORK/$engine.toml" -o "$WORK/pairs-$engine"
  "$WORDBRUSH" train instruct-pix2pix --data "$WORK/pairs-$engine" --init-from "$EMBEDDED/text_to_image" \
    --output "$WORK/editor-$engine" --steps "$DATA_STEPS" --batch-size "$BATCH" --ema-decay 0.98 \
    --mixed-precision auto
done
"$WORDBRUSH" evaluate tasks --tasks local,remove,add,texture,background --num "$NUM" --output "$OUT/data" \
  --model "grounded pairs=$WORK/editor-grounded/model" \
  --model "InstructPix2Pix's pairs=$WORK/editor-plain/model"

for task in $UNSEEN; do
  "$WORDBRUSH" data storybook "$WORK/$task" --count "$EXPERT_EXAMPLES" --kind "$task"
  "$WORDBRUSH" train emu-edit --data "$WORK/$task" --new-task "$task" --init-from "$EDITOR" \
    --output "$WORK/expert-$task" --steps "$EXPERT_STEPS" --batch-size "$BATCH" --ema-decay 0.98 \
    --mixed-precision auto
  LEARNED=()
  for count in 1 10 100; do
    few="$WORK/$task-$count"
    [ -e "$few" ] || "$WORDBRUSH" data convert "$WORK/$task" "$few" --units "$count"
    "$WORDBRUSH" train task-inversion --data "$few" --name "$task" --init-from "$EDITOR" \
      --output "$WORK/inversion-$task-$count" --steps "$INVERSION_STEPS" \
      --mixed-precision auto
    LEARNED+=(--task-file "learned from $count=$WORK/inversion-$task-$count/model/$task.safetensors")
  done
  "$WORDBRUSH" evaluate tasks --tasks "$task" --num "$NUM" --output "$OUT/$task" \
    --model "as it is=$EDITOR" --model "expert=$WORK/expert-$task/model" "${LEARNED[@]}"
done

"$WORDBRUSH" evaluate turns --model "$EDITOR" --method emu-edit --num "$SESSIONS" --output "$OUT/turns"
