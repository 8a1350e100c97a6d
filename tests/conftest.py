"""Shared fixtures: float32 and float64, keys; jaxtyping annotations are checked with beartype under pytest only.

Most of the suite's time makes programs. So what is compiled once is kept in ``.pytest_cache`` for all workers, for the
processes that tests start and for the next run (keys hold program, flags and versions), and the quick tests compile
without most optimisations, which halves it. Slow tests, benchmarks, a GPU's and what the documents promise to the bit
compile as users do; ``TESTS_COMPILE=as_users`` makes all do. Python looks for garbage less often than it would by
itself.
"""

import contextlib
import ctypes
import gc
import os
import sys
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if any(word in argument.replace(f"not {word}", "") for argument in sys.argv for word in ("slow", "benchmark", "gpu")):
    os.environ.setdefault("TESTS_COMPILE", "as_users")  # set once, for all workers
if os.environ.setdefault("TESTS_COMPILE", "quickly") == "quickly":
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    flags = [os.environ.get("XLA_FLAGS", ""), "--xla_cpu_parallel_codegen_split_count=1"]  # workers are parallel
    if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):  # later ones know no such flag
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()
if not any("benchmark" in argument for argument in sys.argv):
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest
from jaxtyping import config, install_import_hook

install_import_hook("dynamics", "numeric_tower.check")
gc.set_threshold(50_000, 20, 50)  # programs are many objects that stay


def users_environment() -> dict[str, str]:
    """For a process that compiles as users do."""
    return {
        name: value for name, value in os.environ.items() if name not in ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS")
    }


MOST_MAPS = 45_000
"""Memory maps that a worker may hold: Linux allows 65,530, and one more is a crash; a program takes 9 or so."""


def _memory() -> int:
    """Bytes that this process holds; 0 where nobody tells."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if pages.exists() else 0


@pytest.fixture(scope="session")
def held_memory() -> dict[str, float]:
    """Bytes at which to look next; the most that a worker may hold: its share of three fifths of the machine's."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return {"look": 0.0, "most": 0.6 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / workers}


@pytest.fixture(autouse=True)
def memory_is_given_back(held_memory):
    """Compiled programs of thousands of tests, some seconds each time; on the disk they stay."""
    yield
    if (held := _memory()) <= held_memory["look"]:
        return
    held_memory["look"] = held + 2e8
    if held > held_memory["most"] or Path("/proc/self/maps").read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()
        with contextlib.suppress(AttributeError):  # of the C library that most have
            ctypes.CDLL(None).malloc_trim(0)  # else the process stays as large
        held_memory["look"] = _memory() + held_memory["most"] / 4


@pytest.fixture(params=["float32", "float64"])
def precision(request):
    """Runs the test once in float32 and once in float64; the value is the dtype's name."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.fixture
def x64():
    """Runs the test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def as_users_meet_it():
    """Without the type checks that only these tests install."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
