"""A twin of a classifier for attacks: the same function in eval mode, and cheaper to run.

In eval mode, a BatchNorm behind a convolution is a scale and a shift per channel, which the
convolution's weights can carry. Weights do not change during an attack: folding and packing them
once per batch saves work in each of its steps. See docs/SPEED_TRAINING.md for what that is worth.
"""

import copy
import math
import sys
from collections import Counter

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from classification.training.cpu.convolutions import Packed


class Twin(nn.Module):
    """What an attack should run on instead of `model`.

    twin = Twin(model)                          # once
    x_adv = adversary(twin.refresh(), x, y)     # for each batch

    It is the model in eval mode, always, and touches nothing of the model: neither modes nor
    parameters, buffers or `.grad`. Differentiable once, with respect to the images only.

    The first batch compares it with the model. Should they differ, it says so once on stderr and
    runs the model as it is from then on.

    Args:
        model: `(N, C, H, W)` -> logits; the module inside DistributedDataParallel, if any.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self._model = (model,)  # not a submodule: its modes are its own
        self.plain = _mirror(model, {})
        self.network, self._folds = _fold(_mirror(model, {}))
        self._checked = False
        self.eval().refresh()

    def train(self, mode: bool = True) -> "Twin":
        """Stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def refresh(self) -> "Twin":
        """Take over the model's present weights and statistics. Needed after each change."""
        (model,) = self._model
        sources = dict(model.named_modules(remove_duplicate=False))
        for network in (self.plain, self.network):
            for path, copied in network.named_modules():
                if path in sources and not isinstance(copied, Packed):
                    _share(sources[path], copied)
        for conv_path, norm_path in self._folds.items():
            conv, packed = sources[conv_path], self.network.get_submodule(conv_path)
            assert isinstance(packed, Packed)
            weight, bias = conv.weight, conv.bias
            if norm_path is not None:
                norm = sources[norm_path]
                weight, bias = fuse_conv_bn_weights(
                    weight,
                    bias,
                    norm.running_mean,
                    norm.running_var,
                    norm.eps,
                    norm.weight,
                    norm.bias,
                )
            packed.set_weights(weight.detach(), None if bias is None else bias.detach())
        return self

    def forward(self, x: Tensor) -> Tensor:
        """x: as the model's -> logits, as the model's in eval mode."""
        if not self._checked:
            self._check(x[:2])
        return self.network(x)

    def _check(self, x: Tensor) -> None:
        self._checked = True
        self.refresh()  # else a twin that is out of date would be taken for a wrong one
        try:
            with torch.autocast(x.device.type, enabled=False):
                sides = [_logits_and_gradient(net, x) for net in (self.network, self.plain)]
            logits, gradient = map(_difference, *sides)
            problem = f"logits differ by {logits:.0e}, gradients by {gradient:.0e} of their length"
        except (RuntimeError, TypeError) as error:
            logits, gradient, problem = math.inf, math.inf, str(error)
        # Rounding decides about ReLUs that are nearly 0, so that gradients jump a little: seen in
        # float32 are 2e-6 and 1e-2. Something folded wrongly differs by about 1.
        unit = torch.finfo(x.dtype).eps ** 0.5
        if not (logits <= 10 * unit and gradient <= 300 * unit):  # so written, NaN fails too
            print(
                f"the attack runs on the model as it is, since its folded twin is not equal: "
                f"{problem}",
                file=sys.stderr,
                flush=True,
            )
            self.network, self._folds = self.plain, {}


def _mirror(module: nn.Module, seen: dict) -> nn.Module:
    """A copy in eval mode, with tensors that are shared with the original and need no gradient."""
    if id(module) not in seen:
        seen[id(module)] = copied = copy.copy(module)
        copied._modules = {
            name: None if child is None else _mirror(child, seen)
            for name, child in module._modules.items()
        }
        copied.training = False
        _share(module, copied)
    return seen[id(module)]


def _share(source: nn.Module, copied: nn.Module) -> None:
    """Only the module's own tensors, not its children's."""
    copied._parameters = {
        name: None if p is None else nn.Parameter(p.detach(), requires_grad=False)
        for name, p in source._parameters.items()
    }
    copied._buffers = dict(source._buffers)


def _fold(network: nn.Module) -> tuple[nn.Module, dict[str, str | None]]:
    """The network with `Packed` convolutions, and which BatchNorm each has taken in, if any."""
    convs = {path: m for path, m in network.named_modules() if Packed.takes(m)}
    folds, relus = dict.fromkeys(convs), set()
    try:
        graph = fx.Tracer().trace(network)
    except Exception:  # tracing runs any code with stand-ins for tensors: all may be raised
        graph = None  # who uses what is unknown: nothing is folded
    if graph is not None:
        calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
        for node in list(graph.nodes):
            if calls[node.target] != 1 or node.target not in convs:
                continue
            norm = _only_user(node, graph)
            if norm is not None and calls[norm.target] == 1 and _folds(network, norm):
                folds[node.target] = norm.target
                _skip(norm, node, graph)
            relu = _only_user(node, graph)
            if relu is not None and _is_relu(network, relu):
                relus.add(node.target)
                _skip(relu, node, graph)
    for path, conv in convs.items():
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, Packed(conv, relu=path in relus))
    return (network if graph is None else fx.GraphModule(network, graph)), folds


def _only_user(node: fx.Node, graph: fx.Graph) -> fx.Node | None:
    """The one that takes the node's result, as its only tensor."""
    users = list(node.users)
    if len(users) == 1 and users[0].all_input_nodes == [node] and users[0].args[:1] == (node,):
        return users[0]
    return None


def _skip(node: fx.Node, before: fx.Node, graph: fx.Graph) -> None:
    node.replace_all_uses_with(before)
    graph.erase_node(node)


def _folds(network: nn.Module, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    norm = network.get_submodule(str(node.target))
    known = type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm)
    return known and norm.running_mean is not None


def _is_relu(network: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return type(network.get_submodule(str(node.target))) is nn.ReLU
    return node.op == "call_function" and node.target in (F.relu, torch.relu, torch.relu_)


def _logits_and_gradient(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of a weighted sum of them with respect to x."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = network(x)
        weights = torch.linspace(-1, 1, logits.shape[1], dtype=logits.dtype, device=x.device)
        total = (logits * weights).sum()
        if not total.requires_grad:
            return logits, torch.zeros_like(x)
        return logits.detach(), torch.autograd.grad(total, x)[0]


def _difference(found: Tensor, expected: Tensor) -> float:
    """Length of the difference over the length of what is expected."""
    found, expected = found.double(), expected.double()
    if torch.equal(found, expected):
        return 0.0
    return ((found - expected).norm() / expected.norm()).item()
