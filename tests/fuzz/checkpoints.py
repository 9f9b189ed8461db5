"""Checkpoints: zip, legacy, NumPy pickle and safetensors; changed tensors, code and packing."""

import io
import json
import os
import pickle
import random
import shutil
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import torch

from robust_backbones.checkpoint import architectures as networks
from robust_backbones.checkpoint.formats import FORMAT
from robust_backbones.checkpoint.io import read_checkpoint
from robust_backbones.core.errors import UserError
from tests.fuzz.cases import Seed
from tests.fuzz.mutations import NUMBERS, as_json, change
from tests.fuzz.mutations import value as strange

ARCH = "shufflenet_v2_x1_0"  # the smallest supported architecture


class Evil:
    """An object that starts a program when it is unpickled."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def _evil(rng: random.Random):
    return rng.choice(
        (
            Evil(os.system, "touch /tmp/fuzz-canary"),
            Evil(eval, "1 + 1"),
            Evil(open, "/etc/passwd"),
            Evil(exec, "import os; os.system('touch /tmp/fuzz-canary')"),
            Evil(getattr, "torch", "load"),
            Evil(shutil.rmtree, "/tmp/fuzz-canary"),
            Evil(bytearray, 10**11),
            Evil(np.empty, 10**11),
            Evil(torch.zeros, 10**11),
            Evil(torch.load, "/etc/passwd"),
            Evil(print, "x"),
        )
    )


def _tensor(rng: random.Random):
    """A tensor, or an unexpected value instead."""
    sizes = [rng.choice((0, 1, 2, 3, 7, 10**6, 2**40)) for _ in range(rng.randrange(5))]
    return rng.choice(
        (
            lambda: torch.zeros(1).expand(sizes or 1),
            lambda: torch.zeros(2, 3, dtype=torch.int8),
            lambda: torch.full((3,), float("nan")),
            lambda: torch.zeros(0),
            lambda: torch.zeros(()),
            lambda: torch.eye(3).to_sparse(),
            lambda: torch.eye(3).to_sparse_csr(),
            lambda: torch.zeros(3, dtype=torch.complex64),
            lambda: torch.zeros(3, device="meta"),
            lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
            lambda: torch.zeros(3, dtype=torch.bool),
            lambda: torch.zeros(4, 4).t()[1:],
            lambda: torch.zeros(3, dtype=torch.float64),
            lambda: np.zeros(3),
            lambda: np.zeros(()),
            lambda: np.array([None, 1], object),
            lambda: torch.nn.Parameter(torch.zeros(3)),
            lambda: torch.zeros(3, dtype=torch.float8_e5m2),
            lambda: torch.Size([1]),
            lambda: np.zeros(2, [("a", "f4")]),
            lambda: np.array(["x"]),
            lambda: np.float32(1),
            lambda: _evil(rng),
            lambda: strange(rng),
        )
    )()


def _networks() -> list[dict]:
    """Contents of checkpoints, one per layout. Only the first is a complete network."""
    rng = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = networks.build_network(ARCH, 2).state_dict()
    whole = {name: t.half() if t.is_floating_point() else t for name, t in net.items()}
    part = {
        "conv1.weight": torch.rand(2, 3, 1, 1, generator=rng),
        "fc.bias": torch.zeros(2),
        "bn1.running_var": torch.ones(2),
        "bn1.num_batches_tracked": torch.tensor(1),
    }
    statistics = {
        "normalizer.new_mean": torch.full((3, 1, 1), 0.5),
        "normalizer.new_std": torch.full((3, 1, 1), 0.2),
    }
    robustness = {
        f"module.{k}": v
        for k, v in ({f"model.{k}": v for k, v in part.items()} | statistics).items()
    }
    stem = {
        "backbone.bottom_up.stem.conv1.weight": torch.zeros(64, 3, 7, 7),
        "backbone.bottom_up.res2.0.conv1.weight": torch.zeros(4, 4, 1, 1),
    }
    ours = {
        "format": FORMAT,
        "version": 1,
        "metadata": {"mean": [0.5] * 3, "std": [0.2] * 3, "eps": 1.0},
    }
    return [
        {"model": whole, **ours},
        {"model": part, **ours},
        {"model": robustness, "epoch": 3, "optimizer": {"state": {0: {"m": torch.zeros(2)}}}},
        {"model": stem, "metadata": {"channel_order": "RGB", "mean": [0.5] * 3, "std": [0.2] * 3}},
        {"state_dict": {f"module.encoder_q.{k}": v for k, v in part.items()}},
        {"net": part, "best": np.float64(0.5), "run": {"ema": part, "epoch": np.int64(3)}},
        {"model": {f"1.{k}": v for k, v in part.items()} | {"0.mu": torch.full((3,), 0.5)}},
        part,
    ]


def _torch_file(contents, zipped=True) -> bytes:
    file = io.BytesIO()
    torch.save(contents, file, _use_new_zipfile_serialization=zipped, pickle_protocol=2)
    return file.getvalue()


def _changed(contents: dict, rng: random.Random) -> dict:
    return change(contents, rng, lambda r: _tensor(r) if r.random() < 0.7 else strange(r))


def torch_seeds(zipped: bool):
    def seeds(folder: Path) -> list[Seed]:
        found = []
        for number, contents in enumerate(_networks()):

            def build(rng, contents=contents):
                try:
                    data = _torch_file(_changed(contents, rng), zipped)
                except Exception:  # some values cannot be written
                    data = _torch_file(contents, zipped)
                return _repacked(data, rng) if zipped and rng.random() < 0.3 else data

            seed = Seed("x.pth", _torch_file(contents, zipped), build)
            found += [seed] * (
                3 if number == 0 else 6
            )  # the complete network takes 50 times as long
        return found

    return seeds


def _repacked(data: bytes, rng: random.Random) -> bytes:
    """Change the pickle code, names or compression, and keep the checksums valid."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            part, name = old.read(entry), entry.filename
            if name.endswith("data.pkl") and rng.random() < 0.7:
                part = _other_code(part, rng)
            if rng.random() < 0.05:
                name = rng.choice(("../x", "/x", "data.pkl", name * 2, "a/data/0", "\u00e9"))
            if rng.random() < 0.1:
                part = part[: rng.randrange(len(part) + 1)] + bytes(rng.choice((0, 1, 10**6)))
            packing = rng.choice((zipfile.ZIP_STORED,) * 4 + (zipfile.ZIP_DEFLATED,))
            new.writestr(name, part, packing)
    return out.getvalue()


_CALLS = (
    b"cos\nsystem\n",
    b"cbuiltins\neval\n",
    b"cposix\nsystem\n",
    b"cbuiltins\ngetattr\n",
    b"csubprocess\nPopen\n",
    b"c__builtin__\nexec\n",
    b"cnumpy\nload\n",
    b"ctorch\nload\n",
    b"ctorch.hub\nload\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ccollections\nCounter\n",
    b"cnumpy.core.multiarray\nscalar\n",
    b"cnumpy.core.multiarray\n_reconstruct\n",
    b"c_codecs\nencode\n",
    b"cnumpy\ndtype\n",
    b"cnumpy\nndarray\n",
    b"coperator\nattrgetter\n",
    b"cfunctools\npartial\n",
    b"ctorch\nFloatStorage\n",
    b"ccollections\nOrderedDict\n",
    b"cbuiltins\nbytearray\n",
    b"\x8c\x02os\x8c\x06system\x93",
    b"cos\nsystem\n(Vtouch x\ntR",
    b"(S'touch x'\nios\nsystem\n.",
)
_CODES = tuple(
    bytes([n])
    for n in b"().0123NJKMGXVSIFL[]{}abcdeghijlopqrstuQPR\x80\x81\x82\x85\x86"
    b"\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x90\x91\x92\x93\x94\x95"
)
PICKLE_WORDS = (
    _CALLS
    + _CODES
    + (
        b"K\x00",
        b"M\xff\xff",
        b"J\xff\xff\xff\x7f",
        b"(" * 5000,
        b"tR",
        b")R",
        b"I9999999999\n",
        b"]" * 5000,
    )
)


def _other_code(data: bytes, rng: random.Random) -> bytes:
    """Change the opcodes of a pickle."""
    for _ in range(rng.choice((1, 2, 3))):
        start = rng.randrange(2, len(data) + 1) if len(data) > 2 else 0
        word = rng.choice(PICKLE_WORDS)
        data = data[:start] + word + data[start + rng.choice((0, 0, 1, len(word))) :]
    return data


def pickle_seeds(folder: Path) -> list[Seed]:
    numpy = [
        {k: v.numpy() for k, v in net["model"].items()} if "model" in net else None
        for net in _networks()[1:4]
    ]
    found = []
    for tensors in (net for net in numpy if net):
        contents = {"model": tensors, "__author__": "x", "metadata": {"channel_order": "RGB"}}

        def build(rng, contents=contents):
            if rng.random() < 0.5:
                return _other_code(pickle.dumps(contents, 2), rng)
            try:
                return pickle.dumps(_changed(contents, rng), rng.choice((2, 3, 4, 5)))
            except Exception:  # some values cannot be written
                return pickle.dumps({"model": _evil(rng)}, 4)

        found.append(Seed("x.pkl", pickle.dumps(contents, 2), build))
    return found


def safetensors_seeds(folder: Path) -> list[Seed]:
    from safetensors.torch import save

    found = []
    for net in _networks()[1:5]:
        notes = {key: node for key, node in net.items() if key in ("format", "version", "metadata")}
        text = {"robust_backbones": json.dumps(notes)}
        data = save(net.get("model") or net["state_dict"], text)
        found.append(Seed("x.safetensors", data, partial(_other_header, data, notes)))
    return found


def _other_header(data: bytes, notes: dict, rng: random.Random) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if rng.random() < 0.3:
        ours = as_json(change(notes, rng)).decode("utf-8", "replace")
        text = as_json(header | {"__metadata__": {"robust_backbones": ours}})
    else:
        text = as_json(change(header, rng))
    length = len(text) if rng.random() < 0.9 else rng.choice(NUMBERS)
    return length.to_bytes(8, "little") + text + data[8 + size :]


def read_weight_file(folder: Path, path: Path) -> None:
    for detector in (False, True):
        try:
            read_checkpoint(path, from_detector=detector, assume_rgb=detector)
        except UserError:
            if detector:
                raise
