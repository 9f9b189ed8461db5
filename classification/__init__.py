"""Adversarial pretraining and transfer of image classifiers. Never imports detectron2."""
