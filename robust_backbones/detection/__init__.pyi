from .attack import pgd as pgd
from .checkpointer import StrictCheckpointer as StrictCheckpointer
from .config import add_robust_config as add_robust_config
from .inspect.predictor import Predictor as Predictor
from .inspect.predictor import load as load
from .lazy import use_weights as use_weights
from .pretrained import load_backbone as load_backbone
from .training.trainer import Trainer as Trainer
