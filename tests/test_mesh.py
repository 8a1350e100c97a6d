"""Rows of a kernel over four forced host devices equal one device."""

import jax
import pytest
from devices import run_on_devices

from dynamics.mesh import device_mesh, split_rows

SCRIPT = """
import jax, jax.numpy as jnp, numpy as np
from dynamics.empirical import empirical_ntk_fn
from dynamics.mesh import device_mesh, sharded_kernel_fn

jax.config.update("jax_enable_x64", True)
assert jax.device_count() == 4
keys = jax.random.split(jax.random.key(0), 3)
params = [jax.random.normal(keys[0], (5, 8)), jax.random.normal(keys[1], (8, 2))]
f = lambda p, x: jnp.tanh(x @ p[0]) @ p[1]
x = jax.random.normal(keys[2], (10, 5))
for axes in ((-1,), ()):
    ntk_fn = empirical_ntk_fn(f, trace_axes=axes)
    sharded = sharded_kernel_fn(ntk_fn, device_mesh())
    for x1, x2 in ((x[:8], None), (x[:8], x[3:]), (x, None)):
        kernel = sharded(x1, x2, params)
        np.testing.assert_allclose(kernel, ntk_fn(x1, x2, params), rtol=1e-12, atol=1e-13)
    assert len(sharded(x[:8], None, params).sharding.device_set) == 4
    tiled = sharded_kernel_fn(empirical_ntk_fn(f, trace_axes=axes, memory=2000), device_mesh())
    np.testing.assert_allclose(tiled(x[:8], None, params), ntk_fn(x[:8], None, params), rtol=1e-12, atol=1e-13)
print("equal")
"""


def test_rows_over_four_devices_equal_one_device():
    run_on_devices(4, SCRIPT)


def test_uneven_rows_and_empty_meshes_are_refused():
    with pytest.raises(ValueError, match="devices"):
        device_mesh([])
    mesh = device_mesh(jax.devices()[:1])
    with pytest.raises(ValueError, match="leading axis"):
        split_rows(mesh, jax.numpy.float32(1.0))
