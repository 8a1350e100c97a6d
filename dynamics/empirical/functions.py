"""neural-tangents' empirical kernels: same names, arguments, axes and normalisation."""

from __future__ import annotations

import collections
import enum
import functools
from collections.abc import Callable
from typing import Any

import jax

from dynamics.empirical.axes import arrange, check_shapes, output_axes, traced_size
from dynamics.empirical.dispatch import Axes, Moving, Parts, Request, check_real, ntk_parts, ntk_plans
from dynamics.empirical.tile_plan import DEFAULT_BUDGET
from dynamics.precision import full_precision
from dynamics.program.forward import pushed
from dynamics.types import Array, Params, PyTree


class NtkImplementation(enum.IntEnum):
    """neural-tangents' choice of method; accepted everywhere and never changing the numbers."""

    AUTO = 0
    JACOBIAN_CONTRACTION = 1
    NTK_VECTOR_PRODUCTS = 2
    STRUCTURED_DERIVATIVES = 3


@functools.cache
def record_of(name: str, fields: tuple[str, ...]) -> type:
    """A namedtuple class, the same one for the same arguments (pytrees compare classes)."""
    return collections.namedtuple(name, fields)


EmpiricalKernel = record_of("EmpiricalKernel", ("nngp", "ntk"))


@full_precision
def empirical_ntk_fn(
    f: Callable[..., PyTree],
    trace_axes: Axes = (-1,),
    diagonal_axes: Axes = (),
    vmap_axes: Any = None,
    implementation: NtkImplementation | int = NtkImplementation.AUTO,
    *,
    memory: int = DEFAULT_BUDGET,
    mixing: str = "refuse",
) -> Callable[..., PyTree]:
    """The neural tangent kernel ``Theta(x1, x2) = J(x1) J(x2)^T``, ``J = df/dparams``, at finite width.

    Args:
        f: ``(params, x, **kwargs) -> output``, pure; any pytrees.
        trace_axes: output axes averaged over along the diagonal (absent from the result).
        diagonal_axes: output axes of which only the diagonal is kept (once in the result).
        vmap_axes, implementation: accepted for neural-tangents' sake; the batch axis and the method are inferred.
        memory: budget for temporaries in bytes (the kernel itself not counted): larger kernels are cut into tiles.
        mixing: 'refuse' raises for a function whose outputs depend on other samples of the batch; 'exact' takes the
            derivative of the whole batch.

    Returns:
        ``ntk_fn(x1, x2, params, **kwargs)``: for each output its kernel, whose shape walks through the output's axes:
        a traced one is absent, a diagonal one appears once, any other twice in a row. ``x2=None`` means ``x1``. With
        the defaults and ``f [n, c]`` the kernel is ``[n1, n2]``, the mean over outputs.

    Raises:
        ValueError: at the call, for a function that mixes its batch, axes that do not fit its output, or complex or
            integer outputs (a complex leaf counts as two real ones, integer and boolean leaves are constants); before
            anything is allocated, when kernel and temporaries by estimate exceed the
            free memory of all devices together: it says how many samples fit.

    Exact for any pure ``f``: where parameters meet data in a product, convolution or lookup (inside ``jit``,
    ``jax.checkpoint`` and ``scan`` too) the kernel is contracted from Grams of inputs and cotangents, or from gradients
    where a count of FLOPs and bytes says so; any other use of a leaf is differentiated directly. A ``custom_vjp`` is
    taken at its word, and to act on each sample alone.

    Cost: for a dense layer of a inputs and b outputs at p positions, the smaller of ``2 n^2 p^2 (a + c b)`` and
    ``2 n^2 c a b`` FLOPs for the trace over c outputs; see ``empirical_ntk_plan``.

    Reference: Jacot, Gabriel & Hongler 2018; axes as in Novak, Sohl-Dickstein & Schoenholz 2022.

    Example:
        >>> import jax.numpy as jnp
        >>> ntk_fn = empirical_ntk_fn(lambda w, x: x @ w)
        >>> ntk_fn(jnp.eye(2), None, jnp.ones((2, 1))).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    if implementation not in list(NtkImplementation):
        raise ValueError(f"implementation: got {implementation!r}; allowed: {[*map(int, NtkImplementation)]}")
    request = Request(trace_axes=trace_axes, diagonal_axes=diagonal_axes, memory=memory, mixing=mixing)

    def ntk_fn(x1: PyTree, x2: PyTree | None, params: Params, **kwargs: Any) -> PyTree:
        kwargs1, kwargs2 = _split_kwargs(kwargs, x1, x2)
        f1, x1 = _bound(f, x1, kwargs1)
        f2, x2 = _bound(f, x2, kwargs2) if kwargs else (f1, x2)
        parts = ntk_parts(f1, f2, x1, None if _absent(x2) else x2, params, request)
        return jax.tree.map(lambda part: part.kernels["ntk"], parts, is_leaf=lambda node: isinstance(node, Parts))

    return ntk_fn


def empirical_ntk_plan(
    f: Callable[..., PyTree],
    x1: PyTree,
    x2: PyTree | None,
    params: Params,
    trace_axes: Axes = (-1,),
    diagonal_axes: Axes = (),
    *,
    memory: int = DEFAULT_BUDGET,
    mixing: str = "refuse",
) -> Any:
    """What the kernel will cost and how it will be cut, from shapes alone; nothing is computed.

    Args:
        f, trace_axes, diagonal_axes, memory, mixing: as ``empirical_ntk_fn``.
        x1, x2, params: arrays or ``jax.ShapeDtypeStruct``.

    Returns:
        A ``Plan`` (a pytree of them when ``f`` has several outputs) with ``flops``, ``bytes`` (temporaries, the kernel
        itself not counted), the tile size and the path of each block of parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> empirical_ntk_plan(lambda w, x: x @ w, jnp.eye(2), None, jnp.ones((2, 1))).tile
        2
    """
    return ntk_plans(f, f, x1, x2, params, Request(trace_axes, diagonal_axes, memory=memory, mixing=mixing))


@full_precision
def empirical_nngp_fn(
    f: Callable[..., PyTree], trace_axes: Axes = (-1,), diagonal_axes: Axes = ()
) -> Callable[..., PyTree]:
    """The kernel of the outputs, ``f(x1) f(x2)^T``, averaged over ``trace_axes``; arguments as ``empirical_ntk_fn``.

    Example:
        >>> import jax.numpy as jnp
        >>> nngp_fn = empirical_nngp_fn(lambda w, x: x @ w)
        >>> nngp_fn(jnp.eye(2), None, 2.0 * jnp.ones((2, 4))).tolist()
        [[4.0, 4.0], [4.0, 4.0]]
    """

    def nngp_fn(x1: PyTree, x2: PyTree | None, params: Params, **kwargs: Any) -> PyTree:
        kwargs1, kwargs2 = _split_kwargs(kwargs, x1, x2)
        outputs1 = f(params, x1, **kwargs1)
        outputs2 = outputs1 if _absent(x2) else f(params, x2, **kwargs2)

        def contract(output1: Array, output2: Array) -> Array:
            check_real(output1)
            axes = output_axes(output1.ndim, trace_axes, diagonal_axes)
            check_shapes(output1.shape, output2.shape, axes)
            dims = ((axes.trace, axes.trace), (axes.diagonal, axes.diagonal))
            kernel = jax.lax.dot_general(output1, output2, dims)
            return arrange(kernel, output1.shape, output2.shape, axes) / traced_size(output1.shape, axes)

        return jax.tree.map(contract, outputs1, outputs2)

    return nngp_fn


@full_precision
def empirical_kernel_fn(
    f: Callable[..., PyTree],
    trace_axes: Axes = (-1,),
    diagonal_axes: Axes = (),
    vmap_axes: Any = None,
    implementation: NtkImplementation | int = NtkImplementation.AUTO,
    *,
    memory: int = DEFAULT_BUDGET,
    mixing: str = "refuse",
) -> Callable[..., Any]:
    """NNGP and NTK by one function: ``kernel_fn(x1, x2, get, params, **kwargs)``.

    ``get`` is 'nngp', 'ntk' (the kernel itself), a tuple of them or None for both (an ``EmpiricalKernel`` with these
    fields in this order; a pytree of them when ``f`` has several outputs). Other arguments as ``empirical_ntk_fn``.
    """
    kernel_fns = {
        "nngp": empirical_nngp_fn(f, trace_axes, diagonal_axes),
        "ntk": empirical_ntk_fn(f, trace_axes, diagonal_axes, vmap_axes, implementation, memory=memory, mixing=mixing),
    }

    def kernel_fn(x1: PyTree, x2: PyTree | None, get: str | tuple[str, ...] | None, params: Params, **kwargs: Any):
        wanted = (get,) if isinstance(get, str) else ("nngp", "ntk") if get is None else tuple(get)
        wanted = tuple(name.lower() if isinstance(name, str) else name for name in wanted)
        if not set(wanted) <= set(kernel_fns):
            raise ValueError(f"get: got {get!r}; allowed: 'nngp', 'ntk', a tuple of them, or None")
        kernels = {name: kernel_fns[name](x1, x2, params, **kwargs) for name in wanted}
        if isinstance(get, str):
            return kernels[wanted[0]]
        return jax.tree.map(record_of("EmpiricalKernel", tuple(kernels)), *kernels.values())

    return kernel_fn


@full_precision
def empirical_ntk_vp_fn(
    f: Callable[..., PyTree], x1: PyTree, x2: PyTree | None, params: Params, **kwargs: Any
) -> Callable[[PyTree], PyTree]:
    """The product ``v -> J(x1) J(x2)^T v`` without the kernel: one vjp and one jvp.

    Args:
        f: ``(params, x, **kwargs) -> output``.
        x1, x2: inputs; ``x2=None`` means ``x1``.
        params: where the Jacobians are taken.

    Returns:
        A function from cotangents shaped as ``f(params, x2)`` to a tangent shaped as ``f(params, x1)``. No trace and no
        normalisation: entries are those of ``empirical_ntk_fn(f, trace_axes=())``.

    Example:
        >>> import jax.numpy as jnp
        >>> product = empirical_ntk_vp_fn(lambda w, x: x @ w, 2.0 * jnp.eye(2), None, jnp.ones((2, 1)))
        >>> product(jnp.ones((2, 1))).ravel().tolist()
        [4.0, 4.0]
    """
    kwargs1, kwargs2 = _split_kwargs(kwargs, x1, x2)
    moving = Moving(params, Request())

    def f1(leaves):
        outputs = f(moving.merge(leaves), x1, **kwargs1)
        jax.tree.map(check_real, outputs)
        return outputs

    def f2(leaves):
        return f1(leaves) if _absent(x2) else f(moving.merge(leaves), x2, **kwargs2)

    def product(cotangents: PyTree) -> PyTree:
        (direction,) = jax.vjp(f2, moving.leaves)[1](cotangents)
        return pushed(f1, moving.leaves, direction)[1]

    return product


def _bound(f: Callable[..., PyTree], x: PyTree, kwargs: dict[str, Any]) -> tuple[Callable[..., PyTree], PyTree]:
    """``f`` with its keyword arguments, and the inputs; each sample's graph (``pattern``) goes with the inputs."""
    pattern = kwargs.get("pattern")
    if pattern is None or _absent(x):
        return lambda params, x: f(params, x, **kwargs), x
    fixed = {name: value for name, value in kwargs.items() if name != "pattern"}
    return lambda params, x: f(params, x[0], pattern=x[1], **fixed), (x, pattern)


def _absent(x: PyTree | None) -> bool:
    return not jax.tree.leaves(x)


def _split_kwargs(kwargs: dict[str, Any], x1: PyTree, x2: PyTree | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """neural-tangents' rule: a 2-tuple is one value for each side; ``rng`` differs between sides unless x1 is x2."""
    kwargs1, kwargs2 = dict(kwargs), dict(kwargs)
    for name, value in kwargs.items():
        if isinstance(value, tuple):
            if len(value) == 2:
                kwargs1[name], kwargs2[name] = value
        elif name == "rng" and value is not None and not _absent(x2):
            kwargs2[name] = jax.random.fold_in(value, 1)
    return kwargs1, kwargs2
