"""The step that looks at the GPUs and the CPU."""

import torch

from robust_backbones import arithmetic
from robust_backbones.commands.check.steps import CheckSettings, Outcome


def devices(settings: CheckSettings) -> Outcome:
    """Report the CPU threads and the GPUs, and compute one product on each GPU.

    TF32 is turned off for this step and the later ones.
    """
    arithmetic.set_tf32(False)
    gpus = []
    for index in range(torch.cuda.device_count()):
        x = torch.ones(64, 64, device=f"cuda:{index}")
        assert (x @ x).sum().item() == 64**3
        known = torch.cuda.get_device_properties(index)
        gpus.append(f"{known.name} ({known.total_memory / 2**30:.0f} GiB)")
    cuda = torch.version.cuda
    none = "no GPU found" + (f" by PyTorch for CUDA {cuda}" if cuda else ", PyTorch for CPUs")
    found = f"CUDA {cuda}: {', '.join(gpus)}" if gpus else none
    threads = torch.get_num_threads()
    return Outcome(f"{found}; CPU threads: {threads}", facts={"gpus": gpus, "threads": threads})
