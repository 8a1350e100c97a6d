"""Curvature operators as matvecs on flat vectors: Hessian, Gauss-Newton, Fisher, gradient covariance, NTK.

Parameters are flattened by ``real_view``. A batch that is sharded over devices along its samples
needs nothing special: the sums become cross-device sums under ``jit``. ``batch_size`` splits the passes through f,
never the loss: what is read is that of the whole batch, masked means and all, or refused where f mixes its samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from dynamics.empirical.matrix_free import ntk_operator
from dynamics.empirical.passes import Passes
from dynamics.linalg import Operator
from dynamics.program.forward import linearized, pushed
from dynamics.program.real_view import Where, flat, is_function, real_view
from dynamics.types import Array, Batch, Objective, Params, check_objective, factory


@factory("operators.hessian(L, params, batch)")
def hessian(
    objective: Objective, params: Params, batch: Any, *, where: Where | None = None, batch_size: int | None = None
) -> Operator:
    """The loss Hessian ``H = d^2 L(theta) / d theta^2``, forward over reverse.

    Args:
        objective: L, its penalty included.
        params: the point.
        batch: ``x``, ``y``, or whatever L takes.
        where: ``(path, leaf) -> bool`` chooses the leaves of a diagonal block; all of them unless given. See
            ``blocks``.
        batch_size: samples in a pass at once (of an L without f a divisor of n); all of them unless given.

    Returns:
        ``Operator``. Cost of a matvec: 2 gradients (4 when split, for nothing is kept); linearising costs one gradient.

    Raises:
        ValueError: when ``where`` chooses nothing, ``batch_size`` is out of range or given for an f that mixes its
            samples, or may (batch statistics); for ``Objective.of`` when it does not divide the sample count or L is no
            mean over the pieces (NaN where values are traced).
    """
    check_objective(objective)
    theta, unravel, merge = flat(params, where)

    def gradient(batch: Any) -> Callable[[Array], Array]:
        return jax.grad(lambda v: objective(merge(v), batch))

    if batch_size is None:
        _, matvec = jax.linearize(gradient(batch), theta)
    elif objective.apply is None:
        parts = _split(batch, batch_size)
        sound = checked_mean(objective(params, batch), jax.lax.map(lambda piece: objective(params, piece), parts))
        matvec = _summed(lambda piece: lambda v: sound * jax.jvp(gradient(piece), (theta,), (v,))[1], parts)
    else:
        cut = Passes(objective.f("hessian"), params, merge, theta, batch.x, batch_size)
        outputs, slope = cut.outputs(), jax.grad(lambda f: objective.loss(f, batch.y))

        def product(v):
            g, dg = jax.jvp(slope, (outputs,), (cut.push(v),))
            h = cut.pull_along(v, g, dg)
            if objective.penalty is None:
                return h
            rise = jax.grad(lambda t: objective.penalised(merge(t), jnp.zeros(())))
            return h + jax.jvp(rise, (theta,), (v,))[1]

        matvec = product
    return Operator(matvec, theta.size, theta.dtype, unravel)


@factory("operators.gauss_newton(L, params, batch)")
def gauss_newton(
    objective: Objective, params: Params, batch: Batch, *, where: Where | None = None, batch_size: int | None = None
) -> Operator:
    """The generalised Gauss-Newton matrix ``G = J^T (d^2 loss / df^2) J`` (Schraudolph 2002).

    ``H = G + sum_i (d loss / df_i) d^2 f_i``: the two agree where the loss gradient vanishes. Arguments as ``hessian``.
    The penalty is left out, as it is no function of f. Cost of a matvec: about 1.3 gradients.

    Raises:
        TypeError: for an objective without f.
    """
    check_objective(objective)
    apply, loss = objective.f("gauss_newton"), objective.loss
    theta, unravel, merge = flat(params, where)

    f, push, pull = _jacobian(apply, params, merge, theta, batch.x, batch_size)
    _, curve = jax.linearize(jax.grad(lambda f: loss(f, batch.y)), f)
    return Operator(lambda v: pull(curve(push(v))), theta.size, theta.dtype, unravel)


@factory("operators.fisher(L, params, batch)")
def fisher(
    objective: Objective,
    params: Params,
    batch: Batch,
    *,
    output: str = "categorical",
    where: Where | None = None,
    batch_size: int | None = None,
) -> Operator:
    """The Fisher matrix ``F = (1/n) sum_i J_i^T E_{y ~ p(y|f_i)}[grad_f log p grad_f log p^T] J_i``.

    Args:
        objective: whose ``f [n, c]`` is read.
        params: the point.
        batch: only ``x`` is used; the expectation is over the model's own labels.
        output: "categorical" (f are logits: inner matrix ``diag p - p p^T``), "bernoulli" (one logit an output:
            ``p (1 - p)``) or "gaussian" (unit variance: the identity).
        where, batch_size: see ``hessian``.

    Returns:
        ``Operator``; equal to ``gauss_newton`` of ``cross_entropy``, ``half_mse`` (Martens 2020, section 9).

    Raises:
        ValueError: when ``output`` is unknown, and as ``hessian``.
    """
    if output not in ("categorical", "bernoulli", "gaussian"):
        raise ValueError(f"output: got {output!r}; allowed: 'categorical', 'bernoulli' or 'gaussian'")
    check_objective(objective)
    apply = objective.f("fisher")
    theta, unravel, merge = flat(params, where)

    def inner(f, df):
        if output == "gaussian":
            return df
        if output == "bernoulli":
            return jax.nn.sigmoid(f) * jax.nn.sigmoid(-f) * df
        p = jax.nn.softmax(f, axis=-1)
        return p * (df - jnp.sum(p * df, axis=-1, keepdims=True))

    f, push, pull = _jacobian(apply, params, merge, theta, batch.x, batch_size)
    if not hasattr(f, "shape"):
        raise TypeError(f"f: got {jax.tree.structure(f)}; allowed for fisher: one array [n, c]")
    if jnp.iscomplexobj(f):
        raise TypeError(f"f: got {f.dtype}; allowed for fisher: real numbers")

    return Operator(lambda v: pull(inner(f, push(v)) / f.shape[0]), theta.size, theta.dtype, unravel)


@factory("operators.gradient_covariance(L, params, batch)")
def gradient_covariance(
    objective: Objective,
    params: Params,
    batch: Any,
    *,
    centred: bool = True,
    where: Where | None = None,
    batch_size: int | None = None,
) -> Operator:
    """The covariance of single-sample gradients, ``Sigma = (1/n) sum_i g_i g_i^T - g g^T``.

    SGD with batches of B drawn with replacement has gradient noise ``Sigma / B``. A sample's gradient is its share of
    the whole's, ``g_i = n J_i^T dL/df_i``, whose mean is the gradient: for a mean over samples that of its own loss.

    Args:
        objective: L; one without f must be a mean over samples.
        params: the point.
        batch: ``x [n, ...]``, ``y``, or whatever L takes, its leaves led by the samples.
        centred: False leaves out ``- g g^T``: the empirical Fisher matrix.
        where, batch_size: see ``hessian``.

    Returns:
        ``Operator``. Cost of a matvec: about 1.3 gradients, 3 when split.

    Raises:
        ValueError: as ``hessian``.
    """
    check_objective(objective)
    theta, unravel, merge = flat(params, where)
    n = jax.tree.leaves(batch)[0].shape[0]
    if objective.apply is None:
        if batch_size is not None:
            _split(batch, batch_size)
        sound, push, pull = _single_losses(objective, params, batch, merge, theta, batch_size)
    else:
        sound, push, pull = _shares(objective, params, batch, merge, theta, batch_size)
    rise = jax.grad(lambda t: objective.penalised(merge(t), jnp.zeros((), t.dtype)))(theta)

    def matvec(v):
        along = push(v) + jnp.vdot(rise, v)  # g_i . v
        weights = sound * (along - jnp.mean(along) if centred else along) / n
        return pull(weights) + rise * jnp.sum(weights)

    return Operator(matvec, theta.size, theta.dtype, unravel)


def _single_losses(objective: Objective, params: Params, batch: Any, merge, theta: Array, batch_size: int | None):
    """Of an L without f: ``(sound, v -> grad L_i . v [n], w [n] -> sum_i w_i grad L_i)``."""
    n = jax.tree.leaves(batch)[0].shape[0]

    def losses(v, part):
        def one(sample):
            return objective.loss(merge(v), jax.tree.map(lambda leaf: leaf[None], sample))

        return jax.vmap(one)(part).astype(v.dtype)

    parts = _split(batch, n if batch_size is None else batch_size)
    apart = jax.lax.map(lambda part: losses(theta, part), parts)
    sound = checked_mean(objective.loss(params, batch), jnp.ravel(apart))
    if batch_size is None:
        _, push, pull = linearized(lambda v: losses(v, batch), theta)
        return sound, push, pull

    def push_all(v):
        return jnp.ravel(jax.lax.map(lambda part: pushed(lambda t: losses(t, part), theta, v)[1], parts))

    def pull_all(weights):
        def add(total, held):
            part, own = held
            return total + jax.vjp(lambda t: losses(t, part), theta)[1](own)[0], None

        return jax.lax.scan(add, jnp.zeros_like(theta), (parts, jnp.reshape(weights, (-1, batch_size))))[0]

    return sound, push_all, pull_all


def _shares(objective: Objective, params: Params, batch: Batch, merge, theta: Array, batch_size: int | None):
    """The same of an L with f, by each sample's share of the gradient."""
    apply = objective.f("gradient_covariance")
    f, push, pull = _jacobian(apply, params, merge, theta, batch.x, batch_size)
    n = jax.tree.leaves(batch.x)[0].shape[0]
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(f)]
    if any(shape[:1] != (n,) for shape in shapes):
        raise ValueError(f"f: got shapes {shapes}; allowed for gradient_covariance: [n, ...], led by the {n} samples")
    slope = jax.tree.map(lambda leaf: n * leaf, jax.grad(lambda f: objective.loss(f, batch.y))(f))

    def along(v):
        def each(s, d):
            return jnp.sum(jnp.reshape(jnp.real(s * d), (n, -1)).astype(v.dtype), 1)

        return sum(jax.tree.leaves(jax.tree.map(each, slope, push(v))), start=jnp.zeros(n, v.dtype))

    def back(weights):
        return pull(jax.tree.map(lambda s: s * jnp.reshape(weights, (n,) + (1,) * (s.ndim - 1)).astype(s.dtype), slope))

    return 1.0, along, back


@factory("operators.ntk(L, params, batch)")
def ntk(
    objective: Objective, params: Params, batch: Batch, *, where: Where | None = None, batch_size: int | None = None
) -> Operator:
    """The empirical NTK ``K = J J^T`` of the objective's f: ``empirical.ntk_operator``."""
    check_objective(objective)
    return ntk_operator(objective.f("ntk"), params, batch.x, where=where, batch_size=batch_size)


def preconditioned(operator: Operator, preconditioner: Any) -> Operator:
    """``P^-1/2 A P^-1/2``, which is symmetric and has the eigenvalues of ``P^-1 A``.

    Args:
        operator: A.
        preconditioner: a pytree of positive numbers shaped like the operator's (diagonal P, e.g.
            ``stability.adam_preconditioner(opt_state)``), or a function ``v [P] -> P^-1/2 v`` (e.g.
            ``stability.shampoo_inverse_root(left, right)`` where the operator's only leaf is that matrix).

    Raises:
        ValueError: when a diagonal P has another number of entries than the operator.
    """
    if is_function(preconditioner):
        root = preconditioner
    else:
        diagonal = real_view(_like(operator, preconditioner))[0]
        if diagonal.size != operator.size:
            raise ValueError(f"preconditioner: got {diagonal.size} entries; allowed: the operator's {operator.size}")
        scale = jax.lax.rsqrt(diagonal)

        def root(v):
            return scale * v

    return operator._replace(matvec=lambda v: root(operator.matvec(root(v))))


def _like(operator: Operator, preconditioner: Any) -> Any:
    """A diagonal P with (p, p) for both parts of a complex leaf, or its own ``p_re + i p_im``."""
    moved = jax.eval_shape(operator.unravel, jax.ShapeDtypeStruct((operator.size,), operator.dtype))
    if jax.tree.structure(moved) != jax.tree.structure(preconditioner):
        return preconditioner
    return jax.tree.map(
        lambda leaf, p: jax.lax.complex(p, p) if jnp.iscomplexobj(leaf) and not jnp.iscomplexobj(p) else p,
        moved,
        preconditioner,
    )


def blocks(params: Params, level: int = 1) -> dict[str, Where]:
    """``where`` functions of the parameters' groups: leaves whose paths share their first ``level`` entries.

    Example:
        >>> import jax.numpy as jnp
        >>> list(blocks({"first": {"w": jnp.ones(2)}, "second": {"w": jnp.ones(2)}}))
        ['first', 'second']
    """

    def name(path):
        return jax.tree_util.keystr(path[:level], simple=True, separator="/")

    names = dict.fromkeys(name(path) for path, _ in jax.tree.leaves_with_path(params))
    return {group: lambda path, leaf, group=group: name(path) == group for group in names}


def _jacobian(apply: Callable[..., Any], params: Params, merge, theta: Array, x: Any, batch_size: int | None):
    """``(f, v -> J v, c -> J^T c)``, outputs and what is like them in f's own shape; in pieces with ``batch_size``."""
    if batch_size is None:
        return linearized(lambda v: apply(merge(v), x), theta)
    cut = Passes(apply, params, merge, theta, x, batch_size)
    return cut.outputs(), cut.push, cut.pull


def _summed(of_batch: Callable[[Any], Callable[[Array], Array]], parts: Any) -> Callable[[Array], Array]:
    def matvec(v):
        total, _ = jax.lax.scan(lambda total, piece: (total + of_batch(piece)(v), None), jnp.zeros_like(v), parts)
        return total / jax.tree.leaves(parts)[0].shape[0]

    return matvec


def _split(batch: Any, size: int) -> Any:
    n = jax.tree.leaves(batch)[0].shape[0]
    if size < 1 or n % size:
        raise ValueError(f"batch_size: got {size!r}; allowed: a divisor of the {n} samples")
    return jax.tree.map(lambda leaf: jnp.reshape(leaf, (n // size, size, *leaf.shape[1:])), batch)


def is_mean(whole: Array, parts: Array) -> Array:
    """Whether L of the batch is the mean over its parts, up to rounding."""
    scale = jnp.mean(jnp.abs(parts)) + jnp.finfo(parts.dtype).tiny
    return jnp.abs(whole - jnp.mean(parts)) <= jnp.sqrt(jnp.finfo(parts.dtype).eps) * scale


def checked_mean(whole: Array, parts: Array) -> Array:
    """1 where L of the batch is the mean over its parts; else an error, or NaN where the values are traced."""
    sound = is_mean(whole, parts)
    if isinstance(sound, Tracer):
        return jnp.where(sound, 1.0, jnp.nan).astype(parts.dtype)
    if not sound and jnp.isfinite(whole):
        raise ValueError(
            f"objective: got L = {float(whole):.6g} for the batch and a mean of {float(jnp.mean(parts)):.6g} over its "
            "parts; allowed to be taken apart: a mean over samples (no batch statistics, no masked mean)"
        )
    return jnp.ones((), parts.dtype)
