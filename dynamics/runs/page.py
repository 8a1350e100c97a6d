"""What the report page and the index page share: a self-contained HTML document under a strict policy."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

VERDICTS = {True: ("holds", "✓ holds"), False: ("fails", "✗ fails"), None: ("none", "– not applicable")}


def document(
    title: str, body: str, styles: Sequence[str], scripts: Sequence[str], *, images: str, dark: str = ""
) -> str:
    """A whole HTML page; its policy allows exactly these styles and scripts, by their hashes, and ``images``.

    Args:
        title: plain text.
        body: markup, already escaped.
        styles, scripts: names of files in ``assets``.
        images: the policy's image sources, e.g. ``data:``.
        dark: further CSS rules for a dark page.
    """
    style = "".join(_asset(name) for name in styles) + f"@media (prefers-color-scheme: dark) {{{dark}}}"
    script = "".join(_asset(name) for name in scripts)
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; img-src {images}; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'<a class="skip" href="#main">Skip to content</a>\n{body}\n<script>{script}</script>\n</body>\n</html>\n'
    )


def badge(holds: bool | None, text: str | None = None) -> str:
    """A verdict as markup: colour, sign and word, so that none of them is needed alone."""
    kind, word = VERDICTS[holds]
    return f'<span class="verdict {kind}">{escape(text or word)}</span>'


def broken(text: str) -> str:
    """Plain text as markup that may break after a dot, an underscore or a slash."""
    return re.sub("([._/])", r"\1<wbr>", escape(text))


def verdict(claims: Sequence[dict[str, Any]]) -> tuple[bool | None, str]:
    """The verdict on a whole run: fails if any claim fails, and the count in words."""
    held = sum(claim.get("holds") is True for claim in claims)
    failed = sum(claim.get("holds") is False for claim in claims)
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
        return ", ".join(shown(item) for item in value)
    return str(value)


def read_json(path: Path, default: Any) -> Any:
    """The content of a JSON file, or ``default`` where it is missing.

    Raises:
        ValueError: when it is not JSON of the same kind as ``default``; names the file.
    """
    if not path.exists():
        return default
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, type(default)):
        raise ValueError(f"{path}: holds a {type(value).__name__}, expected a {type(default).__name__}")
    return value


def _asset(name: str) -> str:
    return resources.files("dynamics.runs").joinpath("assets", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()
