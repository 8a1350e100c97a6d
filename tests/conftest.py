"""Shared fixtures: float32 and float64, keys; jaxtyping annotations are checked with beartype under pytest only."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jaxtyping import config, install_import_hook

install_import_hook("dynamics", "numeric_tower.check")


@pytest.fixture(params=["float32", "float64"])
def precision(request):
    """Runs the test once in float32 and once in float64; the value is the dtype's name."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What a module compiles is compiled once: kept in a folder, for the processes that it starts too."""
    folder = str(tmp_path_factory.mktemp("compiled"))
    options = {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in options.items():
            patch.setenv(name.upper(), str(value))
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


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
