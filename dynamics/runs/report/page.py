"""What the report page and the index page share: jinja2 templates under a strict policy."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from dynamics.runs.report.claim_words import badge


def render(template: str, styles: Sequence[str], script: str, **values: Any) -> str:
    """A whole HTML page; its policy allows exactly these styles and this script, by their hashes.

    Args:
        template: its name.
        styles, script: names of files in ``assets``.
        values: what the template shows; all text is escaped.
    """
    style, code = "".join(map(_asset, styles)), _asset(script)
    policy = f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(code)}'"
    made = PAGES.get_template(template)
    page = made.render(style=Markup(style), script=Markup(code), policy=policy, **values)
    return page.encode(errors="backslashreplace").decode()  # names of files that are no text


def shown(value: Any) -> str:
    """A value as plain text: numbers to four digits, sequences with commas, None as a dash."""
    if value is None or value == {}:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(shown, value))
    return str(value)


def moment(value: Any) -> str:
    """A fact as text; a time stamp to the minute."""
    try:
        return datetime.fromisoformat(value).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (TypeError, ValueError, OverflowError):
        return shown(value)


def broken(text: Any) -> Markup:
    """Plain text as markup that may break after a dot, an underscore or a slash."""
    return Markup(re.sub("([._/])", r"\1<wbr>", str(escape(text))))


def _asset(name: str) -> str:
    return resources.files("dynamics.runs.report").joinpath("assets", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()


PAGES = Environment(
    loader=PackageLoader("dynamics.runs.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
    lstrip_blocks=True,
)  # fmt: skip
PAGES.filters.update(shown=shown, moment=moment, broken=broken, badge=badge)
