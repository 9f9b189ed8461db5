"""A copy of a classifier for attacks, with BatchNorm folded into the convolutions.

In eval mode, a BatchNorm after a convolution is a scale and a shift per channel. Both can be folded
into the weight and bias of the convolution. The weights are constant during an attack, so folding
once per batch avoids running BatchNorm in every attack step. docs/SPEED_TRAINING.md has the
measured speedup.
"""

import copy
import math
import sys
from collections import Counter

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


class FoldedCopy(nn.Module):
    """A folded copy of a model in eval mode. Attacks use the copy instead of the model.

    folded = FoldedCopy(model)                   # once
    x_adv = pgd(folded.refresh(), x, y, ...)     # for each batch

    The copy does not change the model's modes, parameters, buffers or `.grad`. The copy is
    differentiable with respect to the images only.

    On the first batch, the copy is compared with an unfolded copy. If their logits or gradients
    differ by more than rounding errors, a warning is printed on stderr, and attacks use the
    unfolded copy.

    Args:
        model: classifier, `(N, C, H, W)` -> logits; not wrapped in DistributedDataParallel.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self._model = (model,)  # a tuple, so that the model is not a submodule
        self.plain = _mirror(model, {})
        self.network, self._folds = _fold(_mirror(model, {}))
        self._checked = False
        self.eval().refresh()

    def train(self, mode: bool = True) -> "FoldedCopy":
        """Keep the copy in eval mode, for both values of `mode`."""
        return super().train(False)

    @torch.no_grad()
    def refresh(self) -> "FoldedCopy":
        """Copy the model's current weights and statistics. Call this method after each update."""
        (model,) = self._model
        sources = dict(model.named_modules(remove_duplicate=False))
        for network in (self.plain, self.network):
            for path, mirrored in network.named_modules():
                if path in sources:
                    _share(sources[path], mirrored)
        for conv_path, norm_path in self._folds.items():
            conv, norm = sources[conv_path], sources[norm_path]
            weight, bias = fuse_conv_bn_weights(
                conv.weight,
                conv.bias,
                norm.running_mean,
                norm.running_var,
                norm.eps,
                norm.weight,
                norm.bias,
            )
            folded = self.network.get_submodule(conv_path)
            folded.weight, folded.bias = (
                nn.Parameter(tensor.detach(), requires_grad=False) for tensor in (weight, bias)
            )
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the model in eval mode."""
        if not self._checked:
            self._check(x[:2])
        return self.network(x)

    def _check(self, x: Tensor) -> None:
        self._checked = True
        self.refresh()  # an outdated copy would look like a wrong fold
        try:
            with torch.autocast(x.device.type, enabled=False):
                both = [_logits_and_gradient(net, x) for net in (self.network, self.plain)]
            logits, gradient = map(_difference, *both)
            problem = f"logits differ by {logits:.0e}, gradients by {gradient:.0e} of their length"
        except (RuntimeError, TypeError) as error:
            logits, gradient, problem = math.inf, math.inf, str(error)
        # Rounding opens or closes ReLUs near 0, which makes gradients jump. The largest relative
        # differences measured in float32 are 2e-6 (logits) and 1e-2 (gradients). A wrong fold gives
        # differences of about 1.
        unit = torch.finfo(x.dtype).eps ** 0.5
        if not (logits <= 10 * unit and gradient <= 300 * unit):  # also true for NaN
            print(
                f"warning: folding BatchNorm changed the network ({problem}). Attacks run on the "
                "network without folding, which is slower.",
                file=sys.stderr,
                flush=True,
            )
            self.network, self._folds = self.plain, {}


def _mirror(module: nn.Module, seen: dict) -> nn.Module:
    """Copy a module, and set the copy to eval mode. Tensors are shared, without gradients.

    Args:
        module: module to copy.
        seen: copies of earlier modules, by the id of the original. New copies are added.
    """
    if id(module) not in seen:
        seen[id(module)] = mirrored = copy.copy(module)
        mirrored._modules = {
            name: None if child is None else _mirror(child, seen)
            for name, child in module._modules.items()
        }
        mirrored.training = False
        _share(module, mirrored)
    return seen[id(module)]


def _share(source: nn.Module, mirrored: nn.Module) -> None:
    """Share the tensors of `source` with its copy, without the tensors of child modules."""
    mirrored._parameters = {
        name: None if p is None else nn.Parameter(p.detach(), requires_grad=False)
        for name, p in source._parameters.items()
    }
    mirrored._buffers = dict(source._buffers)


def _fold(network: nn.Module) -> tuple[nn.Module, dict[str, str]]:
    """Remove each BatchNorm after a convolution whose output has no other use.

    Returns:
        The network without these BatchNorms, and `{path of a convolution: path of its BatchNorm}`.
    """
    try:
        graph = fx.Tracer().trace(network)
    except Exception:  # tracing the model's code may raise any exception
        return network, {}
    folds = {}
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in list(graph.nodes):
        norm = _batchnorm_after(network, node)
        if norm is not None and calls[node.target] == calls[norm.target] == 1:
            folds[str(node.target)] = str(norm.target)
            norm.replace_all_uses_with(node)
            graph.erase_node(norm)
    return fx.GraphModule(network, graph), folds


def _batchnorm_after(network: nn.Module, node: fx.Node) -> fx.Node | None:
    """Return the only call that uses this convolution's output if it is a BatchNorm, or None."""
    users = list(node.users)
    if node.op != "call_module" or len(users) != 1 or users[0].op != "call_module":
        return None
    conv, norm = (network.get_submodule(str(call.target)) for call in (node, users[0]))
    known = type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm)
    if type(conv) is nn.Conv2d and known and norm.running_mean is not None:
        return users[0]
    return None


def _logits_and_gradient(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits, and the gradient of a weighted sum of the logits with respect to x."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = network(x)
        weights = torch.linspace(-1, 1, logits.shape[1], dtype=logits.dtype, device=x.device)
        total = (logits * weights).sum()
        if not total.requires_grad:
            return logits, torch.zeros_like(x)
        return logits.detach(), torch.autograd.grad(total, x)[0]


def _difference(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference, relative to the norm of the expected tensor."""
    found, expected = found.double(), expected.double()
    if torch.equal(found, expected):
        return 0.0
    return ((found - expected).norm() / expected.norm()).item()
