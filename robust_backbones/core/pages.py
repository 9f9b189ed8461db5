"""Render HTML pages from Jinja templates."""

from pathlib import Path
from typing import Any

from robust_backbones import __version__
from robust_backbones.core.files import atomic


def render(template: Path, **variables: Any) -> str:
    """Render a template and escape its variables.

    Args:
        template: path of the template, which can also use the variable `version` of this package.
        variables: values for the template. Values of type `markupsafe.Markup` are not escaped.
    """
    # Imported here because most commands write no page and should start quickly.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment.get_template(template.name).render(version=__version__, **variables)


def write(path: str | Path, template: Path, **variables: Any) -> Path:
    """Render a template (see `render`) and save the page.

    Raises:
        UserError: the file could not be written.
    """
    page = render(template, **variables)
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(path)
