#!/usr/bin/env bash
# The recipe as ADH-ViT's released code runs it: every deviation that has a restoring flag is undone. The
# table in docs/fidelity.md says what each one does. Further arguments go to the trainer.
set -euo pipefail

OUTPUT="${OUTPUT:-output/havid_published}"
export OUTPUT

bash "$(dirname "$0")/train_havid_alternating.sh" \
    --norm_eps 1e-5 --init_scale 1 --hflip on --warmup_lr 0 --cutmix_region published \
    --aug_impl reference "$@"
