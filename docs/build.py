"""Write the generated reference pages, and build the documentation site.

python docs/build.py          # output/site/index.html
python docs/build.py --pages  # only the generated pages in docs/

The site is built from a copy of docs/ in which notebooks are pages.
"""

import argparse
import ast
import contextlib
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

from detectron2.config import CfgNode, get_cfg
from nbconvert import MarkdownExporter

from robust_backbones import __main__ as program
from robust_backbones.core.files import atomic
from robust_backbones.detection import add_robust_config, config

ROOT = Path(__file__).resolve().parents[1]
DOCS, COPY = ROOT / "docs", ROOT / "output/docs"
FROM_ROOT = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}


def printed(arguments: list[str]) -> str:
    """Return what `robust-backbones ARGUMENTS` prints."""
    output = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["robust-backbones"]),
        contextlib.redirect_stdout(output),
        contextlib.suppress(SystemExit),
    ):
        program.main(arguments)
    return output.getvalue()


def commands() -> str:
    """Return the page of all commands, with the help of each."""
    parts = [
        "# Commands\n\n"
        "Every command explains its options with `--help`. All commands share their exit codes: "
        "0 for success, 1 if a check or a step of the demo failed, 2 for invalid input, and 75 for "
        "an interrupted run that can resume."
    ]
    for name, (_, about) in program.COMMANDS.items():
        parts.append(f"## {name}\n\n{about[0].upper()}{about[1:]}.")
        own = printed([name, "--help"])
        actions = re.findall(r"^    (\w+)", own.partition("\n  COMMAND\n")[2], re.MULTILINE)
        for text in (own, *(printed([name, action, "--help"]) for action in actions)):
            parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def config_keys() -> str:
    """Return the page of configuration keys, from the comments in `add_robust_config`."""
    cfg = get_cfg()
    add_robust_config(cfg)
    source = Path(config.__file__).read_text(encoding="utf-8")
    lines = source.splitlines()
    [function] = [
        node for node in ast.parse(source).body if getattr(node, "name", "") == "add_robust_config"
    ]
    rows, comment = [], []
    for line in lines[function.lineno : function.end_lineno]:
        if found := re.fullmatch(r" +# (.*)", line):
            comment.append(found[1])
        elif found := re.match(r" +cfg\.([A-Z0-9_.]+) = ", line):
            value: object = cfg
            for part in found[1].split("."):
                value = getattr(value, part)
            if not isinstance(value, CfgNode):
                text = f"{value:.4g}" if isinstance(value, float) else repr(value)
                default = MACHINE.get(found[1], f"`{text}`")
                rows.append((f"`{found[1]}`", default, " ".join(comment)))
                comment = []
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows if row[-1])
    return (
        "# Configuration keys\n\n"
        "`add_robust_config(cfg)` adds these keys to Detectron2's own, or changes their defaults. "
        "Set them in a config file, or as `KEY VALUE` pairs at the end of a command.\n\n"
        "| key | default | meaning |\n| --- | --- | --- |\n" + table + "\n"
    )


# Defaults that depend on the machine.
MACHINE = {"DATALOADER.NUM_WORKERS": "from the number of cores and GPUs"}
# Generated pages, which are committed so that they can be read in the repository as well.
PAGES = {
    "results/model_zoo.md": lambda: printed(["zoo", "table"]),
    "reference/commands.md": commands,
    "reference/config_keys.md": config_keys,
}


def copy() -> None:
    """Copy the pages and their pictures to `COPY`, with notebooks converted to Markdown."""
    shutil.rmtree(COPY, ignore_errors=True)
    shutil.copytree(DOCS, COPY, ignore=shutil.ignore_patterns("*.py", "__pycache__", ".*"))
    for name, page in FROM_ROOT.items():
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](../")
        for other, its_page in FROM_ROOT.items():
            text = text.replace(f"]({other})", f"]({its_page})")
        (COPY / "development" / page).write_text(text, encoding="utf-8")
    for notebook in COPY.rglob("*.ipynb"):
        text, resources = MarkdownExporter().from_filename(
            notebook, {"output_files_dir": f"{notebook.stem}_files"}
        )
        title, _, rest = text.lstrip().partition("\n")
        link = f'\n<a href="{notebook.name}" download>Download this notebook</a>\n'
        notebook.with_suffix(".md").write_text(f"{title}\n{link}{rest}", encoding="utf-8")
        for path, data in resources["outputs"].items():
            picture = notebook.parent / path
            picture.parent.mkdir(exist_ok=True)
            picture.write_bytes(data)
    for page in COPY.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace(".ipynb)", ".md)"), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pages", action="store_true", help="only write the generated pages")
    args = parser.parse_args()
    for name, make in PAGES.items():
        with atomic(DOCS / name) as path:
            path.write_text(make(), encoding="utf-8")
    if not args.pages:
        copy()
        build = [Path(sys.executable).with_name("zensical"), "build", "--strict", "--clean"]
        if status := subprocess.run(build, cwd=ROOT, check=False).returncode:
            sys.exit(status)
        print("output/site/index.html")


if __name__ == "__main__":
    main()
