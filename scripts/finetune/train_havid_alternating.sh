#!/usr/bin/env bash
# The two-hand recipe on HA-ViD, on the GPUs of one node. Further arguments go to the trainer.
#
# The published run is one GPU with batch 4. The learning rate scales with the number of GPUs and an epoch
# has that many fewer steps: keep GPUS=1 to reproduce.
set -euo pipefail
cd "$(dirname "$0")/../.."

DATA="${DATA:-data/havid}"                               # holds lh_v0/ and rh_v0/
WEIGHTS="${WEIGHTS:-weights/vit_b_k710_dl_from_giant.pth}"
OUTPUT="${OUTPUT:-output/havid_alternating}"
GPUS="${GPUS:-1}"
source scripts/finetune/environment.sh

exec "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$GPUS" \
    run_alternating_hand_finetuning.py \
    --lh_data_path "$DATA/lh_v0" --rh_data_path "$DATA/rh_v0" --data_set HAVID \
    --model vit_base_patch16_224_alternating --finetune "$WEIGHTS" \
    --batch_size 4 --num_sample 2 --num_frames 16 --sampling_rate 4 \
    --input_size 224 --short_side_size 224 --alternation_steps 50 \
    --opt adamw --opt_betas 0.9 0.999 --lr 1e-3 --weight_decay 0.1 --layer_decay 0.9 --clip_grad 5.0 \
    --drop_path 0.3 --warmup_epochs 5 --epochs 50 --save_ckpt_freq 10 \
    --test_num_segment 5 --test_num_crop 3 --output_dir "$OUTPUT" "$@"
