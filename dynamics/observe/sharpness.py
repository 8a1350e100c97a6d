"""Sharpness while it moves: certified, of any operator, preconditioned, the drift budget; each with its error."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynamics import linalg, operators
from dynamics.arguments import NOT_NEGATIVE, OR_INFINITE, check_counts, check_numbers
from dynamics.observe.rank import path_name
from dynamics.operators import Operator
from dynamics.preconditioners import check_preconditioner
from dynamics.types import Array, Observable, View, factory

OperatorOf = Callable[[View], Operator]


class WarmStart(NamedTuple):
    """Memory of a tracked eigenvalue.

    Attributes:
        vector: ``[P]``, the last Ritz vector, zeros at first.
        key: of the random parts.
        count: readings so far.
        value: the last reading, NaN at first.
        crossed: whether the last two readings lie on two sides of the threshold.
    """

    vector: Array
    key: Array
    count: Array
    value: Array
    crossed: Array


@factory("sharpness()")
def sharpness(**options: Any) -> Observable:
    """The sharpness lambda_max of the loss Hessian, tracked by warm Lanczos with a two-sided certificate.

    Args:
        options: see ``top_eigenvalue``.

    Returns:
        An observable with ``sharpness`` (a lower bound), ``sharpness_residual`` (some eigenvalue lies within it),
        ``sharpness_upper`` (lambda_max is below it but for probability ``p``) and ``sharpness_matvecs``.

    Cost: two gradients a product.

    Reference: Cohen et al. 2021 for the quantity; ``linalg.extreme_eigenvalues`` for the bounds.

    Example:
        >>> import jax.numpy as jnp
        >>> from dynamics.losses import half_mse
        >>> from dynamics.types import Batch, Objective
        >>> read, L = sharpness(), Objective(lambda w, x: x @ w, half_mse)
        >>> view = View(jnp.ones((3, 1)), Batch(jnp.eye(3) * jnp.arange(3.0), jnp.zeros((3, 1))), L)
        >>> memory, readings = read.update(read.init(view), view)
        >>> round(float(readings["sharpness"]), 2), round(float(readings["sharpness_upper"]), 2)
        (1.33, 1.33)
    """
    return top_eigenvalue(hessian_at("sharpness"), "sharpness", **options)


def hessian_at(reader: str, **options: Any) -> OperatorOf:
    """``view -> Operator``: the Hessian of the view's objective, for ``reader``."""
    return lambda view: operators.hessian(view.loss(reader), view.params, view.batch, **options)


def check_operator(reader: str, operator: Callable[..., Operator], *names: str) -> None:
    """Raises TypeError unless ``operator`` takes ``names``, ``where`` by keyword; in 0.1 it took a point."""
    try:
        inspect.signature(operator).bind(*(n for n in names if n != "where"), **{n: n for n in names if n == "where"})
    except TypeError:
        got = f"of ({', '.join(inspect.signature(operator).parameters)})" if callable(operator) else repr(operator)
        raise TypeError(f"{reader}: got an operator {got}; allowed: of ({', '.join(names)})") from None


def zero_vector(operator: OperatorOf, view: View) -> Array:
    """``[P]``, 0, of an operator's size and dtype. Nothing is computed for it; an L without f is, to refuse a view."""

    def zeros():
        _, size, dtype, _ = operator(view)
        return jnp.zeros(size, dtype)

    if view.objective is None or view.objective.apply is None:
        return zeros()
    form = jax.eval_shape(zeros)
    return jnp.zeros(form.shape, form.dtype)


@factory("top_eigenvalue(operator, name)")
def top_eigenvalue(
    operator: OperatorOf,
    name: str,
    *,
    num_matvecs: int = 6,
    certified_matvecs: int = 30,
    certify_every: int = 20,
    interval: float = 1e-3,
    threshold: Any = None,
    which: str = "largest",
    tau: float = 0.2,
    p: float = 1e-4,
    seed: int = 0,
) -> Observable:
    """The largest eigenvalue of any operator, tracked like ``sharpness``: ``<name>``, ``<name>_residual`` and so on.

    Most readings spend ``num_matvecs`` products; the first, every ``certify_every``-th and the one after a crossing of
    ``threshold`` spend more, until the upper bound is within ``interval`` of the reading.

    Args:
        operator: ``view -> Operator``, symmetric.
        name: of the readings.
        num_matvecs, certified_matvecs: products of a cheap reading, and the most that a certified one may spend.
        certify_every: readings between two certified ones.
        interval: the certified readings' aim for (upper - reading) / reading, >= 0.
        threshold: e.g. ``2 / learning_rate``; None for no extra certificates.
        which: "smallest" follows lambda_min instead: the reading is an upper bound, and ``<name>_lower`` replaces
            ``<name>_upper``.
        tau: size of the random part of the warm start, .1 to .3.
        p: probability that an upper bound is violated.
        seed: of the random parts.

    Raises:
        ValueError: when ``num_matvecs``, ``certify_every``, ``interval``, ``tau`` or ``which`` is out of range.
        TypeError: when ``operator`` is no function of a view.
    """
    check_operator("top_eigenvalue", operator, "view")
    if not 1 <= num_matvecs <= certified_matvecs:
        raise ValueError(f"num_matvecs: got {num_matvecs!r}; allowed: an integer in [1, {certified_matvecs}]")
    check_counts(certify_every=certify_every)
    check_numbers(interval=(interval, NOT_NEGATIVE), tau=(tau, OR_INFINITE))
    if which not in ("largest", "smallest"):
        raise ValueError(f"which: got {which!r}; allowed: 'largest' or 'smallest'")
    sign, limit = (1, "upper") if which == "largest" else (-1, "lower")

    def init(view) -> WarmStart:
        vector = zero_vector(operator, view)
        nan = jnp.full((), jnp.nan, vector.dtype)
        return WarmStart(vector, jax.random.key(seed), jnp.int32(0), nan, jnp.bool_(False))

    def update(memory: WarmStart, view):
        matvec, size, *_ = operator(view)
        certify = (memory.count % certify_every == 0) | memory.crossed
        start, share = linalg.warm_start(jax.random.fold_in(memory.key, memory.count), memory.vector, tau)
        top = linalg.certified_eigenvalue(
            lambda v: sign * matvec(v),
            start,
            min(num_matvecs, size),
            certify,
            min(certified_matvecs, size),
            interval=interval,
            random_share=share,
            p=p,
        )
        value = sign * top.value
        crossed = jnp.bool_(False) if threshold is None else (value > threshold) != (memory.value > threshold)
        crossed = crossed & jnp.isfinite(memory.value)
        vector = jnp.where(jnp.all(jnp.isfinite(top.vector)), top.vector, memory.vector)
        readings = {
            name: value,
            f"{name}_residual": top.residual,
            f"{name}_{limit}": sign * top.limit,
            f"{name}_matvecs": top.matvecs,
        }
        return WarmStart(vector, memory.key, memory.count + 1, value, crossed), readings

    return Observable(init, update)


@factory("preconditioned_sharpness()")
def preconditioned_sharpness(
    preconditioner: Callable[[Any], Any] | None = None, *, num_matvecs: int = 10, **options: Any
) -> Observable:
    """The preconditioned sharpness ``lambda_max(P^-1 H)``, with P read from the optimiser's state in the view.

    Args:
        preconditioner: ``opt_state -> P``, e.g. ``stability.rmsprop_preconditioner``; by default the one that the
            view's dynamics knows.
        num_matvecs, options: see ``sharpness``.

    Returns:
        An observable with ``preconditioned_sharpness`` and its ``_residual``, ``_upper``, ``_matvecs``. Before the
        first step of Adam P is meaningless: record from step 1 on.

    Raises:
        TypeError: at tracing, for a view without a state, or a dynamics that knows no preconditioner.
        ValueError: at tracing, for a P that is not that of the dynamics' optimiser.

    Reference: Cohen et al. 2022, section 3.
    """

    def diagonal(view: View) -> Any:
        if preconditioner is not None and hasattr(view.state, "opt_state"):
            if view.dynamics is not None and view.dynamics.optimizer is not None:
                check_preconditioner(view.dynamics.optimizer, preconditioner, view.params)
            return preconditioner(view.state.opt_state)
        known = None if view.dynamics is None else view.dynamics.preconditioner
        if known is None or preconditioner is not None:
            raise TypeError(
                "preconditioned_sharpness: got a view whose dynamics knows no preconditioner; allowed: the run of "
                "gradient_descent, adam or descent(..., preconditioner=), or preconditioned_sharpness(opt_state -> P)"
            )
        return known(view.state)

    hessian = hessian_at("preconditioned_sharpness")
    return top_eigenvalue(
        lambda view: operators.preconditioned(hessian(view), diagonal(view)),
        "preconditioned_sharpness",
        num_matvecs=num_matvecs,
        **options,
    )


@factory("sharpness_drift()")
def sharpness_drift(*, num_matvecs: int = 20, seed: int = 0) -> Observable:
    """The drift budget of the sharpness under gradient flow, ``dS/dt = -grad S . grad L``, by leaf.

    ``grad S = grad_theta (u^T H u)`` at the fixed top eigenvector u (Hellmann-Feynman; S must be a simple
    eigenvalue). One step of gradient descent moves S by ``eta`` times this while it is stable.

    Args:
        num_matvecs: of the warm Lanczos that finds u.
        seed: of its random part.

    Returns:
        An observable with the readings of ``sharpness``, ``sharpness_drift`` and ``sharpness_drift/<leaf>``, which
        sum to it. Cost: ``2 num_matvecs + 6`` gradients.

    Reference: Damian, Nichani & Lee 2023, 'Self-stabilization', section 4 (progressive sharpening alpha).
    """

    operator = hessian_at("sharpness_drift")

    def init(view):
        return zero_vector(operator, view), jax.random.key(seed), jnp.int32(0)

    def update(memory, view):
        previous, key, count = memory
        theta, unravel, merge = operators.flat(view.params)
        matvec, size, *_ = operator(view)
        start, share = linalg.warm_start(jax.random.fold_in(key, count), previous, 0.2)
        top, _ = linalg.extreme_eigenvalues(matvec, start, min(num_matvecs, size), random_share=share)

        def objective(v):
            return view.objective(merge(v), view.batch)

        def curvature(v):
            return jnp.vdot(top.vector, jax.jvp(jax.grad(objective), (v,), (top.vector,))[1])

        moved = unravel(-jax.grad(curvature)(theta) * jax.grad(objective)(theta))
        parts = jax.tree.map(lambda leaf: jnp.sum(leaf.real) + jnp.sum(leaf.imag), moved)
        named = {f"sharpness_drift/{path_name(path)}": part for path, part in jax.tree.leaves_with_path(parts)}
        total = sum(named.values(), start=jnp.zeros(()))
        readings = {
            "sharpness": top.value,
            "sharpness_residual": top.residual,
            "sharpness_upper": top.limit,
            "sharpness_matvecs": top.matvecs,
            "sharpness_drift": total,
        }
        return (top.vector, key, count + 1), readings | named

    return Observable(init, update)
