"""A kernel and its gradients from one forward and one backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynamics.empirical import block_contraction as contract
from dynamics.empirical.axes import OutputAxes, arrange, traced_size
from dynamics.empirical.blocks import Block
from dynamics.empirical.dispatch import Axes, Job, Moving, Request, compute, ntk_jobs
from dynamics.empirical.one_tile import Side, open_tile, sides
from dynamics.empirical.tile_plan import DEFAULT_BUDGET
from dynamics.empirical.tiles import Task, from_opened, unit_cotangents
from dynamics.precision import full_precision
from dynamics.program.views import rearrange
from dynamics.types import Array, Params, PyTree


class KernelAndGradient(NamedTuple):
    """A network at one point.

    Attributes:
        outputs: ``f(params, x)``, ``[n, ...]``.
        kernel: what ``empirical_ntk_fn`` gives.
        pull: cotangents like ``outputs`` -> ``J^T cotangents``, a pytree like the parameters; a complex leaf holds
            ``d/dRe + i d/dIm``.
    """

    outputs: Array
    kernel: Array
    pull: Callable[[Array], Params]


@full_precision
def empirical_ntk_and_vjp_fn(
    f: Callable[[Params, PyTree], Array],
    trace_axes: Axes = (-1,),
    *,
    memory: int = DEFAULT_BUDGET,
    mixing: str = "refuse",
) -> Callable[[PyTree, Params], KernelAndGradient]:
    """The NTK of a batch together with ``f`` and its vector-Jacobian product, sharing both passes.

    Args:
        f: ``(params, x) -> [n, ...]``, one array.
        trace_axes, memory, mixing: see ``empirical_ntk_fn``.

    Returns:
        ``both(x, params) -> KernelAndGradient``.

    Raises:
        ValueError: at the call, as ``empirical_ntk_fn``, and when ``f`` has several outputs.

    Cost: the kernel's, and for a gradient one product of data and cotangents a leaf (where outputs are scanned, and
    where the kernel is cut into tiles, one more backward pass).

    Example:
        >>> import jax.numpy as jnp
        >>> both = empirical_ntk_and_vjp_fn(lambda w, x: x @ w)(2.0 * jnp.eye(2), jnp.ones((2, 1)))
        >>> both.kernel.tolist(), both.pull(jnp.ones((2, 1))).ravel().tolist()
        ([[4.0, 0.0], [0.0, 4.0]], [2.0, 2.0])
    """
    request = Request(trace_axes=trace_axes, memory=memory, mixing=mixing)

    def both(x: PyTree, params: Params) -> KernelAndGradient:
        jobs = ntk_jobs(f, f, x, None, params, request)[1]
        if len(jobs) != 1:
            raise ValueError(f"f: got {len(jobs)} output arrays; allowed: one")
        return _shared(jobs[0], params) if _whole(jobs[0]) else _apart(f, x, params, jobs[0])

    return both


def _whole(job: Job) -> bool:
    samples = jax.tree.leaves(job.x1)[0].shape[0]
    return job.by_sample and 0 in job.axes.full and job.task.plan.tile >= samples


def _apart(f, x: PyTree, params: Params, job: Job) -> KernelAndGradient:
    moving = Moving(params, Request())
    outputs, pullback = jax.vjp(lambda leaves: f(moving.merge(leaves), x), moving.leaves)
    return KernelAndGradient(
        outputs, compute(job)["ntk"], lambda cotangents: _with_zeros(pullback(cotangents)[0], params)
    )


def _shared(job: Job, params: Params) -> KernelAndGradient:
    task = job.task
    opened = open_tile(task.net1, task.leaves, job.x1)
    scanned = task.plan.scan_outputs
    units = None if scanned else sides(task.net1, opened, unit_cotangents(task.net1, task.axes))
    raw = from_opened(task, opened, None, units)["ntk"]
    kernel = arrange(jnp.transpose(raw, (0, 2, 1, 4, 3)), *job.shapes, job.axes)

    def pull(cotangents: Array) -> Params:
        if units is None:
            one = sides(task.net1, opened, cotangents[None, None, None])
            coefficients = jnp.ones((1, 1, 1, cotangents.shape[0]), cotangents.dtype)
            return _gradient(task, one, coefficients, params)
        return _gradient(task, units, _coefficients(cotangents, task.axes), params)

    return KernelAndGradient(opened.outputs, kernel / traced_size(job.shapes[0], job.axes), pull)


def _coefficients(cotangents: Array, axes: OutputAxes) -> Array:
    """``[n, *output]`` as coefficients ``[t, d, f, n]`` of the unit cotangents."""
    order = [axis + 1 for roles in axes for axis in roles]
    sizes = [math.prod(cotangents.shape[axis + 1] for axis in roles) for roles in axes]
    return jnp.reshape(jnp.transpose(cotangents, (*order, 0)), (*sizes, cotangents.shape[0]))


def _gradient(task: Task, found: list[Side], coefficients: Array, params: Params) -> Params:
    total: list[Any] = [None] * task.net1.num_leaves
    for block, side in zip(task.net1.blocks, found, strict=True):
        part = _block_gradient(task, block, side, coefficients)
        total[block.leaf] = part if total[block.leaf] is None else total[block.leaf] + part
    given = [jnp.zeros_like(leaf) if part is None else part for part, leaf in zip(total, task.leaves, strict=True)]
    return _with_zeros(given, params)


def _with_zeros(gradients: list[Array], params: Params) -> Params:
    """Gradients of the floating leaves, zeros for the others."""
    return Moving(jax.tree.map(jnp.zeros_like, params), Request()).merge(gradients)


def _block_gradient(task: Task, block: Block, side: Side, coefficients: Array) -> Array:
    leaf = task.leaves[block.leaf]
    if side.straight is None:
        assert side.gradients is not None
        return jnp.reshape(jnp.einsum("tdfn,tdfnw->w", coefficients, side.gradients), leaf.shape)
    site = task.net1.known.sites[block.sites[0]]
    gradient = contract.summed_gradient(side.straight, site.rows, coefficients)
    if side.turned is not None:
        gradient = gradient + contract.summed_gradient(side.turned, site.width, coefficients, turned=True)
    order = (*site.group_axes, *site.row_axes, *site.column_axes)
    split = jnp.reshape(gradient, [site.sizes[axis] for axis in order])
    arranged = jnp.transpose(split, sorted(range(len(order)), key=order.__getitem__))
    (whole,) = jax.linear_transpose(lambda array: rearrange(site.base, array), leaf)(arranged.astype(leaf.dtype))
    return whole
