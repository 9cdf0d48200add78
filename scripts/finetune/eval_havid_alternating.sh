#!/usr/bin/env bash
# The multi-view test of a checkpoint of this project: writes metrics.json beside it, or into OUTPUT.
#
#   bash scripts/finetune/eval_havid_alternating.sh output/havid_alternating/checkpoint-best.pth
set -euo pipefail
if [ $# -lt 1 ]; then
    echo "usage: $0 CHECKPOINT [trainer's arguments]" >&2
    exit 2
fi
CHECKPOINT="$(realpath "$1")"
shift
cd "$(dirname "$0")/../.."

OUTPUT="${OUTPUT:-$(dirname "$CHECKPOINT")}"
GPUS="${GPUS:-1}"
source scripts/finetune/environment.sh

"$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$GPUS" \
    run_alternating_hand_finetuning.py \
    --eval --resume "$CHECKPOINT" --output_dir "$OUTPUT" "$@"
"$PYTHON" -m scripts.tools.show_metrics "$OUTPUT"
