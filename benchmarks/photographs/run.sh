#!/usr/bin/env bash
# The study of docs/results/photographs.md, from the data to the page. Run it in the folder of the clone:
#   DATA=/data bash benchmarks/photographs/run.sh
# DATA contains cifar10-jpegs.tar.xz, coco/, VOC2012/ and BCCD/. The same command resumes after an
# interruption. Results of finished runs are saved whenever the script ends.
set -eu
mkdir -p output/photographs
ln -sfn "$(realpath "$DATA")" output/photographs/data
trap 'python benchmarks/photographs/page.py' EXIT

# Five classes of CIFAR-10 for the pretraining, and three tasks of other classes.
test -d output/photographs/train || \
    tar xf output/photographs/data/cifar10-jpegs.tar.xz -C output/photographs
test -d output/photographs/pretraining || \
    python benchmarks/photographs/prepare.py classes output/photographs output/photographs/pretraining \
    --classes airplane automobile bird cat deer --train 5000 --test 1000
test -d output/photographs/tasks/cifar || \
    python benchmarks/photographs/prepare.py classes output/photographs output/photographs/tasks/cifar \
    --classes dog frog horse ship truck --train 200 --test 1000
test -d output/photographs/tasks/coco || \
    python benchmarks/photographs/prepare.py objects \
    coco:output/photographs/data/coco/train2017:output/photographs/data/coco/annotations/instances_train2017.json \
    coco:output/photographs/data/coco/val2017:output/photographs/data/coco/annotations/instances_val2017.json \
    output/photographs/tasks/coco
test -d output/photographs/tasks/voc || \
    python benchmarks/photographs/prepare.py objects voc:output/photographs/data/VOC2012:trainval \
    output/photographs/tasks/voc --each 3 --least 3 --most 10

# One standard network and two robust ones.
python -m classification.pretrain --dataset folder --data output/photographs/pretraining \
    --arch resnet18 --image-size 64 --limit 10000 --recipe quick --epochs 12 --batch-size 64 \
    --augmentation crop4_flip --eps 0 --resume --output output/photographs/pretrained/eps0
# Attacks on all 5,000 test images after each epoch would take a third longer.
for eps in 0.5 1; do
python -m classification.pretrain --dataset folder --data output/photographs/pretraining \
    --arch resnet18 --image-size 64 --limit 10000 --recipe quick --epochs 12 --batch-size 64 \
    --augmentation crop4_flip --eps $eps --test-limit 1000 --resume \
    --output output/photographs/pretrained/eps$eps
done

# The comparisons, cheapest first.
python -m robust_backbones compare output/photographs/tasks/cifar output/photographs/tasks/coco \
    output/photographs/tasks/voc --mode fixed-feature --jobs 2 \
    --weights output/photographs/pretrained/eps0/checkpoint.pt \
    output/photographs/pretrained/eps0.5/checkpoint.pt \
    output/photographs/pretrained/eps1/checkpoint.pt \
    --output output/photographs/compare/fixed-feature
python -m robust_backbones compare voc:output/photographs/data/BCCD --jobs 2 \
    --config benchmarks/photographs/blood_cells.yaml --lr 0.01 0.02 0.04 \
    --weights output/photographs/pretrained/eps0/checkpoint.pt \
    output/photographs/pretrained/eps0.5/checkpoint.pt \
    output/photographs/pretrained/eps1/checkpoint.pt \
    --output output/photographs/compare/blood-cells
python -m robust_backbones compare output/photographs/tasks/cifar output/photographs/tasks/coco \
    output/photographs/tasks/voc --mode full-network --set epochs=15 batch-size=16 --jobs 2 \
    --weights output/photographs/pretrained/eps0/checkpoint.pt \
    output/photographs/pretrained/eps0.5/checkpoint.pt \
    output/photographs/pretrained/eps1/checkpoint.pt \
    --output output/photographs/compare/full-network

