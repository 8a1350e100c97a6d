"""No certificate, operator, kernel, prediction or run multiplies float32 numbers at less than their precision.

Read from the programs, so that no GPU is needed: there a product without a precision is done in TF32.
"""

import jax
import jax.numpy as jnp
import pytest
from test_properties import OBSERVABLES, L, batch_of, params_of, reader
from test_stax_table import LISTED, NETWORKS

from dynamics import empirical, linalg, observe, operators, predict
from dynamics.evolve import central_flow, gradient_descent, simulate, study
from dynamics.precision import full_precision
from dynamics.runs.durable.provenance import provenance
from dynamics.runs.report.outcome import call
from dynamics.types import Batch

HIGHEST = jax.lax.Precision.HIGHEST


def rounded_products(jaxpr):
    """Products of floats in a program, and in the programs within, that say no precision."""
    found = []
    for equation in jaxpr.eqns:
        said = equation.params.get("precision", HIGHEST)
        floats = any(
            jnp.issubdtype(one.aval.dtype, jnp.floating) for one in equation.invars if hasattr(one.aval, "dtype")
        )
        if equation.primitive.name in ("dot_general", "conv_general_dilated") and floats:
            found += [] if said in (HIGHEST, (HIGHEST, HIGHEST)) else [str(equation)]
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda one: hasattr(one, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            found += rounded_products(inner) if hasattr(inner, "eqns") else []
    return found


def check(fn, *args):
    found = rounded_products(jax.make_jaxpr(fn)(*args).jaxpr)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", OBSERVABLES)
def test_observables(name, key):
    init, update = reader(name, key)
    check(lambda params: update(init(params), params)[1], params_of(key))


@pytest.mark.parametrize("name", ["hessian", "gauss_newton", "fisher", "gradient_covariance", "ntk"])
def test_operators(name, key):
    params, batch = params_of(key), batch_of(key)

    def product(params, batch):
        matvec, size, dtype, _ = getattr(operators, name)(L, params, batch)
        return matvec(jnp.ones(size, dtype))

    check(product, params, batch)


def test_linear_algebra(key):
    a, v = jnp.eye(20), jnp.ones(20)
    product = lambda v: a @ v  # noqa: E731
    check(lambda v: linalg.tridiagonalize(product, v, 5), v)
    check(lambda v: linalg.three_term(product, v, 5), v)
    check(lambda v: linalg.extreme_eigenvalues(product, v, 5), v)
    check(lambda v: linalg.certified_eigenvalue(product, v, 4, True, 8), v)
    check(lambda v: linalg.eigenpairs(product, v, 2), v)
    check(lambda k: linalg.spectral_density(product, k, 20, steps=4), key)
    check(lambda k: linalg.trace(product, k, 20, 4), key)
    check(lambda v: linalg.refine(product, jnp.stack([v, v.at[0].set(0)])), v)


@pytest.mark.parametrize("name", LISTED)
def test_analytic_kernels(name):
    case = NETWORKS[name]
    model = case.model(8)
    check(lambda x: model.kernel(x, None, ("nngp", "ntk"), **(case.kernel or {})), case.x)


def test_empirical_kernels_and_predictions(key):
    params, batch = params_of(key), batch_of(key)
    check(lambda p, x: empirical.empirical_ntk_fn(L.apply)(x, x[:2], p), params, batch.x)
    check(lambda p, x: empirical.empirical_nngp_fn(L.apply)(x, None, p), params, batch.x)
    k, y = jnp.eye(8), batch.y
    check(lambda k, y: predict.gradient_descent_mse(k, y)(3.0, 0.0, 0.0, k[:2]), k, y)
    check(lambda k, y: predict.gradient_descent_mse_steps(k, y, learning_rate=0.1)(3, 0.0, 0.0, k[:2]), k, y)
    check(lambda k, y: predict.leave_one_out(k, y), k, y)


@pytest.mark.parametrize("dynamics", [gradient_descent, central_flow])
def test_the_time_loop(dynamics, key):
    """Descent in TF32 is a rounded one; a theory that is run in TF32 can end in NaN."""
    batch, move = batch_of(key), dynamics(L, 0.1)

    def run(params, x, y):
        return simulate(move, params, Batch(x, y), train=[observe.loss()], steps=2)[1].values

    check(run, params_of(key), batch.x, batch.y)


def test_what_a_study_draws_and_starts_from(key):
    batch, move, params, seen = batch_of(key), gradient_descent(L, 0.1), params_of(key), []

    def checked(name, value):
        seen.append(name)
        check(lambda a: a @ a, jnp.eye(3))
        return value

    def make(lane):
        return move._replace(init=lambda params: checked("init", move.init(params)))

    study({"seed": [0]}, lambda lane: checked("draw", params), make, [observe.loss()], steps=1, data=batch)
    assert set(seen) == {"draw", "init"}


def test_all_of_an_experiment():
    a = jnp.eye(3)

    def run(config):
        check(lambda a: a @ a, config)
        return "done"

    assert call(run, a, None) == "done"


def test_a_run_says_the_user_s_precision_not_ours():
    """So that parts, which are opened within, can be resumed from anywhere."""
    said = []

    def run(config):
        said.append(provenance()["matmul_precision"])

    call(run, None, None)
    with jax.default_matmul_precision("float32"):
        call(run, None, None)
    assert said == [provenance()["matmul_precision"], "float32"] == ["None", "float32"]


def test_the_user_s_precision_is_respected_and_a_rounded_product_is_seen():
    a = jnp.eye(3)
    assert rounded_products(jax.make_jaxpr(lambda a: a @ a)(a).jaxpr)
    assert not rounded_products(jax.make_jaxpr(full_precision(lambda a: a @ a))(a).jaxpr)
    with jax.default_matmul_precision("bfloat16"):
        assert rounded_products(jax.make_jaxpr(full_precision(lambda a: a @ a))(a).jaxpr)
