"""A run again from its directory alone, beside it: the same bits, or where they differ."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

from dynamics.runs.command.experiment import execute
from dynamics.runs.durable.errors import CLAIM_FAILS, HOLDS, Unusable
from dynamics.runs.durable.files import digest, read_json
from dynamics.runs.durable.journal import Journal
from dynamics.runs.durable.load import load
from dynamics.runs.durable.lock import Lock
from dynamics.runs.durable.provenance import NUMBERS, SAME_BITS, VERSIONS, code_digest, differences, provenance
from dynamics.runs.durable.run import open_run
from dynamics.runs.report.compare import record_differences
from dynamics.runs.sweep.cells import program_of
from dynamics.runs.sweep.module import module_of, set_up_jax

KEPT = ("experiment", "module", "source", "description", "preset", "device", "seed", "command")


def repeat(path: Path, trust: bool = False) -> int:
    """Runs a run again from its directory alone, and reports the difference; the command ``repeat``.

    Args:
        path: the run's directory; the twin is made afresh in ``PATH.repeat``.
        trust: run the code that it names, wherever that lies; see ``module_of``.

    Returns:
        0 when every reading has the same bits, 5 otherwise.

    Raises:
        Unusable: for a run that is not finished, code that must not be run, or a folder in the twin's place.
    """
    old = load(path)
    if old.status not in ("finished", "diverged"):
        raise Unusable(f"{path}: is {old.status}; resume it first")
    module, about = module_of(path, old.provenance, trust)
    set_up_jax(about["x64"], about.get("device"))
    module, config = program_of(module, old.config)
    name = path.name if len(path.name) < 93 else f"{path.name[:84]}-{digest(path.name.encode())[:8]}"
    twin = path.parent / f"{name}.repeat"
    facts: dict[str, Any] = {key: about.get(key) for key in KEPT}
    facts["repeats"] = str(path.resolve())
    _clear(twin, facts["repeats"])
    with (
        contextlib.closing(Journal(path / "run.sqlite", readonly=True)) as journal,
        open_run(twin, config, **facts) as run,
    ):
        cuts = journal.get("division", {})  # lanes of other pieces may differ in their last bits
        run.journal.set(
            division={label: {key: cut[key] for key in ("lanes", "devices")} for label, cut in cuts.items()}
        )
    execute(module, config, twin, facts, quiet=False)
    for line in differences(about, provenance(), (*NUMBERS, *SAME_BITS, *VERSIONS)):
        print(f"platform: {line}")
    if about.get("code") not in (None, code_digest(about["module"])):
        print("code: the source of its experiment has changed since")
    lines = record_differences(old, load(twin))
    print("\n".join(lines))
    return HOLDS if all(line.endswith("the same bits") for line in lines) else CLAIM_FAILS


def _clear(twin: Path, repeats: str) -> None:
    """Deletes an earlier twin, and nothing else."""
    if twin.is_symlink():
        raise Unusable(f"{twin}: is a link, which is not followed; delete it")
    if not twin.exists():
        return
    with contextlib.closing(Lock(twin / "lock")):
        made = read_json(twin / "provenance.json", {}).get("repeats")
        begun = any(file.name not in ("lock", "checkpoints") for file in twin.iterdir())
        if begun and made != repeats:
            raise Unusable(f"{twin}: is no earlier repeat of {repeats}; move it away")
        shutil.rmtree(twin)
