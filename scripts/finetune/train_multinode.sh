#!/usr/bin/env bash
# The two-hand recipe on several nodes: start it on each of them with the same MASTER. Further arguments go
# to the trainer.
#
#   NODES=2 MASTER=node0:29500 bash scripts/finetune/train_multinode.sh
set -euo pipefail
cd "$(dirname "$0")/../.."

DATA="${DATA:-data/havid}"
WEIGHTS="${WEIGHTS:-weights/vit_b_k710_dl_from_giant.pth}"
OUTPUT="${OUTPUT:-output/havid_multinode}"
NODES="${NODES:-2}"
GPUS="${GPUS:-8}"                                        # of each node
MASTER="${MASTER:?set MASTER=host:port of one of the nodes}"
JOB="${JOB:-adh}"                                        # the same on all nodes
source scripts/finetune/environment.sh

exec "$PYTHON" -m torch.distributed.run --nnodes "$NODES" --nproc_per_node "$GPUS" \
    --rdzv_backend c10d --rdzv_endpoint "$MASTER" --rdzv_id "$JOB" \
    run_alternating_hand_finetuning.py \
    --lh_data_path "$DATA/lh_v0" --rh_data_path "$DATA/rh_v0" --data_set HAVID \
    --model vit_base_patch16_224_alternating --finetune "$WEIGHTS" --output_dir "$OUTPUT" "$@"
