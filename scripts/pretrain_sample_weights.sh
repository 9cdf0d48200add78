#!/usr/bin/env bash
# Makes models/vit_tiny_sample_pretrained.pth again: the quickstart's stand-in for the K710 weights.
#
# A tiny model is trained with this project's own trainer on generated recordings of another vocabulary
# than the quickstart's (other parts, motions, colours, scenes and hands; see sample_vocabulary.py), then
# its backbone is stored in half precision, with a card that says how it was made. From random weights
# Muon learns these motions in far fewer steps than AdamW did; docs/getting_started.md has the figures.
#
#   bash scripts/pretrain_sample_weights.sh            about half an hour on two cores
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/env.sh

DATA="${DATA:-data/sample_pretrain}"
OUTPUT="${OUTPUT:-output/sample_pretrain}"
RECORDINGS="${RECORDINGS:-8000}"
EPOCHS="${EPOCHS:-20}"
SEED="${SEED:-7}"
AMP_DTYPE="${AMP_DTYPE:-bf16}"
COMMIT="$(git rev-parse HEAD)"  # now: at the end it may be another
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

"$PYTHON" -m scripts.data.make_sample_havid --output "$DATA" --recordings "$RECORDINGS" \
    --table pretrain --seed "$SEED" --size 72 88

"$PYTHON" run_alternating_hand_finetuning.py \
    --lh_data_path "$DATA/lh_v0" --rh_data_path "$DATA/rh_v0" --data_set CUSTOM \
    --model vit_tiny_patch16_224_alternating --depth 3 --input_size 64 --short_side_size 64 \
    --num_frames 4 --sampling_rate 24 --short_clips stretch --drop_path 0 \
    --aa none --reprob 0 --mixup 0 --cutmix 0 --smoothing 0 --crop_scale 0.5 1.0 --num_sample 2 \
    --batch_size 16 --alternation_steps 1 --epochs "$EPOCHS" --warmup_epochs 1 \
    --opt muon --momentum 0.95 --lr 3.2e-2 --min_lr 1e-5 --weight_decay 0.05 --layer_decay 1.0 --init_scale 1 --clip_grad 5.0 \
    --test_num_segment 1 --disable_eval_during_finetuning --save_ckpt_freq 10 --log_interval 50 --num_workers 1 \
    --amp_dtype "$AMP_DTYPE" --seed "$SEED" --output_dir "$OUTPUT" "$@"

"$PYTHON" -m scripts.tools.store_backbone --checkpoint "$OUTPUT/checkpoint-last.pth" \
    --data "$DATA" --commit "$COMMIT" --output models/vit_tiny_sample_pretrained.pth
