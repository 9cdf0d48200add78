#!/usr/bin/env bash
#SBATCH --job-name=havid_alternating
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@120
# The two-hand recipe under SLURM, one task a GPU. Two minutes before its time is up, or when it is preempted, the
# run saves and says so by a file PREEMPTED; the job is then queued again and goes on from there.
#
#   sbatch --nodes 2 --ntasks-per-node 8 scripts/finetune/slurm_havid_alternating.sh [trainer's arguments]
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/../..}"

DATA="${DATA:-data/havid}"
WEIGHTS="${WEIGHTS:-weights/vit_b_k710_dl_from_giant.pth}"
OUTPUT="${OUTPUT:-output/havid_slurm}"
source scripts/finetune/environment.sh

rm -f "$OUTPUT/PREEMPTED"  # of an earlier stop
status=0
srun --kill-on-bad-exit=1 "$PYTHON" run_alternating_hand_finetuning.py \
    --lh_data_path "$DATA/lh_v0" --rh_data_path "$DATA/rh_v0" --data_set HAVID \
    --model vit_base_patch16_224_alternating --finetune "$WEIGHTS" \
    --num_workers "$((${SLURM_CPUS_PER_TASK:-16} - 1))" --auto_resume --output_dir "$OUTPUT" "$@" || status=$?
if [ -e "$OUTPUT/PREEMPTED" ]; then
    exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
