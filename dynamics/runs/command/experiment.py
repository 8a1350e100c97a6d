"""One experiment from its flags to its exit code."""

from __future__ import annotations

import contextlib
import math
import os
import shlex
from pathlib import Path
from typing import Any

from dynamics.runs import trackers
from dynamics.runs.command.ending import started
from dynamics.runs.command.flags import early, parse, said_once
from dynamics.runs.durable.directory import Directory
from dynamics.runs.durable.errors import (
    CLAIM_FAILS,
    HOLDS,
    NOT_REACHED,
    BadInput,
    Damaged,
    Interrupted,
    InUse,
    Unusable,
)
from dynamics.runs.durable.files import json_text, own_folder, plain
from dynamics.runs.durable.journal import Journal
from dynamics.runs.durable.load import damaged_files, load
from dynamics.runs.durable.modules import package_of
from dynamics.runs.durable.provenance import config_difference
from dynamics.runs.durable.run import checked_name, default_name, open_run
from dynamics.runs.report.claim_words import claims_table, verdict
from dynamics.runs.report.outcome import run_to_the_end
from dynamics.runs.sweep import cells, specs
from dynamics.runs.sweep.cluster import checked as checked_cluster
from dynamics.runs.sweep.module import DEVICE, module_named, set_up_jax
from dynamics.runs.sweep.worker import helped


def run_experiment(name: str, argv: list[str], prog: str, others: str = "") -> int:
    """One experiment from flags to report; returns the exit code.

    Args:
        name: its module, or its file.
        argv: the flags.
        prog: the command, for ``--help`` and for the line that resumes.
        others: the end of the description in ``--help``.
    """
    own = module_named(name)
    experiment = Path(name).stem if name.endswith(".py") else ".".join(package_of(name)[1])
    title = (own.__doc__ or experiment).strip()
    said_once(argv)
    flags = specs.expanded(own.Config, argv)
    held = {} if early(argv, "sweep") is not None else _stored_settings(experiment, argv)
    stored = cells.stored_config(own.Config, held) if held else None
    config, options = parse(own.Config, flags, prog, f"{title}\n\n{others}" if others else title, stored)
    values = specs.parse_sweep(own.Config, options.sweep) or held.get(cells.SWEEP, {})
    _check(options, values, argv)
    base, seed = config, config.seed
    module, config = cells.program(own, base, values, options.show)
    for cell in range(math.prod(map(len, values.values())) if values else 0):
        specs.cell_config(base, values, cell)
    root = Path(options.out) / experiment
    chosen = default_name(config, options.x64) if options.name is None else options.fork or options.name
    path = root / checked_name(chosen)
    if path.is_symlink() or path.resolve().parent != root.resolve():
        raise BadInput(f"name: got {chosen!r}; allowed: a directory inside {root}")
    about = {
        "experiment": experiment,
        "module": own.__name__ if own.__spec__ and "." in own.__name__ else str(Path(name).resolve()),
        "source": getattr(own, "SOURCE", ""),
        "description": " ".join(title.split("\n\n")[0].split()),
        "preset": options.preset,
        "device": options.device,
        "seed": seed,
        "command": [*shlex.split(prog), *argv],
    }
    set_up_jax(options.x64, options.device)
    source = None if options.fork is None else root / checked_name(options.name or "")
    try:
        claims, words = execute(
            module, config, path, about, quiet=options.quiet, fork_of=source, workers=options.workers,
            cluster=options.cluster, track=options.track,
        )  # fmt: skip
    except Interrupted as error:
        again = [*started(prog), "--out", options.out, "--name", chosen, "--resume"]
        again += ["--x64"] if options.x64 else []
        again += ["--device", options.device] if options.device else []
        raise Interrupted(f"{error}\nresume with: {shlex.join(again)}") from error
    if options.json:
        print(json_text(claims), end="")
    elif not options.quiet:
        print(claims_table(claims))
        print(f"{verdict(claims)[1]}; {words}; report: {path / 'report.html'}")
    return {"fails": CLAIM_FAILS, "unreached": NOT_REACHED}.get(verdict(claims)[0], HOLDS)


def _check(options: Any, swept: dict[str, list], argv: list[str]) -> None:
    """Refuses options that would do nothing, or that no run could have.

    Raises:
        BadInput: naming the option and what is allowed.
    """
    for name in ("fork", "resume"):
        if getattr(options, name) not in (None, False) and options.name is None:
            raise BadInput(f"--{name}: got it without a run; allowed: with --name, the run to continue from")
        if getattr(options, name) and early(argv, "preset") is not None:
            raise BadInput(f"--preset: got it with --{name}; allowed: without it, since settings are those of the run")
    if options.fork is not None and options.fork == options.name:
        raise BadInput(f"--fork: got {options.fork!r}, the run itself; allowed: a new name")
    if options.workers < 1:
        raise BadInput(f"--workers: got {options.workers}; allowed: an integer >= 1")
    if not options.out.strip() or "\0" in options.out:
        raise BadInput(f"--out: got {options.out!r}; allowed: the name of a folder")
    if options.device is not None and not DEVICE.fullmatch(options.device):
        raise BadInput(f"device: got {options.device!r}; allowed: cpu:0, gpu or tpu, with an index if need be")
    if early(argv, "sweep") == "":
        raise BadInput("--sweep: got no FIELD=SPEC; allowed: one or more")
    if options.sweep and (options.fork is not None or options.resume):
        raise BadInput(
            "--fork, --resume: got one with --sweep; allowed: without it, since they take that of the run --name"
        )
    if options.show is not None and not swept:
        raise BadInput("--show: got it without a sweep; allowed: with --sweep")
    if options.cluster is not None:
        checked_cluster(options.cluster)
    if options.track is not None:
        trackers.required(options.track)


def execute(
    module: Any,
    config: Any,
    path: Path,
    about: dict[str, Any],
    *,
    quiet: bool,
    fork_of: Path | None = None,
    workers: int = 1,
    cluster: str | None = None,
    track: str | None = None,
) -> tuple[list[dict[str, Any]], str]:
    """Runs, resumes or merely reads the run at ``path``; returns its claims as JSON objects, and how it went."""
    shares = workers if cluster is None else workers + 1
    try:
        with open_run(path, config, quiet=quiet, fork_of=fork_of, workers=shares, **about) as run:
            show = getattr(module, "show", None)
            claims = run.journal.get("claims") if run.finished and not _damaged(run) and show is None else None
            words = "already finished before (delete the run to repeat it),"
            if claims is None:
                with helped(path, workers, cluster), _tracked(run, track, config):
                    claims, words = run_to_the_end(module, config, run), "finished"
            if run.journal.get("status") == "diverged":
                words += " with diverged lanes"
            return claims, f"{words} after {run.journal.get('seconds'):.1f} s"
    except (InUse, Damaged):
        raise
    except Unusable:
        claims = _finished_claims(path, plain(config)) if fork_of is None else None
        if claims is None:
            raise
        return claims, "already finished before, in a folder that cannot be written"


def _finished_claims(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The claims of a run that is finished, of these settings, and cannot be written; else None."""
    try:
        run = load(path)
    except Unusable:
        return None
    over = run.status in ("finished", "diverged") and not config_difference(run.config, settings)
    return plain([claim._asdict() for claim in run.claims]) if over and not os.access(path, os.W_OK) else None


@contextlib.contextmanager
def _tracked(run: Directory, kind: str | None, config: Any):
    """Sends the readings of ``run`` to a tracker of this kind, in its folder, within the block."""
    if kind is None:
        yield
        return
    run.tracker = trackers.made(kind, own_folder(run.path / kind), plain(config))
    try:
        yield
    finally:
        tracker, run.tracker = run.tracker, None
        if tracker is not None:
            with contextlib.suppress(Exception):
                tracker.close()


def _damaged(run: Directory) -> list[str]:
    """Artefacts that are missing or changed; they are then made again from the stored states."""
    wrong = damaged_files(run.path, run.journal.get("files", {}))
    if wrong:
        run.warn(f"{run.path}: {', '.join(wrong)} missing or damaged; written again")
    return wrong


def _stored_settings(experiment: str, argv: list[str]) -> dict[str, Any]:
    """The settings of the run that ``--resume`` or ``--fork`` continues; none where there is no such run."""
    wanted, fork = early(argv, "name"), early(argv, "fork")
    if not wanted or (fork is None and early(argv, "resume") is None):
        return {}
    path = Path(early(argv, "out") or "runs") / experiment / checked_name(wanted) / "run.sqlite"
    if not path.is_file():
        flag = "--resume" if fork is None else "--fork"
        raise BadInput(f"{flag}: got --name {wanted!r}; allowed: a run that exists (there is no {path})")
    try:
        with contextlib.closing(Journal(path, readonly=True)) as journal:
            return journal.get("config", {})
    except Damaged:  # opening it for writing says what can be done
        return {}
