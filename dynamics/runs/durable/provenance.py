"""Where a run came from: versions, devices, flags, the state of the sources and the command."""

from __future__ import annotations

import ast
import datetime
import functools
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import jax

from dynamics import __version__
from dynamics.precision import told_precision
from dynamics.runs.durable.files import digest
from dynamics.runs.durable.modules import file_of, own_name

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn", "diffrax", "optimistix")
NUMBERS = ("x64", "matmul_precision", "threefry_partitionable", "prng_impl")
"""Settings of JAX that change every number: a run goes on under its own alone."""
SAME_BITS = (*("jax", "jaxlib", "device_kind", "device_count", "process_count", "cpu_count", "flags", "machine"),)
"""What else must be the same for a resumed run to give the bits of an uninterrupted one."""
VERSIONS = ("dynamics", "flax", "optax", "numpy")
"""What must trace the same program for a run to go on."""
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")


def provenance(command: list[str] | None = None, **more: Any) -> dict[str, Any]:
    """Everything needed to repeat a run, as a JSON object.

    Args:
        command: the command line that was given; this process's own by default.
        more: further entries (seed, preset, experiment).
    """
    devices, settings = jax.devices(), cast(Any, jax.config)
    return {
        **more,
        "command": list(sys.argv) if command is None else command,
        "started": now(),
        "python": platform.python_version(),
        "dynamics": __version__,
        **{package: version for package in PACKAGES if (version := _version(package))},
        "platform": jax.default_backend(),
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "process_count": jax.process_count(),
        "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "x64": bool(settings.jax_enable_x64),
        "matmul_precision": str(told_precision()),
        "threefry_partitionable": bool(settings.jax_threefry_partitionable),
        "prng_impl": str(settings.jax_default_prng_impl),
        "flags": {name: os.environ[name] for name in FLAGS if name in os.environ},
        "machine": f"{platform.system()} {platform.machine()}",
        "host": socket.gethostname(),
        "code": more.get("code") or code_digest(more.get("module")),
        **sources(),
    }


def differences(before: dict[str, Any], after: dict[str, Any], keys: tuple[str, ...] = SAME_BITS) -> list[str]:
    """What changed between two provenances among ``keys``, one phrase each."""
    return [
        f"{key} was {before[key]!r} and is {after.get(key)!r}"
        for key in keys
        if key in before and before[key] != after.get(key)
    ]


def config_difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """``"field: old -> new"`` for every field that differs."""
    names = [*before, *(name for name in after if name not in before)]
    changed = [name for name in names if before.get(name) != after.get(name)]
    return ", ".join(f"{name}: {before.get(name)!r} -> {after.get(name)!r}" for name in changed)


def code_digest(module: str | None) -> str | None:
    """Of the source of an experiment's module and of what it imports from its own folder; nothing is imported.

    Args:
        module: its dotted name or its file; the running script unless given.
    """
    path = file_of(own_name(module)) if module else getattr(sys.modules.get("__main__"), "__file__", None)
    found = sorted(set(_imported(Path(path), set()))) if path and Path(path).is_file() else []
    return digest(b"\0".join(file.read_bytes() for file in found)) if found else None


def _imported(path: Path, seen: set[Path]) -> Iterator[Path]:
    """A file and those of its folder that it imports."""
    if path in seen:
        return
    seen.add(path)
    yield path
    try:
        nodes = list(ast.walk(ast.parse(path.read_bytes())))
    except (SyntaxError, ValueError):
        return
    for node in nodes:
        own = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        for name in (*own, getattr(node, "module", None) or "") if own else ():
            beside = path.with_name(f"{name.rpartition('.')[2]}.py")
            if name and beside.is_file():
                yield from _imported(beside, seen)


@functools.cache
def sources() -> dict[str, Any]:
    """``git`` hash of the checkout the package runs from and whether it was changed; nothing outside a checkout."""
    root = Path(__file__).resolve().parents[3]
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


@functools.cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
