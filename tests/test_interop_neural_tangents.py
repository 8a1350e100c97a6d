"""The bridge: the installed neural-tangents runs, agrees with ours, and its layers mix with ours."""

import inspect
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("frozendict")

import dynamics as nt
from dynamics import stax
from dynamics.interop import neural_tangents

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def theirs():
    try:
        return neural_tangents.load()
    except ImportError as error:
        pytest.skip(str(error))


def network(s):
    return s.serial(s.Dense(16, 1.4, 0.1), s.Relu(), s.Dense(16, 1.1), s.Erf(), s.Dense(1))


def test_same_numbers_and_same_parameters(theirs, x64):
    x, y = (jax.random.normal(jax.random.key(i), (n, 3)) for i, n in ((0, 5), (1, 4)))
    ours, other = network(stax), network(theirs.stax)
    for args in ((x, None), (x, y)):
        for get in ("nngp", "ntk", "cov1"):
            np.testing.assert_allclose(ours[2](*args, get), other[2](*args, get), rtol=1e-6)
    mine, reference = (net[0](jax.random.PRNGKey(3), (-1, 3)) for net in (ours, other))
    assert mine[0] == reference[0]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), mine[1], reference[1])


def test_their_layers_inside_ours(theirs, x64):
    x = jax.random.normal(jax.random.key(0), (4, 3))
    middle = neural_tangents.model_from_neural_tangents(
        theirs.stax.serial(theirs.stax.Dense(8, 1.2, 0.1), theirs.stax.Gelu())
    )
    mixed = stax.serial(stax.Dense(8), stax.Relu(), middle, stax.Dense(1)).kernel(x, None, "ntk")
    plain = stax.serial(stax.Dense(8), stax.Relu(), stax.Dense(8, 1.2, 0.1), stax.Gelu(), stax.Dense(1))
    np.testing.assert_allclose(mixed, plain.kernel(x, None, "ntk"), rtol=1e-8)


def test_their_kernel_in_batch(theirs, x64):
    x = jax.random.normal(jax.random.key(0), (5, 3))
    kernel_fn = network(theirs.stax)[2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tiled = stax.batch(lambda a, b, get: kernel_fn(a, b, get), 2)(x, None, "ntk")
    np.testing.assert_allclose(tiled, network(stax).kernel(x, None, "ntk"), rtol=1e-6)


# what differs from the original's signatures, and why
EXCEPTIONS = {
    "Aggregate.to_dense": "an identity: two functions never compare equal",
    "Kernel": "stores gaps in place of covariances; from_covariances takes the original's names",
    "empirical_kernel_fn.implementation": "AUTO: the method is inferred and never changes the numbers",
    "empirical_ntk_fn.implementation": "AUTO: the method is inferred and never changes the numbers",
}


def arguments(fn):
    """``{name: (position, default, kind)}``; private arguments and the name of ``**kwargs`` are left out."""
    public = [p for p in inspect.signature(fn).parameters.values() if p.name[0] != "_" and p.kind != p.VAR_KEYWORD]
    return {p.name: (None if p.kind == p.KEYWORD_ONLY else i, p.default, p.kind) for i, p in enumerate(public)}


def returned(module, s):
    """Functions that the public functions give back."""
    x, key = jnp.ones((2, 3)), jax.random.PRNGKey(0)
    y, k, (init_fn, apply_fn, kernel_fn) = x[:, :1], x @ x.T, s.Dense(1)
    params, predict = init_fn(key, x.shape)[1], module.predict
    return {
        "init_fn": init_fn,
        "apply_fn": apply_fn,
        "kernel_fn": kernel_fn,
        "gradient_descent_mse()": predict.gradient_descent_mse(k, y),
        "gradient_descent()": predict.gradient_descent(lambda f, y: jnp.sum((f - y) ** 2), k, y),
        "gradient_descent_mse_ensemble()": predict.gradient_descent_mse_ensemble(kernel_fn, x, y),
        "gp_inference()": predict.gp_inference(k, y),
        "monte_carlo_kernel_fn()": module.monte_carlo_kernel_fn(init_fn, apply_fn, key, 1),
        "empirical_kernel_fn()": module.empirical_kernel_fn(apply_fn),
        "empirical_nngp_fn()": module.empirical_nngp_fn(apply_fn),
        "empirical_ntk_fn()": module.empirical_ntk_fn(apply_fn),
        "empirical_ntk_vp_fn()": module.empirical_ntk_vp_fn(apply_fn, x, None, params),
        "linearize()": module.linearize(apply_fn, params),
    }


def test_signatures_are_the_original_s(theirs):
    """Every public function: the same names, order, kinds and defaults; more arguments only after them."""
    pairs, missing = {}, []
    for other, mine in ((theirs, nt), (theirs.stax, stax), (theirs.predict, nt.predict)):
        for name in dir(other):
            fn = getattr(other, name)
            if name[0] == "_" or not callable(fn) or not getattr(fn, "__module__", "").startswith("neural_tangents"):
                continue
            if hasattr(mine, name):
                pairs[name] = fn, getattr(mine, name)
            else:
                missing.append(name)
    # Whatever is missing is refused by name, with what to do instead.
    assert set(missing) <= set(stax._ELSEWHERE)
    given = returned(theirs, theirs.stax), returned(nt, stax)
    pairs.update({name: (fn, given[1][name]) for name, fn in given[0].items()})
    assert len(pairs) > 55
    used = set()
    for name, (fn, own) in pairs.items():
        if name in EXCEPTIONS or inspect.isclass(fn):
            used.add(name)
            continue
        found = arguments(own)
        for argument, expected in arguments(fn).items():
            if f"{name}.{argument}" in EXCEPTIONS:
                used.add(f"{name}.{argument}")
                assert found[argument][::2] == expected[::2]
            elif argument == "x2" and expected[1] is inspect.Parameter.empty:
                assert found[argument][0] == expected[0], name  # a default more
            else:
                assert found.get(argument) == expected, (name, argument)
    assert used >= set(EXCEPTIONS)


def test_kernels_are_built_sliced_and_scaled_alike(theirs, x64):
    x = jax.random.normal(jax.random.key(0), (4, 3, 2, 2))
    ours, other = (s.Conv(3, (2, 1), b_std=0.1) for s in (stax, theirs.stax))
    operations = [
        lambda k: k.slice(slice(1, 3), slice(0, 3)),
        lambda k: k.transpose((1, 0)),
        lambda k: 2.0 * (k / 0.5),
    ]
    expected, found = jax.jit(other[2])(x, x[:3] + 0.1), jax.jit(ours.kernel)(x, x[:3] + 0.1)
    expected = expected.reverse() if expected.is_reversed else expected
    built = nt.Kernel.from_covariances(**expected.asdict())
    assert jax.tree.structure(built) == jax.tree.structure(found)
    for operation in operations:
        mine, reference = operation(built), operation(expected)
        for name in ("nngp", "ntk", "cov1", "cov2"):
            np.testing.assert_allclose(getattr(mine, name), getattr(reference, name), rtol=1e-7)
        assert (mine.shape1, mine.shape2) == (reference.shape1, reference.shape2)


def test_tensorflow_and_lent_names_stay_out(theirs):
    code = """
import sys, jax
from dynamics.interop import neural_tangents
neural_tangents.load()
assert "tensorflow" not in sys.modules and "jax.util" not in sys.modules
assert type(jax.core).__name__ == "module" and sys.modules["jax.core"] is jax.core
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200)
