#!/usr/bin/env bash
# What transfers besides accuracy. Run it in the folder of the clone:
#   DATA=/data bash benchmarks/what_transfers/run.sh
# DATA contains cifar10-jpegs.tar.xz and coco/. The same command resumes after an interruption.
set -eu
out=output/what_transfers
mkdir -p $out
test -d $out/train || tar xf "$DATA/cifar10-jpegs.tar.xz" -C $out

# Five classes of CIFAR-10 for the pretraining, and a task of the other classes.
test -d $out/pretraining || python benchmarks/photographs/prepare.py classes $out $out/pretraining \
    --classes airplane automobile bird cat deer --train 5000 --test 1000
test -d $out/cifar || python benchmarks/photographs/prepare.py classes $out $out/cifar \
    --classes dog frog horse ship truck --train 200 --test 1000
# The shift: objects from four of these classes, cropped from COCO photographs.
test -d $out/objects || python benchmarks/photographs/prepare.py objects --least 5 \
    "coco:$DATA/coco/train2017:$DATA/coco/annotations/instances_train2017.json" \
    "coco:$DATA/coco/val2017:$DATA/coco/annotations/instances_val2017.json" $out/objects
for pair in dog:dog horse:horse truck:truck boat:ship; do
    mkdir -p "$out/coco/${pair#*:}"
    for part in train test; do
        for file in "$out/objects/$part/${pair%:*}"/*; do
            cp "$file" "$out/coco/${pair#*:}/$part-$(basename "$file")"
        done
    done
done

# A standard network and a robust one.
for eps in 0 0.5; do
python -m classification.pretrain --dataset folder --data $out/pretraining --arch resnet18 \
    --image-size 32 --limit 10000 --recipe quick --epochs 8 --batch-size 64 \
    --augmentation crop4_flip --eps $eps --test-limit 1000 --resume auto \
    --output $out/pretrained/eps$eps
done
robust-backbones study run benchmarks/what_transfers/study.yaml --jobs 2
robust-backbones study run benchmarks/what_transfers/autoattack.yaml --jobs 2
robust-backbones report $out/runs --output $out/report
