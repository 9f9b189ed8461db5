"""The real `robustness` library on a CPU and a current torchvision; for tests and benchmarks."""

import sys
import types

import torch

from classification.models import Normalize


def import_library() -> types.SimpleNamespace:
    """Its modules `attacker`, `datasets`, `model_utils` and `train`.

    Raises:
        ImportError: it is not installed.
    """
    from torch.hub import load_state_dict_from_url

    # Its release imports a torchvision module that is gone since 0.13.
    gone = types.ModuleType("torchvision.models.utils")
    gone.load_state_dict_from_url = load_state_dict_from_url
    sys.modules.setdefault("torchvision.models.utils", gone)
    from robustness import attacker, datasets, model_utils, train

    return types.SimpleNamespace(
        attacker=attacker, datasets=datasets, model_utils=model_utils, train=train
    )


def stay_on_the_cpu(patch=setattr) -> None:
    """The library moves models and labels to a GPU unasked; `.cuda()` then does nothing.

    Args:
        patch: sets an attribute, as `setattr` and pytest's `monkeypatch.setattr` do.
    """
    for owner in (torch.nn.Module, torch.Tensor):
        patch(owner, "cuda", lambda self, *args, **kwargs: self)


def wrap(library, network: torch.nn.Module):
    """Any network `(N, 3, H, W)` -> logits as the library's AttackerModel, ImageNet's mean and std.

    The network itself, not a copy. Its own ResNets take more arguments, which do not matter here.
    """
    dataset = library.datasets.ImageNet("/nowhere")
    return library.attacker.AttackerModel(library.model_utils.DummyModel(network), dataset)


def as_ours(network: torch.nn.Module) -> torch.nn.Sequential:
    """The same as `wrap`'s, as a classifier of ours."""
    return torch.nn.Sequential(Normalize(), network)


def loop_settings(**attack) -> types.SimpleNamespace:
    """The arguments that the library's training loop reads, with the `attack`'s among them.

    Args:
        attack: `constraint` ('2' or 'inf'), `eps`, `attack_lr` (a step's length), `attack_steps`,
            `use_best`.
    """
    fixed = dict(custom_eps_multiplier=None, random_restarts=0, random_start=False)
    return types.SimpleNamespace(**fixed, mixed_precision=False, **attack)
