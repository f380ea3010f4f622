#!/usr/bin/env bash
# Ten minutes of one GPU: the demo model learns on with large batches and is scored; beside it the figures that no CPU
# can give. Everything lands in OUT: the run (a model folder), scores, and text files for benchmarks/results/.
#
#   benchmarks/on_a_gpu.sh OUT                    # from the demo model
#   benchmarks/on_a_gpu.sh OUT runs/demo          # from a folder or a run
#
# On a CPU at tiny size, to see that it works:
#   DEVICE=cpu ARCHITECTURE= BATCH=2 STEPS=2 TRAIN=240 LIMIT=8 benchmarks/on_a_gpu.sh /tmp/gpu
set -euo pipefail

out=${1:?usage: benchmarks/on_a_gpu.sh OUT [MODEL]}
model=${2:-demo}
device=${DEVICE:-cuda}
architecture=${ARCHITECTURE-Sa2VA-4B}
batch=${BATCH:-256}
steps=${STEPS:-100000}
bench=${BENCH:-100}       # seconds at most
train=${TRAIN:-300}       # seconds; then the step at work is finished and the run saved
evaluate=${EVALUATE:-140} # seconds at most
limit=${LIMIT:+--limit $LIMIT}
workers=${WORKERS:-$(($(nproc) - 1))}
mkdir -p "$out"

measure() { # a file that gets the output, then the command; one that fails or is too slow does not end the session
	local file=$1
	shift
	echo "\$ $*" >"$out/$file"
	timeout "$bench" "$@" >>"$out/$file" 2>&1 || echo "ended with $?" >>"$out/$file"
}

measure environment.txt segue doctor env
# shellcheck disable=SC2086  # without an architecture there is no option
measure bench.txt segue bench ${architecture:+--architecture $architecture} --device "$device" --objects 1,4,16 --repeats 2

cat >"$out/recipe.yaml" <<RECIPE
output: $out/run
model: $model
data:
  - {dataset: scenes, root: ., options: {longest: 192, turns: 16}}
  - {dataset: scenes, root: ., weight: 0.2, options: {kind: clips, longest: 160, most: 5, frames: 6, turns: 14}}
stages:
  - name: joint
    optimizer: muon
    steps: $steps
    rate: 5.0e-4
    schedule: constant
    warmup: 0.0001
    weight_decay: 0.02
    betas: [0.9, 0.98]
    groups: {vision: {how: full}, connector: {how: full}, language: {how: full}, embeddings: {how: full},
      seg_projector: {how: full}, image_encoder: {how: full}, prompt_encoder: {how: full}, mask_decoder: {how: full},
      memory: {how: full}}
    losses: {text: 1.0, target_embedding: 0.5, vision_alignment: 0.3, mask: 2.0, dice: 1.0, iou: 1.0, presence: 0.5}
batch: $batch
points: 1024
precision: bf16
gradient_checkpointing: false
max_tokens: 1400
frames: uniform:4
max_tiles: 1
workers: $workers
log_every: 10
save_every: 100
RECIPE
timeout --signal INT "$train" segue train "$out/recipe.yaml" --device "$device" || echo "stopped after $train s"

# shellcheck disable=SC2086  # without a limit there is no option
timeout "$evaluate" segue evaluate "$out/run" --on scenes_test -o "$out/scores" --device "$device" $limit |
	tee "$out/scores.txt" || echo "scoring stopped after $evaluate s; the same command goes on"
