"""Adversarial pretraining and transfer of image classifiers. It never imports detectron2."""
