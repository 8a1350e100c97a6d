"""Shared fixtures: float32 and float64, keys; jaxtyping annotations are checked with beartype under pytest only."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from jaxtyping import config, install_import_hook

install_import_hook("dynamics", "numeric_tower.check")


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
