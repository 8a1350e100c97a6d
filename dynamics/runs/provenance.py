"""Where a run came from: versions, devices, flags, the state of the sources and the command."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("dynamics", "jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn", "diffrax", "optimistix")
SAME_BITS = (
    *("jax", "jaxlib", "device_kind", "device_count", "process_count", "cpu_count", "flags", "matmul_precision"),
    "machine",
)
"""What must be the same for a resumed run to give the bits of an uninterrupted one."""


def provenance(command: list[str] | None = None, **more: Any) -> dict[str, Any]:
    """Everything needed to repeat a run, as a JSON object.

    Args:
        command: the command line that was given; this process's own by default.
        more: further entries (seed, preset, experiment).
    """
    import jax

    devices = jax.devices()
    return {
        **more,
        "command": list(sys.argv) if command is None else command,
        "started": now(),
        "python": platform.python_version(),
        **{package: version for package in PACKAGES if (version := _version(package))},
        "platform": jax.default_backend(),
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "process_count": jax.process_count(),
        "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "x64": bool(jax.config.jax_enable_x64),  # pyright: ignore[reportAttributeAccessIssue]
        "matmul_precision": str(jax.config.jax_default_matmul_precision),  # pyright: ignore[reportAttributeAccessIssue]
        "flags": {name: os.environ[name] for name in sorted(os.environ) if name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")},
        "machine": f"{platform.system()} {platform.machine()}",
        "host": socket.gethostname(),
        **sources(),
    }


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What changed between two provenances among ``SAME_BITS``, one phrase each."""
    return [
        f"{key} was {before[key]!r} and is {after.get(key)!r}"
        for key in SAME_BITS
        if key in before and before[key] != after.get(key)
    ]


@functools.cache
def sources() -> dict[str, Any]:
    """``git`` hash of the checkout the package runs from and whether it was changed; nothing outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return {}
    commit, status = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "--untracked-files=no")
    return {} if commit is None else {"git": commit, "git_dirty": bool(status)}


def now() -> str:
    """UTC time to the second, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
