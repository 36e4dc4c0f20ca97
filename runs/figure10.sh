#!/usr/bin/env bash
# InstructPix2Pix's figure 10: what more data and the filter by CLIP are worth. Four editors from one shared start,
# each trained on the same number of samples: all of the data, a tenth, a hundredth, and all without the filter.
# Stop it whenever you like: run again, it goes on.
. "$(dirname "${BASH_SOURCE[0]}")/setup"

WORK="${WORK:-.cache/figure10}"
OUT="${OUT:-out/figure10}"
CONFIG="${CONFIG:-examples/data/storybook.toml}"
START="${START:-src/wordbrush/assets/storybook/text_to_image}"
CAPTIONS="${CAPTIONS:-600}"    # caption pairs of the whole data set
STEPS="${STEPS:-400}"          # of each arm; with a GPU take more of both
BATCH="${BATCH:-32}"
# EDIT_STEPS: of sampling, where not the model's own

mkdir -p "$WORK"

# make_data NAME CAPTIONS [SED...]: a data set by the configuration, with other values in it.
make_data() {
  local name="$1" count="$2"
  shift 2
  sed -e "s/^count = .*/count = $count/" "$@" "$CONFIG" > "$WORK/$name.toml"
  "$WORDBRUSH" data make "$WORK/$name.toml" -o "$WORK/$name"
}

# part NAME [OPTION...]: of what was painted without a filter, the pairs that pass the configuration's.
part() {
  local name="$1"
  shift
  [ -e "$WORK/$name" ] || "$WORDBRUSH" data convert "$WORK/unfiltered" "$WORK/$name" --filter "$CONFIG" "$@"
}

NO_FILTER=(-e 's/^clip_sim_\([a-z0-9]*\) = .*/clip_sim_\1 = -1.0/' -e 's/^keep = .*/keep = 1000/')
make_data unfiltered "$CAPTIONS" "${NO_FILTER[@]}"
part all
part tenth --units $((CAPTIONS / 10))
part hundredth --units $((CAPTIONS / 100))
make_data test "${TEST_CAPTIONS:-150}" -e 's/^\(source = "storybook".*\)/\1\nsplit = "test"/'

for arm in all tenth hundredth unfiltered; do
  "$WORDBRUSH" train instruct-pix2pix --data "$WORK/$arm" --init-from "$START" --output "$WORK/editor-$arm" \
    --steps "$STEPS" --batch-size "$BATCH" --ema-decay 0.98 --mixed-precision auto
done

"$WORDBRUSH" evaluate curves \
  --editors instruct-pix2pix \
  --model "all of the data=$WORK/editor-all/model" \
  --model "a tenth=$WORK/editor-tenth/model" \
  --model "a hundredth=$WORK/editor-hundredth/model" \
  --model "without the filter=$WORK/editor-unfiltered/model" \
  --data "$WORK/test" \
  --num "${NUM:-200}" \
  --output "$OUT" \
  ${EDIT_STEPS:+--steps "$EDIT_STEPS"} \
  ${TEXT_SCALE:+--text-scale "$TEXT_SCALE"}
