#!/bin/sh
# Sets up the environment if necessary, then trains, evaluates and predicts. Edit the flags below for your own run.
# To keep it running after you log out:  nohup sh run.sh > run.out 2>&1 &
# To follow the log:                     tail -f output/*/train.log
# Starts one process per GPU. --num_gpus N uses N GPUs, --gpus 0,1 only these two.
# --batch_size is per process: a step uses batch_size x processes x gradient_accumulation_steps (docs/distributed.md).
# --resume: after a kill or a reboot, the same command continues. If there is no run yet, it starts from scratch.
# A finished run is not trained again: after editing code, add a new --model_version=NAME.
# The small encoder and ten epochs are for the sample. Remove these three flags for your own data.
set -eu
cd "$(dirname "$0")"

refuse() { echo "error: $1" >&2; exit 2; }
num_gpus= gpus= flag=
for word in "$@"; do  # removes --gpus and --num_gpus from the flags for main.py
    shift
    word=$flag$word
    flag=
    case $word in
        --gpus | --gpu[_-]ids | --num[_-]gpus) flag=$word= ;;
        --gpus=* | --gpu[_-]ids=*) gpus=${word#*=} ;;
        --num[_-]gpus=*) num_gpus=${word#*=} ;;
        *) set -- "$@" "$word" ;;
    esac
done
[ -z "$flag" ] || refuse "${flag%=} needs a value"
case $gpus in *[!0-9,]* | ,* | *, | *,,*) refuse "--gpus=$gpus must be GPU numbers, such as 0,1" ;; esac
case $num_gpus in 0* | *[!0-9]* | ?????*) refuse "--num_gpus=$num_gpus must be an integer of at least 1" ;; esac
[ -z "$gpus" ] || [ -z "$num_gpus" ] || refuse "--gpus and --num_gpus cannot be combined"
if [ -n "$gpus" ]; then
    num_gpus=$(echo "$gpus" | tr , '\n' | sort -nu | wc -l)
    [ "$num_gpus" -eq "$(echo "$gpus" | tr , '\n' | wc -l)" ] || refuse "--gpus=$gpus contains a GPU twice"
fi

requirements="requirements.txt"
. ./setup_env.sh

if [ -n "$gpus" ]; then
    export CUDA_VISIBLE_DEVICES="$gpus" CUDA_DEVICE_ORDER=PCI_BUS_ID
    set -- "$@" "--gpus=$gpus"  # main.py ends with an error if torch does not see all of them
elif [ -z "$num_gpus" ] && command -v nvidia-smi > /dev/null; then
    num_gpus=$("$PYTHON" -c "import torch; print(torch.cuda.device_count())")
fi
launch=
if [ "${num_gpus:-1}" -gt 1 ]; then
    launch="-m torch.distributed.run --standalone --nproc_per_node $num_gpus"
    echo "$num_gpus processes; a step has --batch_size x $num_gpus x --gradient_accumulation_steps examples" >&2
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
