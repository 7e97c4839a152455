#!/bin/sh
# Sets up what is missing, then trains, evaluates and predicts. Edit the flags below to launch your own run.
# To keep it running after you log out:  nohup sh run.sh > run.out 2>&1 &
# and to follow it later:                tail -f output/*/train.log
# --num_gpus N (must come first): N processes with one GPU each; by default one process per GPU. docs/distributed.md
# --resume: the same command continues after a kill or a reboot, and starts from scratch if there is no run yet.
# After an edit of the code, add another --model_version=NAME: a run that is finished is not trained again.
# A small encoder and ten epochs are enough for the sample; remove these three flags for data of your own.
set -eu
cd "$(dirname "$0")"
requirements="requirements.txt"
. ./setup_env.sh

num_gpus=1
if command -v nvidia-smi > /dev/null; then
    num_gpus=$("$PYTHON" -c "import torch; print(torch.cuda.device_count())")
fi
case ${1:-} in
    --num_gpus=*) num_gpus=${1#*=}; shift ;;
    --num_gpus) num_gpus=${2:?"--num_gpus needs a number"}; shift 2 ;;
esac
launch=
if [ "$num_gpus" -gt 1 ]; then
    launch="-m torch.distributed.run --standalone --nproc_per_node $num_gpus"
fi

exec "$PYTHON" $launch main.py \
    --data_path=dataset/sample \
    --pretrain_model_path= \
    --model_version=sample \
    --device=auto \
    --do_train=True \
    --do_eval=True \
    --do_predict=True \
    --resume=True \
    --hidden_size=128 \
    --num_layers=2 \
    --epochs=10 \
    --batch_size=32 \
    --use_crf=True \
    --use_fgm=False \
    --random_seed=666 \
    "$@"
