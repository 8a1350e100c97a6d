"""One run in words, and where two differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dynamics.runs.durable.errors import BadInput, Unusable, understood
from dynamics.runs.durable.files import plain
from dynamics.runs.durable.load import LoadedRun, damaged_files, load
from dynamics.runs.durable.provenance import code_digest, config_difference
from dynamics.runs.printable import printable
from dynamics.runs.report.claim_words import claims_table
from dynamics.runs.report.overlay import at_shared_values, overlaid, shared_readings, side_by_side


def print_show(path: Path) -> int:
    """Prints one run: status, settings, claims, what each call recorded, warnings; the command ``show``."""
    with understood(path):
        print("\n".join(map(printable, _told(load(path)))))
    wrong = damaged_files(path)
    if wrong:
        raise Unusable(f"{path}: missing or damaged: {', '.join(wrong)}; the same command again writes them anew")
    return 0


def _told(run: LoadedRun) -> list[str]:
    lines = [f"{run.path}: {run.status}", *(f"  {name} = {value}" for name, value in run.config.items())]
    lines += claims_table(plain([claim._asdict() for claim in run.claims])).splitlines()
    for label, record in run.records.items():
        shapes = ", ".join(f"{name}{list(value.shape)}" for name, value in record.values.items())
        on = " x ".join(f"{name}[{len(held)}]" for name, held in record.axes.items())
        shapes = f"on {on}: {shapes}" if on else shapes
        lines.append(f"{label}: {len(record.step)} rows to step {record.step[-1] if len(record.step) else 0}: {shapes}")
    for label, found in run.diverged.items():
        lines.append(
            f"{label}: diverged in lanes {found['lanes']} of {found['of']}, first seen at {found['first_step']}"
        )
    lines += [line for when, kind, text in run.events for line in f"{when} {kind}: {text}".splitlines()]
    module = run.provenance.get("module")
    if isinstance(module, str) and run.provenance.get("code") not in (None, code_digest(module)):
        lines.append("the source of its experiment has changed since; what is above is of then")
    return lines


def print_compare(path: Path, other: Path, show: str | None = None, *, draw: bool = False) -> Any:
    """Prints where two runs differ: settings, records, every number that both have read, and claims.

    Args:
        path, other: the runs' directories.
        show: the one reading to tell of, NAME or LABEL/NAME.
        draw: whether to draw them too.

    Returns:
        The figure of both runs; None unless ``draw``.

    Raises:
        BadInput: where there is no such reading, or nothing to draw.
    """
    mine, theirs = load(path), load(other)
    pairs = shared_readings(mine, theirs, show)
    lines = [f"settings: {config_difference(mine.config, theirs.config) or 'the same'}"]
    lines += record_differences(mine, theirs) + side_by_side(pairs)
    claims = {claim.name: claim for claim in theirs.claims}
    for claim in mine.claims:
        second = claims.get(claim.name)
        told = f"{second.measured} ({second.holds})" if second else "-"
        lines.append(f"{claim.name}: {claim.measured} ({claim.holds}) | {told}")
    print("\n".join(map(printable, lines)))
    if draw and not pairs:
        raise BadInput(f"other: got {str(other)!r}; allowed: a run that shares a reading of numbers with {path}")
    parts = [run.path.resolve().parts[-2:] for run in (mine, theirs)]
    names = ["/".join(own[-1:] if parts[0][0] == parts[1][0] else own) for own in parts]
    return overlaid(pairs, names) if draw else None


def record_differences(mine: LoadedRun, theirs: LoadedRun) -> list[str]:
    """One line a call: the same bits, or how far apart each reading is; of axes that differ, where they agree."""
    lines = []
    for label in dict.fromkeys([*mine.records, *theirs.records]):
        if label not in mine.records or label not in theirs.records:
            lines.append(f"{label}: only in {(mine if label in mine.records else theirs).path}")
            continue
        first, second, where = at_shared_values(mine.records[label], theirs.records[label])
        label += where
        shared = [name for name in first.values if name in second.values]
        shapes = [first.values[name].shape == second.values[name].shape for name in shared]
        same = list(first.axes) == list(second.axes) and np.array_equal(first.step, second.step)
        if len(shared) < len(first.values) or not all(shapes) or not same:
            lines.append(f"{label}: other readings, shapes, axes or steps")
            continue
        apart = {}
        for name in shared:
            a, b = first.values[name], second.values[name]
            if a.tobytes() != b.tobytes() or a.dtype != b.dtype:
                with np.errstate(all="ignore"):
                    apart[name] = float(
                        np.nanmax(np.abs(np.subtract(a, b, dtype=np.result_type(a, b, float))), initial=0.0)
                    )
        far = ", ".join(f"{name} by at most {by:.3g}" for name, by in apart.items())
        lines.append(f"{label}: " + (f"differs in {far}" if apart else "the same bits"))
    return lines
