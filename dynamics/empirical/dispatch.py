"""From a function and two batches to its kernel: choose the structure, plan, compute, put the axes in order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from dynamics.empirical.axes import OutputAxes, arrange, check_shapes, output_axes, traced_size
from dynamics.empirical.one_tile import Network, alike, network
from dynamics.empirical.tile_plan import DEFAULT_BUDGET, Plan, make_plan
from dynamics.empirical.tiles import Task, diagonal_kernel, pairs_kernel, work_of
from dynamics.mesh import free_bytes
from dynamics.program import real_view
from dynamics.program.sample_axis import splits_into_samples
from dynamics.types import Array, Params, PyTree

Axes = int | Sequence[int]


class Request(NamedTuple):
    """What kernel is wanted.

    Attributes:
        trace_axes, diagonal_axes: see ``empirical_ntk_fn``.
        group: path of a leaf, as ``a/0/kernel``, -> name of the part it belongs to, or None to leave it out.
        weights: None, or a pytree like the parameters: the kernel is then ``J diag(weights) J^T``.
        memory: budget for temporaries, bytes.
        mixing: 'refuse' or 'exact': what to do with a function that mixes the samples of its batch.
    """

    trace_axes: Axes = (-1,)
    diagonal_axes: Axes = ()
    group: Callable[[str], str | None] = lambda path: "ntk"
    weights: PyTree | None = None
    memory: int = DEFAULT_BUDGET
    mixing: str = "refuse"


class Parts(NamedTuple):
    """The kernel of one output by parts of the parameters."""

    kernels: dict[str, Array]


class Side(NamedTuple):
    """One side of a kernel: the function of parameters and inputs, its inputs and its outputs' shapes."""

    f: Callable[[Params, PyTree], PyTree]
    x: PyTree
    outputs: PyTree


class Job(NamedTuple):
    """The kernel of one output: a task, its samples, and the axes of the result."""

    task: Task
    x1: PyTree
    x2: PyTree | None
    axes: OutputAxes
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    by_sample: bool
    parts: tuple[str, ...]

    @property
    def result_bytes(self) -> float:
        """All parts of the kernel, once."""
        one, two = self.shapes
        entries = math.prod(one[a] * two[a] for a in self.axes.full) * math.prod(one[a] for a in self.axes.diagonal)
        return float(entries * self.task.net1.output.dtype.itemsize * len(set(self.task.groups)))


def ntk_parts(
    f1: Callable[[Params, PyTree], PyTree],
    f2: Callable[[Params, PyTree], PyTree],
    x1: PyTree,
    x2: PyTree | None,
    params: Params,
    request: Request,
) -> PyTree:
    """The NTK by parts of the parameters: a pytree like the output, of ``Parts``."""
    if not jax.tree.leaves(params):
        return _no_parameters(f1, f2, x1, x2, params, request)
    structure, jobs = ntk_jobs(f1, f2, x1, x2, params, request)
    _check_room(jobs, free_bytes())
    return jax.tree.unflatten(structure, [Parts(compute(job)) for job in jobs])


def _no_parameters(f1, f2, x1, x2, params, request: Request) -> PyTree:
    """Kernels of a function without parameters: zeros."""
    one = jax.eval_shape(f1, params, x1)
    two = jax.eval_shape(f2, params, x2) if jax.tree.leaves(x2) else one

    def zero(out1, out2):
        axes = output_axes(len(out1.shape), request.trace_axes, request.diagonal_axes)
        return Parts({"ntk": jnp.zeros(_kernel_shape(out1.shape, out2.shape, axes), out1.dtype)})

    return jax.tree.map(zero, one, two)


def _kernel_shape(one: Sequence[int], two: Sequence[int], axes: OutputAxes) -> list[int]:
    """Shape of a kernel of outputs ``one`` and ``two``, in the public order of axes."""
    sizes = [[] if a in axes.trace else [n] if a in axes.diagonal else [n, two[a]] for a, n in enumerate(one)]
    return [n for size in sizes for n in size]


def _check_room(jobs: Sequence[Job], limit: float) -> None:
    """Refuses kernels that the free memory cannot hold, before anything is allocated."""
    results = sum(job.result_bytes for job in jobs)
    need = results + max((job.task.plan.bytes for job in jobs), default=0)
    if need <= limit:
        return
    n, m = (shape[0] if shape else 1 for shape in jobs[0].shapes)
    share = max(0.0, limit - (need - results)) / max(results, 1.0)
    fit = int(math.sqrt(share) * n) if jobs[0].x2 is None else int(share * n)
    raise ValueError(
        f"x1, x2: got {n} and {m} samples, whose kernel takes {results / 2**30:.3g} GiB and its temporaries "
        f"{(need - results) / 2**30:.3g} GiB by estimate; allowed: what fits in the {limit / 2**30:.3g} GiB that are "
        f"free, at most {fit} samples of x1 at once. diagonal_axes=0 keeps the diagonal alone; ntk_operator needs no "
        "kernel"
    )


def ntk_plans(f1, f2, x1, x2, params, request: Request) -> PyTree:
    """The plan of each output's kernel; nothing is computed."""
    structure, jobs = ntk_jobs(f1, f2, x1, x2, params, request)
    return jax.tree.unflatten(structure, [job.task.plan for job in jobs])


def ntk_jobs(f1, f2, x1, x2, params, request: Request) -> tuple[Any, list[Job]]:
    """The structure of the output, and a job for each array in it."""
    if not isinstance(request.memory, int | float) or not request.memory > 0:
        raise ValueError(f"memory: got {request.memory!r}; allowed: a number of bytes > 0")
    x2 = x2 if jax.tree.leaves(x2) else None
    one = Side(f1, x1, jax.eval_shape(f1, params, x1))
    two = one if x2 is None else Side(f2, x2, jax.eval_shape(f2, params, x2))
    by_sample = all(splits_into_samples(side.f, params, side.x, request.mixing) for side in (one, two))
    count = len(jax.tree.leaves(one.outputs))
    jobs = [_job(one, two, x2 is None, index, params, request, by_sample) for index in range(count)]
    return jax.tree.structure(one.outputs), jobs


def _job(one: Side, two: Side, symmetric: bool, index: int, params: Params, request: Request, by_sample: bool) -> Job:
    shapes = (jax.tree.leaves(one.outputs)[index].shape, jax.tree.leaves(two.outputs)[index].shape)
    check_real(jax.tree.leaves(one.outputs)[index])
    axes = output_axes(len(shapes[0]), request.trace_axes, request.diagonal_axes)
    check_shapes(shapes[0], shapes[1], axes)
    moving = Moving(params, request)
    inner = _sample_axes(axes) if by_sample else axes
    net1 = _network(one, index, moving, by_sample, force=False)
    net2 = net1 if symmetric or (one.f is two.f and _same_samples(one.x, two.x, by_sample)) else None
    if net2 is None:
        net2 = _network(two, index, moving, by_sample, force=False)
        if not alike(net1, net2):
            net1, net2 = (_network(side, index, moving, by_sample, force=True) for side in (one, two))
    x1, x2 = (side.x if by_sample else jax.tree.map(lambda leaf: leaf[None], side.x) for side in (one, two))
    paired = by_sample and 0 not in axes.full
    n, m = (1, 1) if paired else (jax.tree.leaves(x)[0].shape[0] for x in (x1, x2))
    work = work_of(net1, net2, n, m, inner)
    plan = make_plan(net1, net2, work, request.memory, symmetric=symmetric, weighted=moving.weights is not None)
    if paired:
        plan = plan._replace(tile=max(1, int(request.memory // max(plan.bytes, 1))))
    groups = [moving.groups[block.leaf] for block in net1.blocks]
    task = Task(net1, net2, moving.leaves, inner, groups, moving.weights, plan)
    return Job(task, x1, None if symmetric else x2, axes, shapes, by_sample, tuple(dict.fromkeys(moving.groups)))


def check_real(output: Any) -> None:
    """Raises ValueError unless an output, array or shape, is floating."""
    if not jnp.issubdtype(output.dtype, jnp.floating):
        raise ValueError(f"f: got an output of dtype {output.dtype}; allowed: real floating outputs")


def compute(job: Job) -> dict[str, Shaped[Array, ...]]:
    """The job's kernel by parts, in the public order of axes."""
    paired = job.by_sample and 0 not in job.axes.full
    raw = (diagonal_kernel if paired else pairs_kernel)(job.task, job.x1, job.x2)
    kernels = {}
    for name, kernel in raw.items():
        if not paired:  # [d, f, n, h, m]; the sample axis is the first of the output's axes
            kernel = jnp.transpose(kernel, (0, 2, 1, 4, 3))
        elif 0 in job.axes.trace:  # [n, d, f, h]
            kernel = jnp.sum(kernel, 0)
        kernels[name] = arrange(kernel, *job.shapes, job.axes) / traced_size(job.shapes[0], job.axes)
    for name in job.parts:
        if name not in kernels:  # the output does not depend on it
            kernels[name] = jnp.zeros(_kernel_shape(*job.shapes, job.axes), job.task.net1.output.dtype)
    return kernels


class Moving:
    """The parameter leaves that the kernel sums over, their parts and weights; all others are constants.

    Attributes:
        leaves: the chosen floating leaves; the real and the imaginary part of a complex one are two.
        groups: the part of each.
        weights: the weight of each, or None.
    """

    def __init__(self, params: Params, request: Request):
        flat, self.structure = jax.tree.flatten_with_path(params)
        names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
        self.all = [leaf for _, leaf in flat]
        parts = [request.group(name) for name in names]
        chosen = [
            place
            for place, leaf in enumerate(self.all)
            if parts[place] is not None and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
        ]
        if not chosen:
            raise ValueError(f"params: got leaves {names}; allowed: at least one chosen leaf of floating dtype")
        self.chosen = chosen
        halves = [real_view.split(jnp.asarray(self.all[place])) for place in chosen]
        self.ends = np.cumsum([len(half) for half in halves]).tolist()
        self.leaves = [part for half in halves for part in half]
        self.groups = [str(parts[place]) for place, half in zip(chosen, halves) for _ in half]
        self.weights = None
        if request.weights is not None:
            listed = jax.tree.leaves(request.weights)
            if [jnp.shape(weight) for weight in listed] != [jnp.shape(leaf) for leaf in self.all]:
                raise ValueError("weights: got a pytree unlike the parameters; allowed: one array a leaf, of its shape")
            weights = [real_view.split(listed[place]) for place in chosen]  # a real one counts for both parts
            self.weights = [w for own, half in zip(weights, halves) for w in (own * len(half))[: len(half)]]

    def merge(self, leaves: Sequence[Shaped[Array, ...]]) -> Params:
        merged = list(self.all)
        for place, start, end in zip(self.chosen, (0, *self.ends), self.ends):
            merged[place] = real_view.merge(leaves[start:end])
        return jax.tree.unflatten(self.structure, merged)


def _network(side: Side, index: int, moving: Moving, by_sample: bool, *, force: bool) -> Network:
    def one_sample(params: Params, sample: PyTree) -> Array:
        if not by_sample:
            return jax.tree.leaves(side.f(params, sample))[index]
        batch = jax.tree.map(lambda leaf: leaf[None], sample)
        output = jax.tree.leaves(side.f(params, batch))[index]
        return jnp.reshape(output, jax.tree.leaves(side.outputs)[index].shape[1:])

    def shape(leaf: Any):
        return jax.ShapeDtypeStruct(leaf.shape[1:] if by_sample else leaf.shape, leaf.dtype)

    return network(one_sample, moving.leaves, moving.merge, jax.tree.map(shape, side.x), structured=not force)


def _sample_axes(axes: OutputAxes) -> OutputAxes:
    return OutputAxes(*(tuple(axis - 1 for axis in roles if axis) for roles in axes))


def _same_samples(x1: PyTree, x2: PyTree, by_sample: bool) -> bool:
    described = [[(leaf.shape[by_sample:], leaf.dtype) for leaf in jax.tree.leaves(x)] for x in (x1, x2)]
    return described[0] == described[1]


__all__ = ["Job", "Moving", "Plan", "Request", "compute", "ntk_jobs", "ntk_parts", "ntk_plans"]
