"""The Kernel: what the infinite-width limit carries from layer to layer.

A covariance ``k = s1 s2 cos`` of two preactivations with standard deviations ``s1, s2`` is stored as its
Cauchy-Schwarz gap ``g = s1 s2 - k = s1 s2 (1 - cos) >= 0``. Where two inputs nearly coincide ``cos`` rounds to 1, but
``g`` keeps its digits, and every layer maps gaps to gaps without subtracting nearly equal numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.types import Array

_STATIC = (
    "x1_is_x2",
    "is_gaussian",
    "is_reversed",
    "is_input",
    "diagonal_batch",
    "diagonal_spatial",
    "shape1",
    "shape2",
    "batch_axis",
    "channel_axis",
)
_LEAVES = ("gap", "ntk", "var1", "var2", "within1", "within2", "mask1", "mask2")


class _Named(type):
    """``Kernel(nngp=..., cov1=..., ...)``: neural-tangents' names in place of the stored gaps and variances."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return _from_names(**kwargs) if "nngp" in kwargs else super().__call__(*args, **kwargs)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kernel(metaclass=_Named):
    """Covariances of the outputs of an infinitely wide layer; a pytree.

    With ``n1`` and ``n2`` inputs and spatial axes of sizes ``S = (h, w, ...)``, a full spatial covariance has axes
    ``(h, h, w, w, ...)`` (first the position in ``x1``, then in ``x2``), a diagonal one ``(h, w, ...)``.

    Attributes:
        gap: ``[n1, n2, ...]`` ``s1 s2 - nngp``, zero where two outputs coincide.
        ntk: ``[n1, n2, ...]`` neural tangent kernel, or None where it was not asked for.
        var1, var2: ``[n1, *S]``, ``[n2, *S]`` variances; ``var2`` is None when ``x2`` is ``x1``.
        within1, within2: ``[n1, h, h, w, w, ...]`` gaps between the positions of one input; None when
            ``diagonal_spatial``.
        mask1, mask2: masked positions of the inputs, or None.
        shape1, shape2: shapes of the layer's finite-width outputs.
        batch_axis, channel_axis: axes of those outputs.
        diagonal_spatial: whether only equal positions of ``x1`` and ``x2`` are kept.
        paired: whether ``gap`` and ``ntk`` are ``[n (n + 1) / 2, 1, ...]``, the pairs ``i <= j`` only (while layers
            are applied; never in what ``kernel_fn`` returns).
        x1_is_x2: whether ``x2`` was None. is_gaussian: whether the outputs are Gaussian (after a weight layer).
    """

    gap: Any
    ntk: Any
    var1: Any
    var2: Any = None
    within1: Any = None
    within2: Any = None
    mask1: Any = None
    mask2: Any = None
    x1_is_x2: bool = dataclasses.field(default=False, metadata=dict(static=True))
    is_gaussian: bool = dataclasses.field(default=False, metadata=dict(static=True))
    is_reversed: bool = dataclasses.field(default=False, metadata=dict(static=True))
    is_input: bool = dataclasses.field(default=False, metadata=dict(static=True))
    diagonal_batch: bool = dataclasses.field(default=True, metadata=dict(static=True))
    diagonal_spatial: bool = dataclasses.field(default=False, metadata=dict(static=True))
    shape1: tuple[int, ...] = dataclasses.field(default=(), metadata=dict(static=True))
    shape2: tuple[int, ...] = dataclasses.field(default=(), metadata=dict(static=True))
    batch_axis: int = dataclasses.field(default=0, metadata=dict(static=True))
    channel_axis: int = dataclasses.field(default=-1, metadata=dict(static=True))
    paired: bool = dataclasses.field(default=False, metadata=dict(static=True))

    @property
    def nngp(self) -> Array:
        """``[n1, n2, ...]`` covariance of the outputs."""
        row, column = self.sides(*deviations(self))
        return row * column - self.gap

    @property
    def cov1(self) -> Array:
        """``[n1, ...]`` covariance of each ``x1`` output with itself."""
        return self._within(self.var1, self.within1)

    @property
    def cov2(self) -> Array | None:
        """``[n2, ...]`` covariance of each ``x2`` output with itself, None when ``x2`` is ``x1``."""
        return None if self.var2 is None else self._within(self.var2, self.within2)

    def _within(self, var: Array, within: Array | None) -> Array:
        if self.diagonal_spatial or within is None:
            return var
        row, column = within_sides(safe_sqrt(var))
        return row * column - within

    def other(self, one: Any, two: Any) -> Any:
        """``two``, or ``one`` when ``x2`` is ``x1``."""
        return one if self.x1_is_x2 else two

    def sides(self, one: Array, two: Array) -> tuple[Array, Array]:
        """Quantities ``[n1, *S]`` and ``[n2, *S]`` shaped to broadcast against ``gap``."""
        row, column = (one, two) if self.diagonal_spatial else (_interleave(one), _interleave(two, column=True))
        if self.paired:
            first, second = pair_indices(self.var1.shape[0])
            return _rows(row, first)[:, None], _rows(column, second)[:, None]
        return row[:, None], column[None, :]

    @property
    def spatial_ndim(self) -> int:
        """Number of spatial axes of the outputs."""
        return self.var1.ndim - 1

    def replace(self, **changes: Any) -> Kernel:
        """A copy with some attributes changed; ``nngp``, ``cov1`` and ``cov2`` too, in the precision of covariances."""
        given = {name: changes.pop(name) for name in ("nngp", "cov1", "cov2") if name in changes}
        if not given:
            return dataclasses.replace(self, **changes)
        if self.paired:
            raise ValueError("nngp, cov1 and cov2 cannot be replaced in a paired Kernel: replace gap, var1 and within1")
        covariances = [given.get(name, getattr(self, name)) for name in ("nngp", "ntk", "cov1", "cov2")]
        new = kernel_from_covariances(*covariances, diagonal_spatial=self.diagonal_spatial)
        stored = {name: getattr(new, name) for name in ("gap", "var1", "var2", "within1", "within2")}
        return dataclasses.replace(self, **{**stored, **changes})

    def asdict(self) -> dict[str, Any]:
        """The attributes of neural-tangents' Kernel by name."""
        return {name: getattr(self, name) for name in ("nngp", "ntk", "cov1", "cov2", *_STATIC, "mask1", "mask2")}

    def astuple(self) -> tuple[Any, ...]:
        """The attributes of neural-tangents' Kernel in its order."""
        return tuple(self.asdict().values())

    def select(self, get: str) -> Any:
        """The attribute ``get`` by name."""
        return getattr(self, check_name(get))

    def slice(self, n1_slice: Any, n2_slice: Any) -> Kernel:
        """The Kernel of ``x1[n1_slice]`` and ``x2[n2_slice]``; slices or index arrays."""
        same = self.x1_is_x2 and isinstance(n1_slice, slice) and n1_slice == n2_slice

        def pairs(x):
            return where_kept(lambda x: x[n1_slice][:, n2_slice], x)

        def second(one, two):
            return None if same else where_kept(lambda x: x[n2_slice], self.other(one, two))

        var1, var2 = self.var1[n1_slice], second(self.var1, self.var2)
        counts = var1.shape[0], (var1 if var2 is None else var2).shape[0]
        shapes = [
            (*shape[: self.batch_axis], count, *shape[self.batch_axis + 1 :])
            for shape, count in zip((self.shape1, self.shape2), counts, strict=True)
        ]
        return dataclasses.replace(
            self,
            gap=pairs(self.gap),
            ntk=pairs(self.ntk),
            var1=var1,
            var2=var2,
            within1=where_kept(lambda x: x[n1_slice], self.within1),
            within2=second(self.within1, self.within2),
            x1_is_x2=same,
            shape1=shapes[0],
            shape2=shapes[1],
        )

    def transpose(self, axes: Sequence[int] | None = None) -> Kernel:
        """Spatial axes reordered: axis ``i`` of the result is axis ``axes[i]``; ``shape1`` and ``shape2`` stay."""
        order = range(self.spatial_ndim) if axes is None else [a % self.spatial_ndim for a in axes]
        return transpose_spatial(self, list(order))

    def __mul__(self, factor: Any) -> Kernel:
        """The Kernel of outputs times ``factor``."""
        square = factor**2
        leaves = {name: where_kept(lambda x: square * x, getattr(self, name)) for name in _COVARIANCES}
        return dataclasses.replace(self, **leaves)

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> Kernel:
        return self * (1 / divisor)

    def __getattr__(self, name: str) -> Any:
        if name in _REFUSED:
            raise AttributeError(f"Kernel has no {name}: {_REFUSED[name]}")
        raise AttributeError(f"Kernel has no attribute {name!r}; it has {', '.join(PUBLIC)}")


_COVARIANCES = ("gap", "ntk", "var1", "var2", "within1", "within2")
_REFUSED = {
    "reverse": "spatial axes are always in the order of the inputs (is_reversed is False)",
    "dot_general": "apply the linear map to the inputs before the network",
    "mask": "masks are not offered; zero the masked entries of the inputs (biases still reach them)",
}
PUBLIC = ("nngp", "ntk", "cov1", "cov2", *_LEAVES[:1], *_LEAVES[2:], *_STATIC)


def check_name(name: Any) -> str:
    """``name``, after checking that a Kernel has it."""
    if name not in PUBLIC:
        raise ValueError(f"get must name an attribute of Kernel ({', '.join(PUBLIC)}), got {name!r}")
    return name


def where_kept(fn: Callable[..., Any], *arrays: Any) -> Any:
    """``fn(*arrays)``, or None where the first array is None: the rule of a Kernel's optional attributes."""
    return None if arrays[0] is None else fn(*arrays)


def channels(k: Kernel) -> int:
    """Number of channels of a layer's input."""
    if k.channel_axis >= len(k.shape1):
        raise ValueError(f"tokens of shape {k.shape1} have no channel axis: put Embedding before the other layers")
    return k.shape1[k.channel_axis]


def safe_sqrt(x: Array) -> Array:
    """``sqrt(max(x, 0))`` whose derivative at 0 is 0, so that gradients at coincident points stay finite.

    The compiler may round ``x`` differently where it is compared and where it is used, so what stands in for a
    non-positive ``x`` is itself negligible: ``sqrt`` of the root of the smallest normal number.
    """
    negligible = float(jnp.finfo(x.dtype).tiny) ** 0.5
    return jnp.where(x > 0, jnp.sqrt(jnp.maximum(x, negligible)), 0)


def safe_reciprocal(x: Array) -> Array:
    """``1 / x``, and 0 where ``x`` is 0."""
    nonzero = x != 0
    return jnp.where(nonzero, 1 / jnp.where(nonzero, x, 1), 0)


@jax.custom_jvp
def root(x: Array) -> Array:
    """``safe_sqrt`` for quantities of one input rather than of a pair.

    Its last operation is the square root, so XLA stores the result; what follows one it computes again for every pair.
    """
    return jnp.sqrt(jnp.maximum(x, 0))


@root.defjvp
def _(primals, tangents):
    y = root(primals[0])
    return y, 0.5 * tangents[0] * safe_reciprocal(y)


class Deviations(NamedTuple):
    """Standard deviations of both inputs, ``[n1, *S]`` and ``[n2, *S]``."""

    one: Array
    two: Array


def deviations(k: Kernel) -> Deviations:
    """Standard deviations of a kernel's outputs."""
    one = root(k.var1)
    return Deviations(one, one if k.var2 is None else root(k.var2))


def pair_indices(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices ``i <= j`` of the pairs of ``n`` inputs."""
    return np.triu_indices(n)


def _rows(x: Array, index: np.ndarray) -> Array:
    return x if x.shape[0] == 1 else x[index]


def unpair(k: Kernel) -> Kernel:
    """A paired Kernel with all ``[n, n, ...]`` entries."""
    n = k.var1.shape[0]
    first, second = pair_indices(n)
    place = np.zeros((n, n), int)
    place[first, second] = place[second, first] = np.arange(len(first))
    below = np.tril(np.ones((n, n), bool), -1)

    def spread(x):
        if x is None:
            return None
        x = x[:, 0][place]
        if k.diagonal_spatial:
            return x
        pairs = [axis for i in range(2, x.ndim, 2) for axis in (i + 1, i)]
        return jnp.where(below.reshape(n, n, *[1] * (x.ndim - 2)), jnp.transpose(x, [0, 1, *pairs]), x)

    return dataclasses.replace(k, gap=spread(k.gap), ntk=spread(k.ntk), paired=False)


def _interleave(x: Array, column: bool = False) -> Array:
    """``[n, h, w]`` to ``[n, h, 1, w, 1]``, or ``[n, 1, h, 1, w]`` for the column side."""
    shape = [x.shape[0]]
    for size in x.shape[1:]:
        shape += [1, size] if column else [size, 1]
    return x.reshape(shape)


def within_sides(x: Array) -> tuple[Array, Array]:
    """``[n, *S]`` shaped to broadcast against a within-sample covariance ``[n, h, h, w, w, ...]``."""
    return _interleave(x), _interleave(x, column=True)


def own_sides(one: Array, two: Array) -> tuple[Array, Array]:
    """``one`` as rows and ``two`` as columns of a within-sample covariance."""
    return within_sides(one)[0], within_sides(two)[1]


class Rapidity(NamedTuple):
    """``e^(t/2)`` and ``e^(-t/2)`` up to a factor, for ``sqrt(A) s = sqrt(B) sinh t`` and ``s' = sqrt(B) cosh t``."""

    plus: Array
    minus: Array


def rapidity(var: Array, after: Array, scale: Any) -> Rapidity:
    """The rapidity of variances ``var`` that the map ``A q + B`` (``A = scale``) takes to deviations ``after``."""
    plus = root(after + root(scale * var))
    return Rapidity(plus, 1 / jnp.maximum(plus, 1e-9))


def affine_gap(gap: Array, scale: Any, shift: Any, plus: Sequence[Array], minus: Sequence[Array]) -> Array:
    """Gap of ``A k + B`` (``A = scale, B = shift >= 0``) without cancellation, from the sides' rapidities.

    ``s1' s2' - A s1 s2 - B = B (cosh(t1 - t2) - 1) = B (e^((t1 - t2) / 2) - e^((t2 - t1) / 2))^2 / 2``.
    With ``p = e^(t/2)`` the difference is ``(p1 - p2) (p1 + p2) / (p1 p2)``.
    """
    apart, together = plus[0] - plus[1], plus[0] + plus[1]
    # Exactly 0 at coincident points, however the compiler rounds each side: the angle has a square root of the gap.
    apart = jnp.where(jnp.abs(apart) > 4 * jnp.finfo(apart.dtype).eps * together, apart, 0)
    apart = apart * together * (minus[0] * minus[1])
    return scale * gap + 0.5 * shift * apart * apart


def diagonal_of(cov: Array) -> Array:
    """``[n, h, h, w, w, ...]`` to its diagonal ``[n, h, w, ...]``."""
    for axis in range(1, (cov.ndim - 1) // 2 + 1):
        cov = jnp.moveaxis(jnp.diagonal(cov, axis1=axis, axis2=axis + 1), -1, axis)
    return cov


def transpose_spatial(k: Kernel, order: Sequence[int]) -> Kernel:
    """Reorders the spatial axes: axis ``i`` of the result is axis ``order[i]`` of ``k``."""
    if list(order) == list(range(len(order))):
        return k

    def move(x: Any, start: int, full: bool):
        if x is None:
            return None
        axes = [start + 2 * i + side for i in order for side in (0, 1)] if full else [start + i for i in order]
        return jnp.transpose(x, [*range(start), *axes])

    full = not k.diagonal_spatial
    return k.replace(
        gap=move(k.gap, 2, full),
        ntk=move(k.ntk, 2, full),
        var1=move(k.var1, 1, False),
        var2=move(k.var2, 1, False),
        within1=move(k.within1, 1, True),
        within2=move(k.within2, 1, True),
    )


def kernel_from_covariances(nngp: Array, ntk, cov1: Array, cov2=None, *, diagonal_spatial: bool, **meta: Any) -> Kernel:
    """A Kernel from ``nngp [n1, n2, ...]``, ``ntk``, ``cov1 [n1, ...]`` and ``cov2`` (None when ``x2`` is ``x1``)."""
    diagonal = diagonal_spatial or cov1.ndim == 1
    var1 = cov1 if diagonal else diagonal_of(cov1)
    var2 = None if cov2 is None else cov2 if diagonal else diagonal_of(cov2)
    k = Kernel(nngp, ntk, var1, var2, x1_is_x2=cov2 is None, diagonal_spatial=diagonal, **meta)
    s1 = safe_sqrt(var1)
    row, column = k.sides(s1, k.other(s1, None if var2 is None else safe_sqrt(var2)))

    def within(cov, var):
        if diagonal or cov is None:
            return None
        one, two = within_sides(safe_sqrt(var))
        return jnp.maximum(one * two - cov, 0)

    gap = jnp.maximum(row * column - nngp, 0)
    return k.replace(gap=gap, within1=within(cov1, var1), within2=within(cov2, var2))


def _from_names(nngp, ntk=None, cov1=None, cov2=None, x1_is_x2=None, diagonal_spatial=False, **meta: Any) -> Kernel:
    """A Kernel from the attributes of neural-tangents' Kernel, in the precision of covariances."""
    batch, turned = meta.get("diagonal_batch", True), meta.get("is_reversed", False)
    if cov1 is None or not batch or turned:
        raise ValueError(
            "Kernel(nngp=...) needs cov1, diagonal_batch=True and is_reversed=False (reverse() the original), got "
            f"cov1 {'None' if cov1 is None else 'given'}, diagonal_batch={batch} and is_reversed={turned}"
        )
    nngp, cov1, ntk = jnp.asarray(nngp), jnp.asarray(cov1), where_kept(jnp.asarray, ntk)
    same = cov2 is None if x1_is_x2 is None else bool(x1_is_x2)
    other = None if same else cov1 if cov2 is None else jnp.asarray(cov2)
    return kernel_from_covariances(nngp, ntk, cov1, other, diagonal_spatial=diagonal_spatial, **meta)
