"""A copy of a classifier for attacks, with BatchNorm folded into the convolutions.

In eval mode, a BatchNorm after a convolution is a scale and a shift per channel. Both can be folded
into the weight and bias of the convolution. The weights are constant during an attack, so folding
once per batch avoids running BatchNorm in every attack step. On a GPU, BatchNorm's backward pass in
eval mode takes a third of a PGD step (benchmarks/GPU.md).
"""

import copy
import math
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from robust_backbones import arithmetic
from robust_backbones.attacks import eval_mode
from robust_backbones.core.errors import out_of_gpu_memory

FOLDED = (nn.BatchNorm2d, nn.SyncBatchNorm)  # subclasses may do more than normalize


class FoldedCopy(nn.Module):
    """A frozen copy of a model in eval mode, folded where possible. Attacks use it, not the model.

    folded = FoldedCopy(model)                   # once
    x_adv = pgd(folded.refresh(), x, y, ...)     # for each batch

    The copy does not change the model's modes, parameters, buffers or `.grad`. The copy is
    differentiable with respect to the images only, so that neither eager nor compiled attacks
    compute gradients of the weights.

    On the first batch, the copy is compared with the model. If their logits or gradients differ by
    more than rounding errors, a warning is printed on stderr, and attacks use a copy that is not
    folded.

    Args:
        model: classifier, `(N, C, H, W)` -> logits; not wrapped in DistributedDataParallel.
        compiles: whether to compile the copy with `torch.compile`.
    """

    def __init__(self, model: nn.Module, compiles: bool = False):
        super().__init__()
        self._model = (model,)  # a tuple, so that the model is not a submodule
        self._compiles = compiles
        self._build()
        self.refresh()

    def _build(self) -> None:
        """Copy the model. The copy shares all tensors with the model, except folded ones."""
        (model,) = self._model
        self._shared = [t.detach() for t in _tensors(model)]
        self.network, paths = _fold(_mirror(model, {}))
        norms = [model.get_submodule(norm) for _, norm in paths]
        convs = [model.get_submodule(conv) for conv, _ in paths]
        self._folds = _Folds(convs, norms, [self.network.get_submodule(c) for c, _ in paths])
        self._checked = False
        self.eval()

    def train(self, mode: bool = True) -> "FoldedCopy":
        """Keep the copy in eval mode, for both values of `mode`."""
        return super().train(False)

    @torch.no_grad()
    def refresh(self) -> "FoldedCopy":
        """Copy the model's current weights and statistics. Call this method after each update."""
        (model,) = self._model
        found = list(_tensors(model))
        if len(found) != len(self._shared) or not all(map(Tensor.is_set_to, found, self._shared)):
            self._build()  # the model has other tensors than before
        self._folds.refresh()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the model in eval mode."""
        if not self._checked:
            self._check(x[:2])
        return self.network(x)

    def _check(self, x: Tensor) -> None:
        """Compare the copy with the model, in full precision, and compile it."""
        (model,) = self._model
        self.refresh()  # an outdated copy would look like a wrong fold
        try:
            # In lower precisions, rounding errors would be as large as the errors of a wrong fold.
            with arithmetic.full_precision(x.device.type), eval_mode(model):
                both = [_logits_and_gradient(net, x) for net in (self.network, model)]
            logits, gradient = map(_difference, *both)
            problem = f"logits differ by {logits:.0e}, gradients by {gradient:.0e} of their length"
        except (RuntimeError, TypeError) as error:
            if out_of_gpu_memory(error):
                raise
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
            self.network, self._folds = _mirror(model, {}), _Folds([], [], [])
        self._checked = True
        if self._compiles:
            self.network.compile()


class _Folds:
    """Weights and biases of the folded convolutions.

    The vectors of all layers are computed together, because a GPU needs much longer to start an
    operation than to compute one vector.

    Args:
        convs: convolutions of the model.
        norms: BatchNorm after each convolution.
        folded: copy of each convolution, which gets its own weight and bias.
    """

    def __init__(self, convs: list, norms: list, folded: list):
        self.convs, self.folded = convs, folded
        self.sizes = [len(conv.weight) for conv in convs]
        rows = [_vectors(conv, norm) for conv, norm in zip(convs, norms, strict=True)]
        self.vectors = list(zip(*rows, strict=True))
        if not convs:
            return
        self.biases = torch.cat([norm.running_mean for norm in norms])
        parts = self.biases.split(self.sizes)
        for conv, new, bias in zip(convs, folded, parts, strict=True):
            new.weight = nn.Parameter(torch.empty_like(conv.weight), requires_grad=False)
            new.bias = nn.Parameter(bias, requires_grad=False)

    def refresh(self) -> None:
        """Compute the weights and biases from the weights of the model."""
        if not self.convs:
            return
        mean, variance, gamma, beta, bias, eps = map(torch.cat, self.vectors)
        inverse = torch.rsqrt(variance + eps)
        self.biases.copy_((bias - mean) * inverse * gamma + beta)
        scales = (gamma * inverse).split(self.sizes)
        for conv, new, scale in zip(self.convs, self.folded, scales, strict=True):
            torch.mul(conv.weight, scale.view(-1, 1, 1, 1), out=new.weight)


def _vectors(conv: Any, norm: Any) -> tuple[Tensor, ...]:
    """Return mean, variance, weight and bias of the BatchNorm, bias of the convolution, and eps."""
    mean = norm.running_mean
    ones, zeros = torch.ones_like(mean), torch.zeros_like(mean)
    optional = (norm.weight, ones), (norm.bias, zeros), (conv.bias, zeros)
    known = (default if value is None else value.detach() for value, default in optional)
    return mean, norm.running_var, *known, ones * norm.eps


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


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
        mirrored._parameters = {
            name: None if p is None else nn.Parameter(p.detach(), requires_grad=False)
            for name, p in module._parameters.items()
        }
        mirrored._buffers = dict(module._buffers)
    return seen[id(module)]


def _fold(network: nn.Module) -> tuple[nn.Module, list[tuple[str, str]]]:
    """Remove each BatchNorm after a convolution whose output has no other use.

    Returns:
        The network without these BatchNorms, and the paths of each convolution and its BatchNorm.
    """
    if not any(type(module) in FOLDED for module in network.modules()):
        return network, []
    try:
        graph = fx.Tracer().trace(network)
    except Exception:  # tracing the model's code may raise any exception
        return network, []
    folds = []
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in list(graph.nodes):
        norm = _batchnorm_after(network, node)
        if norm is not None and calls[node.target] == calls[norm.target] == 1:
            folds.append((str(node.target), str(norm.target)))
            norm.replace_all_uses_with(node)
            graph.erase_node(norm)
    return fx.GraphModule(network, graph), folds


def _batchnorm_after(network: nn.Module, node: fx.Node) -> fx.Node | None:
    """Return the only call that uses this convolution's output if it is a BatchNorm, or None."""
    users = list(node.users)
    if node.op != "call_module" or len(users) != 1 or users[0].op != "call_module":
        return None
    conv, norm = (network.get_submodule(str(call.target)) for call in (node, users[0]))
    known = type(norm) in FOLDED
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
