"""Resolvents: Marchenko-Pastur in closed form, limits, derivatives, drawn matrices, ridge regression."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.theory.denoisers import linear_denoisers
from dynamics.theory.random_features import random_feature_risk
from dynamics.theory.resolvents import effective_ridge, resolvent

MODES = 40
LAM = np.arange(1.0, MODES + 1) ** -1.0


@pytest.mark.parametrize(("aspect", "ridge"), [(0.3, 0.2), (1.0, 1e-2), (4.0, 1e-3)])
def test_isotropic_data_have_the_marchenko_pastur_stieltjes_transform(x64, aspect, ridge):
    """``kappa (1 - a/(1 + kappa)) = ridge``, a quadratic."""
    m, n = 60, 60 / aspect
    kappa = effective_ridge(np.ones(m), n, ridge).kappa
    b = 1 - aspect - ridge
    np.testing.assert_allclose(kappa, (-b + np.sqrt(b**2 + 4 * ridge)) / 2, rtol=1e-10)


def test_pair_is_the_derivative_of_the_trace(x64):
    """``d(tr M R/z)/dz = -tr(M R R)/z^2``, exactly, by automatic differentiation of the fixed point."""
    M = np.sin(np.arange(1.0 * MODES)) ** 2

    def trace(z):
        return resolvent(LAM, 40, z).trace(M) / z

    z = 0.05
    np.testing.assert_allclose(
        -(z**2) * jax.grad(trace)(z), resolvent(LAM, 40, z).trace_pair(M, np.ones(MODES)), rtol=1e-8
    )


def test_many_samples_are_the_population(x64):
    R = resolvent(LAM, 1e9, 0.1)
    np.testing.assert_allclose(R.mean, 0.1 / (LAM + 0.1), rtol=1e-6)
    np.testing.assert_allclose(R.trace_pair(LAM, np.ones(MODES)), np.sum(LAM * R.mean**2), rtol=1e-6)


def drawn(seed, samples, ridge, count=60):
    """``R [count, m, m]`` of drawn data."""
    X = np.random.default_rng(seed).standard_normal((count, samples, MODES)) * np.sqrt(LAM)
    return ridge * np.linalg.inv(np.einsum("sni,snj->sij", X, X) / samples + ridge * np.eye(MODES))


@pytest.mark.parametrize("samples", [20, 200])
def test_traces_of_drawn_matrices(x64, samples):
    """Full, non-commuting M and S: means over 60 draws within 4 standard errors and 1/n."""
    rng = np.random.default_rng(0)
    M, S = (A @ A.T / MODES for A in rng.standard_normal((2, MODES, MODES)))
    R, theory = drawn(1, samples, 0.1), resolvent(LAM, samples, 0.1)
    cases = {
        "trace": (np.einsum("ij,sji->s", M, R), theory.trace(M)),
        "same": (np.einsum("ij,sjk,kl,sli->s", M, R, S, R, optimize=True), theory.trace_pair(M, S)),
        "apart": (np.einsum("ij,sjk,kl,sli->s", M, R, S, R[::-1], optimize=True)[:30], theory.trace_pair(M, S, theory)),
        "diagonal": (np.einsum("i,sij,j,sji->s", LAM, R, LAM, R), theory.trace_pair(LAM, LAM)),
        "mixed": (np.einsum("ij,sjk,k,ski->s", M, R, LAM, R, optimize=True), theory.trace_pair(M, LAM)),
    }
    for name, (values, predicted) in cases.items():
        error = 4 * values.std() / len(values) ** 0.5 + abs(predicted) / samples
        assert abs(values.mean() - predicted) < error, name
    apart = cases["same"][0]
    error = 4 * apart.std() / 60**0.5 + apart.mean() / samples
    assert samples > 100 or apart.mean() - theory.trace_pair(M, S, theory) > error  # independence is another law
    assert apart.mean() - theory._replace(kappa=jnp.asarray(0.1)).trace_pair(M, S) > error  # nor is the ridge itself


def test_ridge_regression_is_two_traces(x64):
    """Risk ``w^T R L R w + s^2 [tr(L R) - tr(L R R)]/(n z) + s^2``: that of random features without end."""
    n, z, noise, power = 50, 0.01, 0.2, np.arange(1.0, MODES + 1) ** -1.2
    R, one = resolvent(LAM, n, z), np.ones(MODES)
    risk = R.trace_pair(power, LAM) + noise * (1 + (R.trace(LAM) - R.trace_pair(LAM, one)) / (n * z))
    for features in (1e9, np.inf):
        framework = random_feature_risk(LAM, LAM * power, n, features, n * z, noise)
        np.testing.assert_allclose(risk, framework.test, rtol=1e-6)


def test_modes_without_variance_count_for_nothing(precision):
    """A covariance of low rank; and repeated modes are counted."""
    padded = np.concatenate([LAM, np.zeros(30)])
    rtol = 1e-4 if precision == "float32" else 1e-10
    np.testing.assert_allclose(effective_ridge(padded, 40, 0.1)[:3], effective_ridge(LAM, 40, 0.1)[:3], rtol=rtol)
    thrice = effective_ridge(LAM, 40, 0.1, multiplicities=3.0)
    np.testing.assert_allclose(thrice[:3], effective_ridge(np.repeat(LAM, 3), 40, 0.1)[:3], rtol=rtol)
    assert effective_ridge(padded, 40, 0.1).residual < rtol
    R = resolvent(padded, 40, 0.1)
    np.testing.assert_allclose(
        R.trace(np.ones(MODES + 30)) - 30, resolvent(LAM, 40, 0.1).trace(np.ones(MODES)), rtol=rtol
    )


def test_lanes_and_derivatives(x64):
    ridges = jnp.array([0.01, 0.1])
    together = jax.vmap(lambda z: resolvent(LAM, 40, z).trace_pair(LAM, LAM))(ridges)
    np.testing.assert_allclose(together[1], resolvent(LAM, 40, 0.1).trace_pair(LAM, LAM), rtol=1e-12)
    for argument in range(2):

        def kappa(x, argument=argument):
            return effective_ridge(LAM, *[x if i == argument else fixed for i, fixed in enumerate((40.0, 0.1))]).kappa

        at = (40.0, 0.1)[argument]
        finite = (kappa(at * (1 + 1e-5)) - kappa(at * (1 - 1e-5))) / (2e-5 * at)
        np.testing.assert_allclose(jax.grad(kappa)(at), finite, rtol=1e-6)


@pytest.mark.usefixtures("as_users_meet_it")
@pytest.mark.parametrize(
    ("name", "given"), [("samples", (0, 0.1)), ("ridge", (40, 0.0)), ("ridge", (40, float("nan")))]
)
def test_what_is_refused(name, given):
    with pytest.raises(ValueError, match=f"{name}: got .*; allowed: a number > 0"):
        resolvent(LAM, *given)
    with pytest.raises(ValueError, match=f"{name}: got .*; allowed: a number > 0"):
        effective_ridge(LAM, *given)


def test_denoisers_are_of_the_noise_that_is_their_ridge():
    with pytest.raises(ValueError, match=r"noise: got 0.2.*; allowed: the resolvent's ridge, 0.1"):
        linear_denoisers(resolvent(LAM, 10, 0.1), 0.2)


def test_denoisers_of_drawn_halves(x64):
    """Distance and test error of 60 pairs, within 4 standard errors and 1/n; the ridge itself as kappa is rejected."""
    n, noise = 15, 0.1
    D = np.eye(MODES) - drawn(3, n, noise, 120)
    distance = np.einsum("sij,j->s", (D[:60] - D[60:]) ** 2, LAM + noise) / MODES
    test = (np.einsum("sij,j->s", (D - np.eye(MODES)) ** 2, LAM) + noise * np.sum(D**2, (1, 2))) / MODES
    R = resolvent(LAM, n, noise)
    right, wrong = linear_denoisers(R, noise), linear_denoisers(R._replace(kappa=jnp.asarray(noise)), noise)
    for values, theory, other in ((distance, right.distance, wrong.distance), (test, right.test, wrong.test)):
        allowed = 4 * values.std() / len(values) ** 0.5 + values.mean() / n
        assert abs(values.mean() - theory) < allowed < abs(values.mean() - other)


def test_second_derivatives_are_those_of_the_fixed_point(x64):
    """For one mode and n = 2, kappa solves a quadratic equation: its second derivative at ridge .5 is -2^(-3/2)."""
    found = jax.grad(jax.grad(lambda ridge: effective_ridge(jnp.ones(1), 2.0, ridge).kappa))(0.5)
    assert found == pytest.approx(-(2.0**-1.5), rel=1e-6)


@pytest.mark.parametrize("ridge", [1e-10, 1e-14])
def test_as_many_samples_as_modes_and_little_ridge(ridge):
    """kappa^2 = ridge (1 + kappa), in single precision: nothing cancels."""
    kappa = float(effective_ridge(jnp.ones(100), 100, ridge).kappa)
    assert kappa == pytest.approx(ridge / 2 + (ridge + ridge**2 / 4) ** 0.5, rel=2e-6)


def test_tiny_eigenvalues_do_not_underflow():
    one, tiny = effective_ridge(jnp.ones(5), 3, 0.1), effective_ridge(1e-25 * jnp.ones(5), 3, 1e-26)
    assert float(tiny.kappa) * 1e25 == pytest.approx(float(one.kappa), rel=1e-5)


def test_numbers_of_numpy_are_checked_too():
    with pytest.raises(ValueError, match="samples: got"):
        resolvent(jnp.ones(3), np.int64(-3), 0.1)
