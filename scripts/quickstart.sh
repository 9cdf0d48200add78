#!/usr/bin/env bash
# From a bare checkout to a trained and tested two-handed model, on a CPU, in minutes: makes the
# environment and the sample data, fine-tunes, tests, merges and prints both hands' accuracy.
#
#   bash scripts/quickstart.sh                    further arguments go to the trainer
#   OUTPUT=output/other bash scripts/quickstart.sh
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/env.sh

DATA="${DATA:-data/sample_havid}"
OUTPUT="${OUTPUT:-output/quickstart}"
RECORDINGS="${RECORDINGS:-1200}"
EPOCHS="${EPOCHS:-15}"
# Pretrained weights to start from, as K710's for HA-ViD; WEIGHTS= starts from random ones.
WEIGHTS="${WEIGHTS-models/vit_tiny_sample_pretrained.pth}"
# bf16 doubles the speed where the processor multiplies it natively, and is slow elsewhere.
AMP_DTYPE="${AMP_DTYPE:-$(grep -qs amx_bf16 /proc/cpuinfo && echo bf16 || echo fp32)}"
# One computing thread and one decoding process suit two cores; OpenMP threads that wait spin.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

cat <<EOF
Alternating dual-hand fine-tuning on sample data

  data     $DATA: $RECORDINGS drawn recordings of two hands at a table, 8 actions a hand
  model    a tiny video Vision Transformer, one backbone, a head for each hand
  weights  ${WEIGHTS:-random}, computed in $AMP_DTYPE
  output   $OUTPUT

Chance is 12.5 %; who sees only what is held, and not how it moves, gets 50 %.

EOF

"$PYTHON" -m scripts.data.make_sample_havid --output "$DATA" --recordings "$RECORDINGS"

"$PYTHON" run_alternating_hand_finetuning.py \
    --lh_data_path "$DATA/lh_v0" --rh_data_path "$DATA/rh_v0" --data_set CUSTOM \
    --model vit_tiny_patch16_224_alternating --depth 3 --input_size 64 --short_side_size 64 \
    --num_frames 4 --sampling_rate 24 --short_clips stretch ${WEIGHTS:+--finetune "$WEIGHTS"} \
    --batch_size 16 --alternation_steps 10 --epochs "$EPOCHS" --warmup_epochs 1 \
    --lr 1.6e-2 --min_lr 1e-5 --weight_decay 0.05 --layer_decay 0.75 --drop_path 0 \
    --aa none --crop_scale 0.5 1.0 --reprob 0 --mixup 0 --cutmix 0 \
    --test_num_segment 2 --num_workers 1 --log_interval 5 \
    --amp_dtype "$AMP_DTYPE" --no_auto_resume --output_dir "$OUTPUT" "$@"

"$PYTHON" -m scripts.tools.show_metrics "$OUTPUT"
cat <<EOF

Where to look next
  $OUTPUT/report.html    the run as a page: curves, confusions with frames of clips, calibration; for a browser
  $OUTPUT/metrics.json   what the table shows; predictions_{lh,rh}.csv has every clip
  $OUTPUT/log.txt        one JSON object an epoch
  $PYTHON -m tensorboard.main --logdir $OUTPUT   curves (uv pip install --python $PYTHON tensorboard)
  README.md, "Your own data"    how lists and folders look
  README.md, "Training"         the same on HA-ViD, from K710 weights
EOF
