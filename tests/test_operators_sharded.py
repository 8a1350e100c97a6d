"""Samples over four forced host devices: every operator's products are those of one device."""

from devices import run_on_devices

SCRIPT = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from dynamics import operators
from dynamics.losses import half_mse
from dynamics.types import Batch, Objective

jax.config.update("jax_enable_x64", True)
assert jax.device_count() == 4
mesh = jax.make_mesh((4,), ("samples",), axis_types=(jax.sharding.AxisType.Auto,))
keys = jax.random.split(jax.random.key(0), 4)
params = {"a": jax.random.normal(keys[0], (5, 7)), "b": jax.random.normal(keys[1], (7, 3))}
batch = Batch(jax.random.normal(keys[2], (16, 5)), jax.random.normal(keys[3], (16, 3)))
split = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("samples")))
assert len(split.x.sharding.device_set) == 4
L = Objective(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], half_mse)
made = {
    "hessian": lambda p, b: operators.hessian(L, p, b),
    "hessian in pieces": lambda p, b: operators.hessian(L, p, b, batch_size=4),
    "block": lambda p, b: operators.hessian(L, p, b, where=operators.blocks(params)["a"]),
    "gauss-newton": lambda p, b: operators.gauss_newton(L, p, b),
    "fisher": lambda p, b: operators.fisher(L, p, b),
    "covariance": lambda p, b: operators.gradient_covariance(L, p, b),
    "ntk": lambda p, b: operators.ntk(L, p, b),
}
def products(p, b):
    of = {name: operator(p, b) for name, operator in made.items()}
    return {name: one.matvec(jnp.cos(jnp.arange(one.size))) for name, one in of.items()}
compiled = jax.jit(products).lower(params, split).compile()
assert "all-reduce" in compiled.as_text()  # the work is divided, not gathered
found, expected = compiled(params, split), jax.jit(products)(params, batch)
for name in made:
    np.testing.assert_allclose(found[name], expected[name], atol=1e-12, err_msg=name)
print("equal")
"""


def test_products_over_four_devices_equal_one_device():
    run_on_devices(4, SCRIPT)
