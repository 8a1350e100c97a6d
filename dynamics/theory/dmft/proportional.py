"""The lazy-to-rich grokking model in the proportional limit: a self-averaging bath and one growing direction."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from dynamics.arguments import NOT_NEGATIVE, OR_INFINITE, POSITIVE, SHARE, check_counts, check_numbers
from dynamics.precision import full_precision
from dynamics.theory.dmft.two_channels import causal_pass
from dynamics.types import Array, ArrayLike, Record

NODES = 24  # of the Gauss-Hermite rule in z
SEEN = 1e-8  # weight of a node below which no training set shows it, while descent on it may diverge
SPIKES = ("coherent", "bath", "none")


class Inputs(NamedTuple):
    """What the theory may know of a training set.

    Attributes:
        fields: ``z_mu = beta.x_mu``.
        norms: ``rho_mu = |x_mu|^2 - z_mu^2/D``, of what is orthogonal to beta.
    """

    fields: Float[Array, " P"]
    norms: Float[Array, " P"]


def draw_inputs(key: PRNGKeyArray, kappa: float, dim: int) -> Inputs:
    """Fields and norms of ``P = kappa D`` inputs ``x ~ N(0, I/D)``, ``|beta|^2 = D``."""
    check_numbers(kappa=(kappa, POSITIVE))
    if dim < 2 or (count := round(kappa * dim)) < 1:
        raise ValueError(f"dim: got {dim} at kappa = {kappa}; allowed: an integer >= 2, with kappa dim samples or more")
    of_field, of_norm = jax.random.split(key)
    z = jax.random.normal(of_field, (count,))
    return Inputs(z, 2 * jax.random.gamma(of_norm, (dim - 1) / 2, (count,)) / dim)


def inputs_of(x: Float[Array, "P D"], beta: Float[Array, " D"]) -> Inputs:
    """Fields and norms of given inputs ``x ~ N(0, I/D)``, ``|beta|^2 = D``."""
    if jnp.ndim(x) != 2 or jnp.shape(beta) != jnp.shape(x)[1:]:
        raise ValueError(f"x, beta: got shapes {jnp.shape(x)} and {jnp.shape(beta)}; allowed: [P, D] and [D]")
    z = x @ beta
    return Inputs(z, jnp.sum(x**2, 1) - z**2 / jnp.sum(beta**2))


@full_precision
def proportional(
    kappa: ArrayLike,
    steps: int,
    key: PRNGKeyArray,
    samples: int | None = None,
    *,
    dim: ArrayLike,
    alpha: ArrayLike,
    eps: ArrayLike,
    rate: ArrayLike,
    zeta: ArrayLike = 1.0,
    inputs: Inputs | None = None,
    spike: str = "coherent",
    noise: bool = True,
) -> Record:
    """Grokking of the lazy-to-rich model as P, D -> infinity at ``kappa = P/D``, with the seed 1/D of beta kept.

    The model is that of ``theory.lazy_to_rich`` at N = infinity: ``w = T w(0) + c``, ``M = T T^T + c c^T``. The columns
    of T are a bath of self-averaging correlation tau and response r, but for one direction u, the growing
    eigenvector of M. A sample with ``z = beta.x`` and ``rho = |x|^2 - z^2/D`` sees, with ``a = rate eps/kappa``,

        Gam(t, .) = e_t - a rho sum_{s<t} r(t, s+1) d(s) Gam(s, .),      Q = rho Gam tau Gam^T
        h_i(t) = sqrt(rho) y_i(t) + z m_i(t) - (rate rho/kappa) sum_{s<t} R_ij(t, s+1) g_j(s),      i in {c, u}
        d = alpha h_c + (alpha eps/2)(Q(t, t) + h_u^2 + h_c^2 - rho - z^2 m_u(0)^2) - z^2/2
        g_c = d (1 + eps h_c),      g_u = eps d h_u
        m_i(t+1) = m_i(t) - rate E[g_i z]

    and tau, r, C, R follow (``order.advance``) from the kernels ``a kappa E[rho d Gam]``, ``rate E[rho dg_i/dh_j]`` and
    noises ``a^2 kappa E[rho d d' Q]``, ``(rate^2/kappa) E[rho g_i g_j]``. The spike starts at
    ``m_u(0) = 1/sqrt(D zeta)``, zeta from ``seed_share``.

    Args:
        kappa: ``P/D > 0``.
        steps: updates T.
        key: of the Monte Carlo samples.
        samples: their number S, an even multiple of the inputs, or of the 18 quadrature nodes without these; twice
            the inputs, or 972, unless given.
        dim: D; inf leaves no seed, and nothing generalises.
        alpha, eps: output scale and weight of the quadratic term.
        rate: ``2 eta0/(alpha D)``, with the eta0 of ``theory.lazy_to_rich.reduction``.
        zeta: share of the spike's power that beta's own right direction carries.
        inputs: fields and norms of one training set; the expectations are then over its samples, and the theory
            follows that run. None: expectations over N(0, 1) by quadrature, ``rho = 1``.
        spike: ``coherent``; ``bath`` leaves u inside the bath (a wrong theory); ``none`` has no seed.
        noise: without ``inputs``, whether m gets the data's noise ``- rate zeta``, ``cov zeta = Cov(g z)/P``.

    Returns:
        A Record at steps ``0 .. T``: ``train_loss``, its Monte Carlo ``train_error``, ``test_loss`` and its terms
        ``test_mean``, ``test_power``, ``test_linear``; ``overlaps [T+1, 2]`` (m_c, m_u), ``mean``, ``spike`` and
        ``bath`` (``|c|^2/D``, ``|u|^2/D``, tau), ``along_beta`` (``|T^T beta|^2/D^2``, of u alone but for ``bath``),
        ``seed_share``; and ``lane_failed``, as in ``committee``.

    Raises:
        ValueError: for a number out of its range, a number of samples that does not fit, or another ``spike``.

    Cost: ``10 S T^3`` FLOPs and ``8 S T^2 + S^2/2`` numbers: 13 CPU seconds at T = 80, S = 2400 in float32. Errors fall
    as ``1/sqrt(S)``.

    Reference: Kumar, Bordelon, Gershman & Pehlevan 2023 (model); the two-channel cavity is derived in
    docs/dmft_proportional.md.

    Example:
        >>> import jax
        >>> record = proportional(5.0, 2, jax.random.key(0), 36, dim=240, alpha=0.1, eps=0.1, rate=1.0)
        >>> [round(float(loss), 2) for loss in record.values["test_loss"]]
        [0.75, 0.75, 0.75]
    """
    check_counts(steps=steps)
    check_numbers(
        kappa=(kappa, POSITIVE), dim=(dim, OR_INFINITE), alpha=(alpha, POSITIVE), eps=(eps, NOT_NEGATIVE),
        rate=(rate, POSITIVE), zeta=(zeta, SHARE),
    )  # fmt: skip
    z, rho, weights = _nodes(inputs, samples)
    if spike not in SPIKES:
        raise ValueError(f"spike: got {spike!r}; allowed: {', '.join(SPIKES)}")
    numbers = (jnp.asarray(v, z.dtype) for v in (kappa, dim, alpha, eps, rate, zeta))
    outputs = causal_pass(steps, noise and inputs is None, spike, key, z, rho, weights, *numbers)
    return Record(jnp.arange(steps + 1), jnp.arange(steps + 1), outputs)


@full_precision
def seed_share(
    kappa: ArrayLike,
    steps: int,
    key: PRNGKeyArray,
    samples: int | None = None,
    *,
    alpha: ArrayLike,
    eps: ArrayLike,
    rate: ArrayLike,
) -> Float[Array, " steps"]:
    """The share zeta(t) of the growing direction's power that grew from beta's own right direction, without a seed.

    While the spike is small every right direction j of T has an overlap ``m_j = beta.T e_j/D`` that obeys one linear
    equation, with the kernel ``a kappa E[d z^2 Gam]``: beta's from its seed ``1/sqrt(D)``, the others' from noise of
    covariance ``(a^2 kappa/D) E[d d' z^2 Q]`` in all. With L the response to the seed and B/D the others' power,
    ``zeta(t) = L^2/(L^2 + B)``. Its late value sets the amplitude of a spike of one direction, ``1/sqrt(D zeta)``.

    Args:
        kappa, steps, key, samples, alpha, eps, rate: as in ``proportional``.

    Returns:
        zeta at steps ``0 .. T``. Cost: one pass.

    Example:
        >>> import jax
        >>> zeta = seed_share(5.0, 2, jax.random.key(0), 36, alpha=0.1, eps=0.1, rate=1.0)
        >>> float(zeta[0])
        1.0
    """
    options: dict[str, Any] = {"alpha": alpha, "eps": eps, "rate": rate}
    return proportional(kappa, steps, key, samples, dim=jnp.inf, spike="none", **options).values["seed_share"]


def _nodes(inputs: Inputs | None, samples: int | None) -> tuple[Array, Array, Array]:
    """Fields, norms and weights ``[S]``, in the order of ``injected``."""
    dtype = jnp.result_type(float)
    if inputs is None:
        x, w = np.polynomial.hermite_e.hermegauss(NODES)
        seen = w > SEEN * w.sum()
        z, rho, w, what = x[seen], np.ones(seen.sum()), w[seen] / w[seen].sum(), "quadrature nodes"
    else:
        z, rho = inputs
        if jnp.ndim(z) != 1 or jnp.shape(z) != jnp.shape(rho) or not len(z):
            raise ValueError(f"inputs: got shapes {jnp.shape(z)} and {jnp.shape(rho)}; allowed: [P] both, P >= 1")
        w, what = jnp.full(len(z), 1 / len(z)), "inputs"
    samples = (54 if inputs is None else 2) * len(z) if samples is None else samples
    check_counts(samples=samples)
    if samples % (2 * len(z)):
        raise ValueError(f"samples: got {samples}; allowed: multiples of {2 * len(z)}, twice the {what}")
    copies = samples // len(z)
    z, rho, w = (jnp.tile(jnp.asarray(v, dtype), copies) for v in (z, rho, w))
    return z, rho, w / copies
