"""Hooks of MkDocs: notebooks become pages, and links are called as the pages are.

Each notebook is a Markdown page with its outputs, and can be downloaded. A plugin that shows
notebooks as HTML was tried: its pages fetch scripts from other hosts, and their links to our pages
are neither translated nor checked. Markdown has both for nothing.
"""

import base64
import json
import re
from pathlib import PurePosixPath

from mkdocs.structure.files import File


def on_files(files, config):
    """Beside each notebook its page, and its pictures."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        place = PurePosixPath(file.src_uri)
        text, pictures = page(json.loads(file.content_string), place.name)
        files.append(File.generated(config, str(place.with_suffix(".md")), content=text))
        for name, data in pictures.items():
            files.append(File.generated(config, str(place.with_name(name)), content=data))
    return files


def on_page_markdown(markdown, page, config, files):
    """What is right in the repository made right here: a link to a notebook leads to its page, and
    `[data.md](data.md#layouts)` is called by the page's title."""
    markdown = markdown.replace(".ipynb)", ".md)")

    def titled(link: re.Match) -> str:
        found = files.get_file_from_path(link[2])
        return f"[{found.page.title}]({link[1]})" if found else link[0]

    return re.sub(r"\[[\w.]+\.md\]\((([\w.]+\.md)[^)]*)\)", titled, markdown)


def page(notebook: dict, name: str) -> tuple[str, dict[str, bytes]]:
    """Markdown, and the pictures that it shows.

    Args:
        notebook: as in its file, format 4.
        name: of its file.
    """
    parts, pictures = [], {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        said = "".join(map(_text, cell["outputs"])).strip("\n")
        if said:
            parts.append(f'```text title="output"\n{said}\n```')
        for ending in ("png", "jpeg"):
            for output in cell["outputs"]:
                if drawn := output.get("data", {}).get(f"image/{ending}"):
                    picture = f"{name.removesuffix('.ipynb')}_{len(pictures)}.{ending}"
                    pictures[picture] = base64.b64decode(drawn)
                    parts.append(f"![What the cell draws]({picture})")
    link = f'<a href="{name}" download>Download this notebook</a>'
    return "\n\n".join([parts[0], link, *parts[1:]]), pictures


def _text(output: dict) -> str:
    """What an output says; of a picture nothing."""
    data = output.get("data", {})
    if any(kind.startswith("image/") for kind in data):
        return ""
    return "".join(output.get("text", data.get("text/plain", "")))
