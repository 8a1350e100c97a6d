"""The Kernel: what the infinite-width limit carries from layer to layer.

A covariance ``k = s1 s2 cos`` of two preactivations with standard deviations ``s1, s2`` is stored as its
Cauchy-Schwarz gap ``g = s1 s2 - k = s1 s2 (1 - cos) >= 0``. Where two inputs nearly coincide ``cos`` rounds to 1, but
``g`` keeps its digits, and every layer maps gaps to gaps without subtracting nearly equal numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from dynamics.stax.kernel.algebra import (
    diagonal_of,
    interleave,
    pair_indices,
    root,
    rows,
    safe_sqrt,
    where_kept,
    within_sides,
)
from dynamics.types import Array

_COVARIANCES = ("gap", "ntk", "var1", "var2", "within1", "within2")


def _static(default: Any) -> Any:
    return dataclasses.field(default=default, metadata=dict(static=True))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kernel:
    """Covariances of the outputs of an infinitely wide layer; a pytree. ``Kernel.from_covariances`` makes one.

    With ``n1`` and ``n2`` inputs and spatial axes of sizes ``S = (h, w, ...)``, a full spatial covariance has axes
    ``(h, h, w, w, ...)`` (first the position in ``x1``, then in ``x2``), a diagonal one ``(h, w, ...)``.

    Attributes:
        gap: ``[n1, n2, ...]`` ``s1 s2 - nngp``, zero where two outputs coincide.
        ntk: ``[n1, n2, ...]`` neural tangent kernel, or None where it was not asked for.
        var1, var2: ``[n1, *S]``, ``[n2, *S]`` variances; ``var2`` is None when ``x2`` is ``x1``.
        within1, within2: ``[n1, h, h, w, w, ...]`` gaps between the positions of one input; None when
            ``diagonal_spatial``.
        mask1, mask2: True where an output is masked, shaped as ``shape1`` and ``shape2`` with 1 for the channels; None
            without masks, and ``mask2`` when ``x2`` is ``x1``.
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
    x1_is_x2: bool = _static(False)
    is_gaussian: bool = _static(False)
    diagonal_spatial: bool = _static(False)
    shape1: tuple[int, ...] = _static(())
    shape2: tuple[int, ...] = _static(())
    batch_axis: int = _static(0)
    channel_axis: int = _static(-1)
    paired: bool = _static(False)

    # neural-tangents' names for what holds of every Kernel here
    is_reversed: ClassVar[bool] = False
    is_input: ClassVar[bool] = False
    diagonal_batch: ClassVar[bool] = True

    @staticmethod
    def from_covariances(
        nngp: Any,
        ntk: Any = None,
        cov1: Any = None,
        cov2: Any = None,
        x1_is_x2: Any = None,
        diagonal_spatial: Any = False,
        is_reversed: bool = False,
        is_input: bool = False,
        diagonal_batch: bool = True,
        **meta: Any,
    ) -> Kernel:
        """A Kernel from the attributes of neural-tangents' Kernel, in the precision of covariances.

        Args:
            nngp, ntk: ``[n1, n2, ...]``. cov1, cov2: ``[n1, ...]``, ``[n2, ...]``; ``cov2`` None when ``x2`` is ``x1``.
            x1_is_x2: whether it is; None for what ``cov2`` says.
            diagonal_spatial: whether spatial axes are ``(h, w, ...)`` and not ``(h, h, w, w, ...)``.
            is_reversed, diagonal_batch: False and True only. is_input: not kept.
            **meta: further attributes of a Kernel.

        Raises:
            ValueError: without ``cov1``, and for other ``is_reversed`` and ``diagonal_batch``.
        """
        if cov1 is None or not diagonal_batch or is_reversed:
            raise ValueError(
                f"from_covariances: got cov1 {'None' if cov1 is None else 'given'}, diagonal_batch={diagonal_batch}, "
                f"is_reversed={is_reversed}; allowed: cov1 given, True, False (reverse() the original)"
            )
        nngp, cov1, ntk = jnp.asarray(nngp), jnp.asarray(cov1), where_kept(jnp.asarray, ntk)
        same = cov2 is None if x1_is_x2 is None else bool(x1_is_x2)
        cov2 = None if same else cov1 if cov2 is None else jnp.asarray(cov2)
        diagonal = bool(diagonal_spatial) or cov1.ndim == 1
        var1, var2 = (where_kept(lambda cov: cov if diagonal else diagonal_of(cov), cov) for cov in (cov1, cov2))
        s1, s2 = where_kept(safe_sqrt, var1), where_kept(safe_sqrt, var2)

        def within(cov, s):
            if diagonal or cov is None:
                return None
            row, column = within_sides(s)
            return jnp.maximum(row * column - cov, 0)

        k = Kernel(nngp, ntk, var1, var2, x1_is_x2=same, diagonal_spatial=diagonal, **meta)
        row, column = k.sides(s1, k.other(s1, s2))
        gap = jnp.maximum(row * column - nngp, 0)
        return k.replace(gap=gap, within1=within(cov1, s1), within2=within(cov2, s2))

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

    def sides(
        self, one: Shaped[Array, "n1 ..."], two: Shaped[Array, "n2 ..."]
    ) -> tuple[Shaped[Array, ...], Shaped[Array, ...]]:
        """Quantities ``[n1, *S]`` and ``[n2, *S]`` shaped to broadcast against ``gap``."""
        row, column = (one, two) if self.diagonal_spatial else (interleave(one), interleave(two, column=True))
        if self.paired:
            first, second = pair_indices(self.var1.shape[0])
            return rows(row, first)[:, None], rows(column, second)[:, None]
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
            raise ValueError(
                "nngp, cov1, cov2: got them for a paired Kernel; allowed: gap, var1 and within1 in their place"
            )
        covariances = {name: given.get(name, getattr(self, name)) for name in ("nngp", "ntk", "cov1", "cov2")}
        options: dict[str, Any] = {"x1_is_x2": self.x1_is_x2, "diagonal_spatial": self.diagonal_spatial}
        new = Kernel.from_covariances(**covariances, **options)
        stored = {name: getattr(new, name) for name in ("gap", "var1", "var2", "within1", "within2")}
        return dataclasses.replace(self, **{**stored, **changes})

    def asdict(self) -> dict[str, Any]:
        """The attributes of neural-tangents' Kernel by name."""
        return {name: getattr(self, name) for name in _ORIGINAL}

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
            mask1=self._of_samples(self.mask1, n1_slice),
            mask2=None if same else self._of_samples(self.other(self.mask1, self.mask2), n2_slice),
            x1_is_x2=same,
            shape1=shapes[0],
            shape2=shapes[1],
        )

    def _of_samples(self, mask: Any, index: Any) -> Any:
        return where_kept(lambda mask: mask[(slice(None),) * self.batch_axis + (index,)], mask)

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


_REFUSED = {
    "reverse": "spatial axes are always in the order of the inputs (is_reversed is False)",
    "dot_general": "DotGeneral(...).kernel maps a Kernel",
    "mask": "masks come with the inputs, kernel_fn(x1, x2, mask_constant=...)",
}
_ORIGINAL = ("nngp", "ntk", "cov1", "cov2", "x1_is_x2", "is_gaussian", "is_reversed", "is_input", "diagonal_batch")
_ORIGINAL += ("diagonal_spatial", "shape1", "shape2", "batch_axis", "channel_axis", "mask1", "mask2")
PUBLIC = (*_ORIGINAL, "gap", "var1", "var2", "within1", "within2")


def check_name(name: Any) -> str:
    """``name``, after checking that a Kernel has it."""
    if name not in PUBLIC:
        raise ValueError(f"get: got {name!r}; allowed: {', '.join(PUBLIC)}")
    return name


def channels(k: Kernel) -> int:
    """Number of channels of a layer's input."""
    if k.channel_axis >= len(k.shape1):
        raise ValueError(
            f"inputs: got tokens of shape {k.shape1}, without channels; allowed: Embedding before the other layers"
        )
    return k.shape1[k.channel_axis]


class Deviations(NamedTuple):
    """Standard deviations of both inputs, ``[n1, *S]`` and ``[n2, *S]``."""

    one: Array
    two: Array


def deviations(k: Kernel) -> Deviations:
    """Standard deviations of a kernel's outputs."""
    one = root(k.var1)
    return Deviations(one, one if k.var2 is None else root(k.var2))


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
