"""A stand-in for a GPU: a device of PyTorch whose tensors are in CPU memory.

As with CUDA, torch refuses operations that mix its tensors with CPU tensors, and random numbers
from a generator of another device. `synchronizations` counts the operations for which the host
would wait for a GPU. Autocast has no effect on this device.
"""

import contextlib
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._mode_utils import no_dispatch

NAME = "standin"
# A second accelerator would disturb CUDA, and old versions cannot register a device from Python.
AVAILABLE = not torch.cuda.is_available() and hasattr(
    backend_registration, "_setup_privateuseone_for_python_backend"
)
CPU = torch.device("cpu")

aten = torch.ops.aten
COPIES = {aten._to_copy, aten.copy_}  # the only operations between devices
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
LISTS = {aten.cat, aten.stack}  # unlike arithmetic, these do not accept scalars of the CPU
READS = {  # the host needs the result or its shape
    *(aten._local_scalar_dense, aten.equal, aten.nonzero, aten.masked_select, aten.bincount),
    *(aten._unique2, aten.unique_dim, aten.unique_consecutive),
}
# Operations that create tensors. All others are called with one, or call one of these.
FACTORIES = ("arange", "empty", "empty_strided", "eye", "linspace", "randperm")


class StandInTensor(torch.Tensor):
    """A tensor on the stand-in device, with its values in the CPU tensor `inner`."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})

    def tolist(self):
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol):  # a saved tensor is loaded as one of the CPU
        return self.detach().cpu().__reduce_ex__(protocol)

    def __repr__(self, **kwargs):
        return f"StandInTensor({self.inner})"


class Generator(torch.Generator):
    """A generator on the CPU or on the stand-in device."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        made._device = torch.device(device)
        return made

    def __init__(self, device="cpu"):
        pass

    @property
    def device(self):
        return self._device


class _Module:
    """`torch.standin`: what torch calls as functions of `torch.cuda`."""

    is_available = is_initialized = staticmethod(lambda: True)
    _is_in_bad_fork = staticmethod(lambda: False)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    manual_seed = manual_seed_all = staticmethod(lambda seed: None)
    set_device = synchronize = set_rng_state = staticmethod(lambda *args: None)
    get_rng_state = staticmethod(lambda *args: torch.get_rng_state())
    get_amp_supported_dtype = staticmethod(lambda: [torch.float16, torch.bfloat16])


_waits: list[str] = []  # operations for which the host would have waited


def _run(function, args, kwargs):
    """Check the devices of an operation, and run it on the CPU."""
    flat, structure = pytree.tree_flatten((args, kwargs))
    tensors = [a for a in flat if isinstance(a, torch.Tensor)]
    ours = [t for t in tensors if isinstance(t, StandInTensor)]
    target = kwargs.get("device")
    on_device = bool(ours) if target is None else torch.device(target).type == NAME
    _check(function, tensors, ours, on_device, any(a is True for a in flat))
    if torch.Tag.inplace_view in function.tags:  # the wrapper has a shape of its own
        with no_dispatch(), _meta():
            function(*args, **kwargs)
    args, kwargs = pytree.tree_unflatten([_on_cpu(a) for a in flat], structure)
    kwargs.pop("pin_memory", None)
    result = function(*args, **kwargs)
    known = {id(t.inner): t for t in ours}  # operations in place return the same tensor

    def wrap(value):
        if not on_device or not isinstance(value, torch.Tensor):
            return value
        if id(value) not in known:
            return StandInTensor(value)
        assert value.shape == known[id(value)].shape, f"{function} in place changes the shape"
        return known[id(value)]

    return pytree.tree_map(wrap, result)


@contextlib.contextmanager
def _meta():
    """Let operations change sizes and strides only, as torch does for its own wrappers."""
    before = torch._C._meta_in_tls_dispatch_include()
    torch._C._set_meta_in_tls_dispatch_include(True)
    try:
        yield
    finally:
        torch._C._set_meta_in_tls_dispatch_include(before)


def _on_cpu(value):
    if isinstance(value, StandInTensor):
        return value.inner
    return CPU if isinstance(value, torch.device) else value


def _check(function, tensors, ours, on_device, flag) -> None:
    """Refuse what CUDA refuses, and note operations for which the host would wait.

    Args:
        flag: whether a boolean argument is true. The only one of copies is `non_blocking`.

    Raises:
        RuntimeError: the tensors are on different devices.
    """
    name = function.overloadpacket
    others = [t for t in tensors if not isinstance(t, StandInTensor)]
    if name in COPIES:
        moved = bool(ours) != on_device or bool(ours and others)
        if moved and not flag:
            _waits.append(str(function))
        return
    if name in INDEXING:
        if not isinstance(tensors[0], StandInTensor):
            raise RuntimeError(f"{function}: indices on {NAME} for a tensor on the CPU")
        if any(t.dtype in (torch.bool, torch.uint8) for t in tensors[1:]):
            _waits.append(str(function))
        return
    if name in READS:
        _waits.append(str(function))
    if ours and any(t.dim() > 0 or name in LISTS for t in others):
        shapes = [f"{tuple(t.shape)} on {t.device}" for t in tensors]
        raise RuntimeError(f"{function}: expected all tensors on one device: {', '.join(shapes)}")


@cache
def register() -> list[torch.library.Library]:
    """Make the device known to torch, for all of this process.

    Call this function before the first backward pass, in which torch starts a thread per device.
    """
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    library = torch.library.Library("aten", "IMPL")
    for name in FACTORIES:
        packet = getattr(aten, name)
        for overload in packet.overloads():
            function = getattr(packet, overload)
            if "out" not in overload and "names" not in overload:
                _implement(library, function)
    library.impl("_copy_from", _copy, "PrivateUse1")
    autocast = torch.library.Library("_", "IMPL")
    autocast.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    return [library, autocast]  # their registrations end with these objects


def _implement(library: torch.library.Library, function) -> None:
    def implementation(*args, **kwargs):
        return _run(function, args, kwargs)

    library.impl(function.name().removeprefix("aten::"), implementation, "PrivateUse1")


def _copy(source, target, non_blocking=False):
    """Copy inside operations such as `torch.tensor`, where tensors do not call `_run`."""
    if not non_blocking:
        _waits.append("aten._copy_from")
    _on_cpu(target).copy_(_on_cpu(source))
    return target


class _Generators(TorchFunctionMode):
    """Refuse random numbers for a device from a generator of another one."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        generator = (kwargs or {}).get("generator")
        if generator is not None and result.device.type != generator.device.type:
            raise RuntimeError(
                f"{function}: numbers on {result.device} from a generator on {generator.device}"
            )
        return result


@contextlib.contextmanager
def stand_in() -> Iterator[torch.device]:
    """Yield the stand-in device, whose generators can be created in this context."""
    register()
    with pytest.MonkeyPatch.context() as patch, _Generators():
        patch.setattr(torch, "Generator", Generator)
        patch.setattr(torch.Tensor, "pin_memory", lambda tensor, *device: tensor)
        yield torch.device(NAME, 0)


@contextlib.contextmanager
def synchronizations() -> Iterator[list[str]]:
    """Yield a list that gets the name of each operation for which the host would wait.

    These are reads of values (`item`, `tolist`, `bool`), operations whose result has a shape that
    depends on values (`nonzero`, indexing by a mask), and copies between devices, unless they are
    `non_blocking`.
    """
    _waits.clear()
    yield _waits
