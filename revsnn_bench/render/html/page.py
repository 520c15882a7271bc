"""What every page shares: templates, the style sheet, the script, and the ban on network access."""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from revsnn_bench.render import units
from revsnn_bench.render.figures import dark_rules


def render_page(template: str, *, refresh_s: int | None = None, **values: object) -> str:
    """Fills a template; every value is escaped and kept on one line, unless it is `Markup`.

    Args:
        template: name without extension, such as `report`.
        refresh_s: seconds after which an open page loads itself again; None for never.
        values: for the template.
    Returns:
        One HTML file that needs no other and asks no server for anything.
    """
    script = _asset("page.js")
    return (
        _environment()
        .get_template(f"{template}.html.j2")
        .render(
            style=Markup(_asset("page.css") + dark_rules("@media screen and (prefers-color-scheme: dark)")),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            refresh_s=refresh_s,
            **values,
        )
    )


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("revsnn_bench.render.html"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_one_line,
    )


def _one_line(value: Any) -> Any:
    """Drops control characters and newlines from foreign text before it is escaped."""
    return value if isinstance(value, Markup) else units.one_line(value)


@cache
def _asset(name: str) -> str:
    return files("revsnn_bench.render.html").joinpath(name).read_text(encoding="utf-8")
