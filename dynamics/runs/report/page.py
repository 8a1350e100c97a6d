"""What the report page and the index page share: jinja2 templates under a strict policy, and the words of verdicts."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

KINDS = {True: ("holds", "✓ holds"), False: ("fails", "✗ fails"), None: ("none", "– not applicable")}


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
    return made.render(style=Markup(style), script=Markup(code), policy=policy, **values)


def verdict(claims: Sequence[Any]) -> tuple[bool | None, str]:
    """The verdict on a whole run: fails if any claim fails, and the count in words."""
    tested = [claim.get("holds") for claim in claims if isinstance(claim, dict)]
    held, failed = (sum(holds is wanted for holds in tested) for wanted in (True, False))
    if held + failed == 0:
        return None, "no claim tested" if claims else "no claims recorded"
    sign = "✗" if failed else "✓"
    return failed == 0, f"{sign} {held} of {held + failed} claims hold"


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


def badge(holds: Any) -> tuple[str, str]:
    """The class and the words of a verdict: colour, sign and word, so that none of them is needed alone."""
    return KINDS[holds if isinstance(holds, bool) else None]


def _asset(name: str) -> str:
    return resources.files("dynamics.runs.report").joinpath("assets", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()


PAGES = Environment(
    loader=PackageLoader("dynamics.runs.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
    lstrip_blocks=True,
)  # fmt: skip
PAGES.filters.update(shown=shown, moment=moment, broken=broken, badge=badge)


def measured(claim: Mapping[str, Any]) -> str:
    """``value +- standard error (draws)``, and the worst draw."""
    text = number(claim, "measured")
    if claim.get("error") is not None:
        text += f" +- {claim['error']:.1g} ({claim['n']})"
    return text if claim.get("worst") is None else f"{text}, worst {claim['worst']:.3g}"


def rejects(claim: Mapping[str, Any]) -> str:
    """The rivals with their values and how many standard errors away they are; 'NOT' before one that stands."""
    told = []
    for name, value in (claim.get("rivals") or {}).items():
        number = "?" if value is None else f"{value:.3g}"
        distance = (claim.get("distances") or {}).get(name)
        away = "" if distance is None else f" ({distance:.2g} s.e.)"
        told.append(f"{'NOT ' if name in (claim.get('standing') or ()) else ''}{name} {number}{away}")
    return ", ".join(told)


def number(claim: Mapping[str, Any], key: str) -> str:
    """A number of a claim in words; its status where it is not finite."""
    value = claim[key]
    if value is None:
        return claim.get(f"{key}_status", "")
    return f"{value:.4g}" if isinstance(value, float) else str(value)
