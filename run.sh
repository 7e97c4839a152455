#!/bin/sh
# Sets up what is missing, then trains, evaluates and predicts. Edit the flags below to launch your own run.
# To leave it going after you log out:   nohup sh run.sh > run.out 2>&1 &
# and to look at it later:               tail -f output/*/train.log
# --resume: the same line goes on where a kill or a reboot stopped it, and starts afresh where there is nothing yet.
set -eu
cd "$(dirname "$0")"
requirements="requirements.txt"
. ./setup_env.sh

exec "$PYTHON" main.py \
    --data_path=dataset/sample \
    --pretrain_model_path= \
    --model_version=sample \
    --device=auto \
    --do_train=True \
    --do_eval=True \
    --do_predict=True \
    --resume=True \
    --epochs=10 \
    --batch_size=32 \
    --use_crf=False \
    --use_fgm=False \
    --random_seed=666 \
    "$@"
