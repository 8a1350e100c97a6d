"""The code of an experiment, and the JAX that it runs on."""

from __future__ import annotations

import gc
import importlib
import os
import re
import resource
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from dynamics.compiled import keep_compiled
from dynamics.runs.durable.errors import BadInput, Unusable
from dynamics.runs.durable.modules import EXPERIMENTS, file_of, module_in, own_name

DEVICE = re.compile(r"(cpu|gpu|tpu|cuda|rocm|METAL)(:\d{1,4})?")
ADDRESSES = 2**32
"""Bytes of addresses below which XLA ends the process instead of saying why."""


def module_of(path: Path, about: dict[str, Any], trust: bool) -> tuple[ModuleType, dict[str, Any]]:
    """The experiment's module that the run at ``path`` names, and its provenance.

    The folder may be anybody's, and its module is code: it is run where it is one of ``dynamics.experiments``, lies
    in the current folder, or the user says so.

    Raises:
        Unusable: when there is none, or it lies elsewhere and ``trust`` was not given.
    """
    name = about.get("module")
    if not isinstance(name, str) or not isinstance(about.get("x64"), bool):
        raise Unusable(f"{path}: does not say which experiment it is")
    name = own_name(name)
    file = file_of(name)
    if file is None:
        raise Unusable(f"{path}: its experiment {name!r} is not here")
    if not (trust or name.startswith(f"{EXPERIMENTS}.") or Path(file).resolve().is_relative_to(Path.cwd())):
        raise Unusable(f"{path}: runs the code of {file}, outside the current folder; if you trust it, add --trust")
    return module_named(name), about


def module_named(name: str) -> ModuleType:
    """An experiment's module by its dotted name or its file.

    Raises:
        BadInput: when there is no such module, or it is no experiment.
    """
    try:
        if name.endswith(".py"):
            if not Path(name).is_file():
                raise BadInput(f"experiment: got {name!r}; allowed: a Python file")
            module = module_in(name)
        else:
            module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise
        raise BadInput(f"experiment: got {name!r}; allowed: a module or a Python file that exists") from error
    if missing := [part for part in ("Config", "run", "claims", "figure") if not hasattr(module, part)]:
        raise BadInput(f"experiment: got {name!r} without {', '.join(missing)}; allowed: an experiment's module")
    return module


def set_up_jax(x64: bool, device: str | None) -> None:
    """Precision, device and a persistent compilation cache for this process, in which garbage is looked for seldom.

    Raises:
        BadInput: when there is no such device.
        Unusable: where the process may use too few addresses for XLA.
    """
    allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
    if allowed != resource.RLIM_INFINITY and allowed < ADDRESSES:
        raise Unusable(f"ulimit -v: got {allowed // 1024}; allowed: {ADDRESSES // 1024} or more, which XLA needs")
    if x64:
        jax.config.update("jax_enable_x64", True)
    keep_compiled()
    gc.set_threshold(50_000, 20, 50)  # tracing makes many objects that stay
    try:
        jax.devices()
    except RuntimeError as error:
        told = os.environ.get("JAX_PLATFORMS")
        raise BadInput(f"JAX_PLATFORMS: got {told!r}; allowed: what JAX finds here ({str(error)[:200]})") from error
    if device is None:
        return
    if not DEVICE.fullmatch(device):
        raise BadInput(f"device: got {device!r}; allowed: cpu, gpu or tpu, with an index if need be: gpu:1")
    kind, _, index = device.partition(":")
    if kind == "cpu":
        jax.config.update("jax_platforms", "cpu")
    try:
        jax.config.update("jax_default_device", jax.devices(kind)[int(index or 0)])
    except (RuntimeError, IndexError) as error:
        found = ", ".join(sorted({f"{d.platform}:{d.id}" for d in jax.devices()}))
        raise BadInput(f"device: got {device!r}; allowed here: {found}") from error
