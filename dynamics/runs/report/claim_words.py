"""Claims in words, in the terminal as on the page: what was measured, what it rejects, and whether all hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

KINDS = {True: ("holds", "✓ holds"), False: ("fails", "✗ fails"), None: ("none", "– not applicable")}


def badge(holds: Any) -> tuple[str, str]:
    """The class and the words of a verdict: colour, sign and word, so that none of them is needed alone."""
    return KINDS[holds if isinstance(holds, bool) else None]


def verdict(claims: Sequence[Any]) -> tuple[bool | None, str]:
    """The verdict on a whole run: fails if any claim fails, and the count in words."""
    tested = [claim.get("holds") for claim in claims if isinstance(claim, dict)]
    held, failed = (sum(holds is wanted for holds in tested) for wanted in (True, False))
    if held + failed == 0:
        return None, "no claim tested" if claims else "no claims recorded"
    sign = "✗" if failed else "✓"
    return failed == 0, f"{sign} {held} of {held + failed} claims hold"


def claims_table(claims: list[dict[str, Any]]) -> str:
    """Claims as aligned text: verdict, name, measured, predicted, tolerance, rivals, note."""
    words = {True: "holds", False: "FAILS", None: "n/a"}
    rows: list[tuple[str, ...]] = [("", "claim", "measured", "predicted", "tolerance", "rejects")]
    for claim in claims:
        numbers = (number(claim, key) for key in ("predicted", "tolerance"))
        rows.append((words[claim["holds"]], claim["name"], measured(claim), *numbers, rejects(claim)))
    if not any(row[-1] for row in rows[1:]):
        rows = [row[:-1] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    for at, claim in enumerate(claims):
        if claim["note"]:
            lines[at + 1] += f"  ({claim['note']})"
    return "\n".join(lines)


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
