"""Curvature operators as matvecs on flat vectors: Hessian, Gauss-Newton, Fisher, gradient covariance, NTK.

Parameters are flattened by ``real_view``. A batch that is sharded over devices along its samples
needs nothing special: the sums become cross-device sums under ``jit``. The loss must be a mean over samples wherever
``batch_size`` splits it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from dynamics.types import Array, Batch, Objective, Params, check_objective, factory

Where = Callable[[Any, Array], bool]


class Operator(NamedTuple):
    """A symmetric operator.

    Attributes:
        matvec: ``v [size] -> A v [size]``.
        size: P.
        dtype: of the vectors, at least float32.
        unravel: ``v [size] -> pytree`` with the parameters' structure (leaves that ``where`` left out, integers and
            booleans are None).
    """

    matvec: Callable[[Array], Array]
    size: int
    dtype: Any
    unravel: Callable[[Array], Any]


def real_view(tree: Any) -> tuple[Float[Array, " P"], Callable[[Array], Any]]:
    """All real numbers of a pytree as one vector, and its inverse.

    A complex leaf is two real ones: all its real parts, then all its imaginary ones. Half precision is widened to
    float32 in the vector, and narrowed again by the inverse. Integer and boolean leaves do not move: they are left out,
    and None in what the inverse gives. Differentiating ``L(unravel(v))`` is right for complex leaves: v is real.

    Args:
        tree: a pytree; leaves without inexact dtype are left out.

    Returns:
        ``(vector, unravel)``; unravel is linear over the reals, and takes tangents as well as points.

    Raises:
        TypeError: when no leaf is a floating or complex array.

    Example:
        >>> import jax.numpy as jnp
        >>> v, unravel = real_view({"w": jnp.array([1 + 2j, 3]), "n": jnp.array(7)})
        >>> v.tolist(), unravel(v)["n"]
        ([1.0, 3.0, 2.0, 0.0], None)
    """
    moving = jax.tree.map(lambda leaf: leaf if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) else None, tree)
    leaves, structure = jax.tree.flatten(moving)
    if not leaves:
        got = sorted({str(jnp.result_type(leaf)) for leaf in jax.tree.leaves(tree)})
        raise TypeError(f"params: got leaves of {', '.join(got) or 'nothing'}; allowed: a floating or complex one")
    dtypes = [jnp.result_type(leaf) for leaf in leaves]
    if min(jnp.finfo(dtype).bits for dtype in dtypes) >= 32 and not any(jnp.iscomplexobj(leaf) for leaf in leaves):
        return ravel_pytree(moving)

    def real(leaf):
        return jnp.stack([jnp.real(leaf), jnp.imag(leaf)]) if jnp.iscomplexobj(leaf) else jnp.asarray(leaf)

    vector, split = ravel_pytree(
        [real(leaf).astype(jnp.promote_types(real(leaf).dtype, jnp.float32)) for leaf in leaves]
    )

    def unravel(v):
        parts = [
            jax.lax.complex(part[0], part[1]) if jnp.issubdtype(dtype, jnp.complexfloating) else part.astype(dtype)
            for part, dtype in zip(split(v), dtypes, strict=True)
        ]
        return jax.tree.unflatten(structure, parts)

    return vector, unravel


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
        batch_size: samples linearised at once, a divisor of n; all of them unless given.

    Returns:
        ``Operator``. Cost of a matvec: 2 gradients (3 when split, for nothing is kept); linearising costs one gradient.

    Raises:
        ValueError: when ``where`` chooses nothing or ``batch_size`` does not divide the sample count.
    """
    check_objective(objective)
    theta, unravel, merge = flat(params, where)

    def gradient(batch: Any) -> Callable[[Array], Array]:
        return jax.grad(lambda v: objective(merge(v), batch))

    if batch_size is None:
        _, matvec = jax.linearize(gradient(batch), theta)
    else:
        matvec = _summed(lambda piece: lambda v: jax.jvp(gradient(piece), (theta,), (v,))[1], _split(batch, batch_size))
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

    def whole(batch: Batch) -> Callable[[Array], Array]:
        f, push, pull, shaped = _outputs(lambda v: apply(merge(v), batch.x), theta)
        _, curve = jax.linearize(jax.grad(lambda f: loss(shaped(f), batch.y)), f)
        return lambda v: pull(curve(push(v)))[0]

    matvec = whole(batch) if batch_size is None else _summed(whole, _split(batch, batch_size))
    return Operator(matvec, theta.size, theta.dtype, unravel)


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

    def whole(batch: Batch) -> Callable[[Array], Array]:
        f, push, pull, shaped = _outputs(lambda v: apply(merge(v), batch.x), theta)
        f, n = shaped(f), shaped(f).shape[0]
        if jnp.iscomplexobj(f):
            raise TypeError(f"f: got {f.dtype}; allowed for fisher: real numbers")
        return lambda v: pull(jnp.ravel(inner(f, shaped(push(v)))).astype(v.dtype) / n)[0]

    matvec = whole(batch) if batch_size is None else _summed(whole, _split(batch, batch_size))
    return Operator(matvec, theta.size, theta.dtype, unravel)


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

    SGD with batches of B drawn with replacement has gradient noise ``Sigma / B``.

    Args:
        objective: L, a mean over samples, whose f takes one sample at a time (no batch statistics).
        params: the point.
        batch: ``x [n, ...]``, ``y [n, c]``, or whatever L takes, its leaves led by the samples.
        centred: False leaves out ``- g g^T``: the empirical Fisher matrix.
        where, batch_size: see ``hessian``.

    Returns:
        ``Operator``. Cost of a matvec: about 1.3 gradients, 2.3 when split.

    Raises:
        ValueError: as ``hessian``.
    """
    check_objective(objective)
    theta, unravel, merge = flat(params, where)

    def one(loss, *sample):
        return loss(*jax.tree.map(lambda leaf: leaf[None], sample))

    def losses_of(params, batch):
        if objective.apply is None:
            found = jax.vmap(lambda sample: one(lambda piece: objective.loss(params, piece), sample))(batch)
        else:
            f = objective.f("gradient_covariance")(params, batch.x)
            found = jax.vmap(lambda f, y: one(objective.loss, f, y))(f, batch.y)
        return objective.penalised(params, found)

    def whole(batch: Any) -> Callable[..., Array]:
        def losses(v):
            return losses_of(merge(v), batch)

        _, push = jax.linearize(lambda v: losses(v).astype(v.dtype), theta)
        pull = jax.linear_transpose(push, theta)

        def matvec(v, mean=jnp.mean):
            along = push(v)  # g_i . v
            weights = along - mean(along) if centred else along
            return pull(weights / along.shape[0])[0]

        return matvec

    if batch_size is None:
        return Operator(whole(batch), theta.size, theta.dtype, unravel)
    parts = _split(batch, batch_size)
    gradient = _summed(lambda piece: jax.grad(lambda v: objective(merge(v), piece)), parts)(theta)

    def split(v):
        along = jnp.vdot(gradient, v)
        return _summed(lambda piece: lambda v: whole(piece)(v, lambda _: along), parts)(v)

    return Operator(split, theta.size, theta.dtype, unravel)


@factory("operators.ntk(L, params, batch)")
def ntk(objective: Objective, params: Params, batch: Batch, *, where: Where | None = None) -> Operator:
    """The empirical NTK ``K = J J^T`` as an operator on flat outputs ``[n c]``; ``unravel`` gives ``[n, c]``.

    Cost of a matvec: about 1.3 gradients; no Gram matrix is formed.
    """
    check_objective(objective)
    apply = objective.f("ntk")
    theta, _, merge = flat(params, where)
    f, push, pull, shaped = _outputs(lambda v: apply(merge(v), batch.x), theta)
    return Operator(lambda v: push(pull(v)[0]), f.size, f.dtype, shaped)


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
    if callable(preconditioner):
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
    """A diagonal P with (p, p) for both parts of a complex leaf."""
    moved = jax.eval_shape(operator.unravel, jax.ShapeDtypeStruct((operator.size,), operator.dtype))
    if jax.tree.structure(moved) != jax.tree.structure(preconditioner):
        return preconditioner
    return jax.tree.map(
        lambda leaf, p: jax.lax.complex(p, p) if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else p,
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


def _outputs(outputs: Callable[[Array], Any], theta: Array):
    """``(f, push, pull, shaped)``: outputs in the real view, ``J``, ``J^T`` and the inverse of that view."""
    _, shaped = real_view(jax.tree.map(jnp.zeros_like, jax.eval_shape(outputs, theta)))
    f, push = jax.linearize(lambda v: real_view(outputs(v))[0], theta)
    return f, push, jax.linear_transpose(push, theta), shaped


def _summed(of_batch: Callable[[Any], Callable[[Array], Array]], parts: Any) -> Callable[[Array], Array]:
    def matvec(v):
        total, _ = jax.lax.scan(lambda total, piece: (total + of_batch(piece)(v), None), jnp.zeros_like(v), parts)
        return total / jax.tree.leaves(parts)[0].shape[0]

    return matvec


def flat(params: Params, where: Where | None = None):
    """``(theta [P], unravel, merge)``: the chosen leaves flat, and ``merge: v -> whole params``."""
    chosen = params
    if where is not None:
        chosen = jax.tree.map_with_path(lambda path, leaf: leaf if where(path, leaf) else None, params)
        if not jax.tree.leaves(chosen):
            raise ValueError(
                f"where: got one that chooses none of the {len(jax.tree.leaves(params))} leaves; allowed: at least one"
            )
    theta, unravel = real_view(chosen)

    def merge(v):
        return jax.tree.map(
            lambda new, old: old if new is None else new, unravel(v), params, is_leaf=lambda leaf: leaf is None
        )

    return theta, unravel, merge


def _split(batch: Any, size: int) -> Any:
    n = jax.tree.leaves(batch)[0].shape[0]
    if size < 1 or n % size:
        raise ValueError(f"batch_size: got {size!r}; allowed: a divisor of the {n} samples")
    return jax.tree.map(lambda leaf: jnp.reshape(leaf, (n // size, size, *leaf.shape[1:])), batch)
