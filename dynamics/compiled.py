"""Compiled programs kept between processes, so that only the first one waits for XLA."""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

_WORTH = 0.3  # seconds of compilation from which a program is kept


def keep_compiled() -> None:
    """Turns on JAX's persistent compilation cache for this process, in ``cache_folder``.

    Nothing changes where one is set, by ``JAX_COMPILATION_CACHE_DIR`` or in ``jax.config``.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR") or jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH)
    compilation_cache.reset_cache()  # what was compiled before has settled that there is none


def cache_folder() -> Path:
    """Where compiled programs are kept: one folder a processor type, since they do not travel."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no HOME, and an unknown user
        base = Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kind = "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    except OSError:
        kind = platform.processor()
    return base / "dynamics" / f"jax-{hashlib.sha256(kind.encode()).hexdigest()[:10]}"
