"""The command `python -m robust_backbones.zoo`: list, show, fetch and verify published models."""

import argparse

from robust_backbones.core.cli import Parser
from robust_backbones.core.eps import show_eps
from robust_backbones.core.errors import UserError, user_errors
from robust_backbones.zoo import (
    HUB_REPO,
    HUB_REVISION,
    LICENCE,
    MODELS,
    RESNETS,
    SCHEME,
    find,
    select,
)

_TABLE_HEAD = f"""\
# Published models

Made by `python -m robust_backbones.zoo table > docs/model_zoo.md`; do not edit.

ImageNet classifiers of Salman et al. 2020, from the Hugging Face hub's repository
[{HUB_REPO}](https://huggingface.co/{HUB_REPO}),
commit `{HUB_REVISION[:8]}`, licence {LICENCE}.
Write `{SCHEME}NAME` as `MODEL.WEIGHTS` of a detector
(ResNets only), or NAME wherever weights are taken.

- ε is for pixels in [0, 1]: the L2 norm over a 3×224×224 image, or the L∞ distance of every value,
  which names and files count in 1/255. `eps0` is the standard model of the same recipe.
- An architecture may also be spelled as in its files, and a whole number as `3` or `3.0`.
- Where no SHA-256 is known, the digest of the first file is recorded; from then on it is enforced.

| name | ε | ImageNet top-1, % | MB | file | SHA-256 |
|---|---|---|---|---|---|"""


def _shown(value: float | None, form: str = "g") -> str:
    return "-" if value is None else format(value, form)


def _list(args: argparse.Namespace) -> None:
    models = select(args.arch, args.norm)
    print(f"{'name':28} {'arch':18} {'norm':5} {'eps':8} {'top-1 %':>7} {'MB':>5}")
    for m in models:
        row = f"{m.name:28} {m.arch:18} {m.constraint:5} {show_eps(m.constraint, m.eps):8}"
        print(f"{row} {_shown(m.accuracy, '.2f'):>7} {_shown(m.size_mb):>5}")


def _show(args: argparse.Namespace) -> None:
    model = find(args.name)
    mb = "unknown" if model.size_mb is None else f"about {model.size_mb:g} MB"
    rows = {
        "name": SCHEME + model.name,
        "arch": model.arch,
        "norm": model.constraint,
        "eps": f"{show_eps(model.constraint, model.eps)} (pixels in [0, 1])",
        "ImageNet top-1": f"{model.accuracy:.2f} %" if model.accuracy else "not published",
        "Detectron2": "yes" if model.arch in RESNETS else "no, only ResNets convert",
        "file": f"{model.file} of {HUB_REPO}" + ("" if model.listed else " (unlisted)"),
        "size": mb,
        "sha256": model.sha256 or "unknown: recorded at first use",
        "licence": LICENCE,
    }
    for key, value in rows.items():
        print(f"{key:16}{value}")


def _fetch(args: argparse.Namespace) -> None:
    from robust_backbones import weights

    for name in args.names:
        weights.digest(name)  # a wrong name fails before the first long download
    for name in args.names:
        print(weights.resolve(name), flush=True)


def _verify(args: argparse.Namespace) -> None:
    from robust_backbones import weights

    bad = 0
    source = None
    for source, state, text in weights.verify(args.names):
        print(f"{state:5}{source}  {text}", flush=True)
        bad += state == "BAD"
    if source is None:
        print("no file was fetched yet")
    if bad:
        raise UserError(f"{bad} cached {'files were' if bad > 1 else 'file was'} bad; see above.")


def _table(args: argparse.Namespace) -> None:
    print(_TABLE_HEAD)
    for m in MODELS.values():
        name = f"`{m.name}`" + ("" if m.listed else " (unlisted)")
        digest = f"`{m.sha256[:16]}…`" if m.sha256 else ""
        eps = show_eps(m.constraint, m.eps)
        cells = (name, eps, _shown(m.accuracy, ".2f"), _shown(m.size_mb), f"`{m.file}`")
        print(f"| {' | '.join((*cells, digest))} |")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description="The published models.")

    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("list", help="names, architectures, eps, ImageNet accuracies")
    command.add_argument("--arch", metavar="NAME", help="only this one, such as resnet50")
    command.add_argument("--norm", metavar="NORM", help="only l2 or linf")
    command.set_defaults(run=_list)
    command = commands.add_parser("show", help="all that is known about one model")
    command.add_argument("name", metavar="NAME", help="such as resnet50_l2_eps3")
    command.set_defaults(run=_show)
    command = commands.add_parser("fetch", help="download models into the cache; print their paths")
    command.add_argument(
        "names",
        metavar="NAME",
        nargs="+",
        help="a model's name, or a URL: https://..., hf://OWNER/REPO/FILE",
    )
    command.set_defaults(run=_fetch)
    command = commands.add_parser("verify", help="hash cached files again; remove bad ones")
    command.add_argument("names", metavar="NAME", nargs="*", help="default: all cached files")
    command.set_defaults(run=_verify)
    commands.add_parser("table", help="print docs/model_zoo.md").set_defaults(run=_table)

    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run one command; user mistakes are one line and exit code 2."""
    args = parse(argv)
    with user_errors():
        args.run(args)
