#!/usr/bin/env bash
# One list alone, with the same recipe and code: a single hand, or any video classification data.
# Further arguments go to the trainer.
set -euo pipefail
cd "$(dirname "$0")/../.."

DATA="${DATA:-data/havid/lh_v0}"                         # holds train_list_video.txt, val_list_video.txt
WEIGHTS="${WEIGHTS:-weights/vit_b_k710_dl_from_giant.pth}"
OUTPUT="${OUTPUT:-output/one_stream}"
GPUS="${GPUS:-1}"
source scripts/finetune/environment.sh

exec "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$GPUS" \
    run_alternating_hand_finetuning.py \
    --one_stream --lh_data_path "$DATA" --data_set CUSTOM \
    --model vit_base_patch16_224_alternating --finetune "$WEIGHTS" --output_dir "$OUTPUT" "$@"
