"""Runs on a cluster: workers through submitit (extra ``slurm``), each taking up parts until none is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dynamics.extras import missing
from dynamics.runs.durable.errors import BadInput

DEFAULTS: dict[str, Any] = {"timeout_min": 240, "cpus_per_task": 4}


def submit(work: Callable[[], Any], logs: Path, workers: int, where: str) -> list[Any]:
    """Submits ``workers`` jobs that work on a run in a folder that all of them can reach.

    Args:
        work: what a job calls.
        logs: the folder of the jobs' logs.
        workers: number of jobs.
        where: ``slurm`` or ``local``, with submitit's parameters if need be:
            ``slurm:partition=gpu,timeout_min=60,gpus_per_node=1``.

    Returns:
        The submitit jobs.

    Raises:
        BadInput: for another engine or a parameter without a value.
        ImportError: without submitit; the message names the extra.
    """
    submitit, engine, given = checked(where)
    executor = submitit.AutoExecutor(folder=logs, cluster=engine)
    executor.update_parameters(**{**DEFAULTS, **given})
    with executor.batch():
        jobs = [executor.submit(work) for _ in range(workers)]
    print(f"submitted {len(jobs)} workers to {engine}: {', '.join(str(job.job_id) for job in jobs)}")
    return jobs


def checked(where: str) -> tuple[Any, str, dict[str, Any]]:
    """The module ``submitit``, the engine and its parameters; raises as ``submit`` does."""
    engine, _, text = where.partition(":")
    pairs = [part.split("=", 1) for part in text.split(",") if part]
    if engine not in ("slurm", "local") or any(len(pair) != 2 for pair in pairs):
        raise BadInput(f"cluster: got {where!r}; allowed: slurm or local, then :key=value,key=value")
    try:
        import submitit
    except ImportError as error:
        raise missing("--cluster", "submitit", "slurm") from error
    return submitit, engine, {key: int(value) if value.isdigit() else value for key, value in pairs}
