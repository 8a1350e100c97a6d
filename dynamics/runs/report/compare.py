"""One run in words, and where two differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dynamics.runs.durable.errors import Unusable, understood
from dynamics.runs.durable.files import plain
from dynamics.runs.durable.load import LoadedRun, damaged_files, load
from dynamics.runs.durable.provenance import code_digest, config_difference
from dynamics.runs.printable import printable
from dynamics.runs.report.claim_words import claims_table
from dynamics.types import Record


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


def print_compare(path: Path, other: Path) -> int:
    """Prints where two runs differ: settings, claims and every reading; the command ``compare``."""
    mine, theirs = load(path), load(other)
    lines = [f"settings: {config_difference(mine.config, theirs.config) or 'the same'}"]
    lines += record_differences(mine, theirs)
    claims = {claim.name: claim for claim in theirs.claims}
    for claim in mine.claims:
        second = claims.get(claim.name)
        told = f"{second.measured} ({second.holds})" if second else "-"
        lines.append(f"{claim.name}: {claim.measured} ({claim.holds}) | {told}")
    print("\n".join(map(printable, lines)))
    return 0


def record_differences(mine: LoadedRun, theirs: LoadedRun) -> list[str]:
    """One line a call: the same bits, or how far apart each reading is; of axes that differ, where they agree."""
    lines = []
    for label in dict.fromkeys([*mine.records, *theirs.records]):
        if label not in mine.records or label not in theirs.records:
            lines.append(f"{label}: only in {(mine if label in mine.records else theirs).path}")
            continue
        first, second, where = _shared(mine.records[label], theirs.records[label])
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


def _shared(first: Record, second: Record) -> tuple[Record, Record, str]:
    """Two records at the values that their axes share, and where that is, when it is not everywhere."""
    where = ""
    for place, name in enumerate(first.axes if list(first.axes) == list(second.axes) else (), start=1):
        held = [list(record.axes[name]) for record in (first, second)]
        both = [value for value in held[0] if value in held[1]]
        if held[0] == held[1]:
            continue
        where += f" at {name} = {', '.join(map(str, both)) or 'nothing shared'}"
        rows = [np.array([own.index(value) for value in both], int) for own in held]
        first, second = (
            record._replace(values={key: np.take(value, row, place) for key, value in record.values.items()})
            for record, row in zip((first, second), rows)
        )
    return first, second, where
