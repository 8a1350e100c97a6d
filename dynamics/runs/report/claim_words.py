"""Claims in words, in the terminal as on the page: what was measured, what it rejects, and whether all hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

KINDS = {
    "holds": "✓ holds", "fails": "✗ fails", "unreached": "… not reached", "none": "– not applicable"
}  # fmt: skip
"""The states of a claim, with their words in the report; the class of a whole run is one of them too."""
SHORT = {"holds": "holds", "fails": "FAILS", "unreached": "not reached", "none": "n/a"}


def kind(claim: Any) -> str:
    """The state of a claim that was stored as a JSON object, at any time: what held in ``holds`` and ``unreached``."""
    holds = claim.get("holds") if isinstance(claim, Mapping) else None
    if isinstance(holds, bool):
        return "holds" if holds else "fails"
    return "none" if not isinstance(claim, Mapping) or claim.get("unreached") is None else "unreached"


def badge(claim: Any) -> tuple[str, str]:
    """The class and the words of a claim's state: colour, sign and word, so that none of them is needed alone."""
    return kind(claim), KINDS[kind(claim)]


def counted(claims: Sequence[Any]) -> dict[str, int]:
    """How many claims are in each state."""
    states = [kind(claim) for claim in claims]
    return {name: states.count(name) for name in KINDS}


def verdict(claims: Sequence[Any]) -> tuple[str, str]:
    """The state of a whole run, and its count in words: fails if any claim fails, holds if all that apply hold."""
    count = counted(claims)
    tested = sum(count.values()) - count["none"]
    if tested == 0:
        return "none", "no claim tested" if claims else "no claims recorded"
    state = next(name for name in ("fails", "unreached", "holds") if count[name])
    short = f", {count['unreached']} not reached" if count["unreached"] else ""
    return state, f"{KINDS[state][0]} {count['holds']} of {tested} claims hold{short}"


def claims_table(claims: list[dict[str, Any]]) -> str:
    """Claims as aligned text: verdict, name, measured, predicted, tolerance, rivals, note."""
    rows: list[tuple[str, ...]] = [("", "claim", "measured", "predicted", "tolerance", "rejects")]
    for claim in claims:
        numbers = (number(claim, key) for key in ("predicted", "tolerance"))
        rows.append((SHORT[kind(claim)], claim["name"], measured(claim), *numbers, rejects(claim)))
    if not any(row[-1] for row in rows[1:]):
        rows = [row[:-1] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    for at, claim in enumerate(claims):
        if claim["note"]:
            lines[at + 1] += f"  ({claim['note']})"
    return "\n".join(lines)


def measured(claim: Mapping[str, Any]) -> str:
    """``value +- standard error (draws)``, and the worst draw; of what was not reached, by when."""
    if kind(claim) == "unreached" and not isinstance(claim.get("measured"), str):
        return f"not by step {claim['unreached']}"
    text = number(claim, "measured")
    if claim.get("error") is not None:
        text += f" +- {claim['error']:.1g} ({claim['n']})"
    return text if claim.get("worst") is None else f"{text}, worst {claim['worst']:.3g}"


def rejects(claim: Mapping[str, Any]) -> str:
    """The rivals with their values and how many standard errors away they are; 'NOT' before one that stands."""
    told, rivals = [], claim.get("rivals") or {}
    for name, value in rivals.items():
        if isinstance(value, str):  # what another one is that is not finite, see ``files.plain``
            continue
        number = rivals.get(f"{name}_status", "?") if value is None else f"{value:.3g}"
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
