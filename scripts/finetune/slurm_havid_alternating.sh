#!/usr/bin/env bash
#SBATCH --job-name=havid_alternating
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# The two-hand recipe under SLURM, one task a GPU. A requeued job goes on from its most advanced checkpoint.
#
#   sbatch --nodes 2 --ntasks-per-node 8 scripts/finetune/slurm_havid_alternating.sh [trainer's arguments]
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/../..}"

DATA="${DATA:-data/havid}"
WEIGHTS="${WEIGHTS:-weights/vit_b_k710_dl_from_giant.pth}"
OUTPUT="${OUTPUT:-output/havid_slurm}"
PYTHON="${PYTHON:-$(ls .venv/bin/python 2>/dev/null || echo python)}"  # the environment that env.sh built, if any
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

srun --kill-on-bad-exit=1 "$PYTHON" run_alternating_hand_finetuning.py \
    --lh_data_path "$DATA/lh_v0" --rh_data_path "$DATA/rh_v0" --data_set HAVID \
    --model vit_base_patch16_224_alternating --finetune "$WEIGHTS" \
    --num_workers "$((${SLURM_CPUS_PER_TASK:-16} - 1))" --auto_resume --output_dir "$OUTPUT" "$@"
