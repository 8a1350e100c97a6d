"""From a layer's rules to a Model: the callable ``kernel_fn`` and what it needs from the layers before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynamics.stax.kernel.inputs import kernel_from_inputs
from dynamics.stax.kernel.kernel import Kernel, unpair
from dynamics.stax.kernel.read_out import names_of, read_out
from dynamics.stax.kernel.tiles import tile_limit
from dynamics.stax.kernel.tokens import kernel_from_tokens
from dynamics.stax.kernel.vectors import tiled_kernel
from dynamics.types import Model


class Needs(NamedTuple):
    """What a layer asks of its input kernel.

    Attributes:
        batch_axis, channel_axis: axes of the layer's input, or None where any will do.
        pairs: whether the layer acts on each pair of inputs by itself, so that pairs ``i <= j`` suffice.
        tokens: whether the inputs of the network are integer tokens without a channel axis.
        spatial: whether full spatial covariances are needed at the input, given whether they are at the output.
    """

    batch_axis: int | None = None
    channel_axis: int | None = None
    spatial: Callable[[bool], bool] = bool
    pairs: bool = True
    tokens: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class KernelFn:
    """``kernel_fn(x1_or_kernel, x2=None, get=None)``: the kernel of the infinitely wide network.

    ``propagate`` maps the input's Kernel to the output's.
    """

    propagate: Callable[..., Any]
    needs: Needs

    def __call__(
        self,
        x1_or_kernel,
        x2=None,
        get=None,
        *,
        pattern=None,
        mask_constant=None,
        diagonal_batch: bool | None = None,
        diagonal_spatial: bool | None = None,
        **kwargs,
    ):
        """Evaluates the kernel between ``x1 [n1, ...]`` and ``x2 [n2, ...]`` (``x1`` when None).

        Args:
            x1_or_kernel: inputs with their sample axis, or a Kernel (or a list of them for layers with several inputs).
            x2: other inputs, or None for ``x1``. Both are taken to the default floating precision.
            get: None for the whole Kernel, a name ('ntk', 'nngp', 'cov1', ...) for one array, or a tuple of names for
                a namedtuple.
            pattern, mask_constant: None only; diagonal_batch: True or None only (neural-tangents' arguments).
            diagonal_spatial: keep only equal positions of ``x1`` and ``x2``; inferred from the layers when None.

        Returns:
            A Kernel, an array or a namedtuple. Cost: ``O(n1 n2 d)`` for vectors of size ``d``, ``O(n1 n2)`` a layer.

        Raises:
            ValueError: for unknown names in ``get``, shapes and axes that do not fit, complex inputs, layers in an
                order without a limit, and kernels above the free memory.
        """
        _refuse({"pattern": pattern, "mask_constant": mask_constant, "diagonal_batch": diagonal_batch})
        names = names_of(get)
        compute_ntk = names is None or "ntk" in names
        batch_axis = 0 if self.needs.batch_axis is None else self.needs.batch_axis
        channel_axis = -1 if self.needs.channel_axis is None else self.needs.channel_axis
        x1 = x1_or_kernel
        if _all_kernels(x1):
            if x2 is not None:
                raise ValueError(f"x2 must be None where x1_or_kernel is a Kernel, got {type(x2).__name__}")
            kernel = x1
        elif self.needs.pairs and not (kwargs or self.needs.tokens) and _many_vectors(x1, x2, batch_axis):
            return read_out(tiled_kernel(self.propagate, x1, x2, batch_axis, channel_axis, _pairwise(names)), get)
        else:
            full = self.needs.spatial(True) if diagonal_spatial is None else not diagonal_spatial
            kernel = (kernel_from_tokens if self.needs.tokens else kernel_from_inputs)(
                x1,
                x2,
                full_spatial=full,
                compute_ntk=compute_ntk,
                batch_axis=batch_axis,
                channel_axis=channel_axis,
                paired=x2 is None and full and self.needs.pairs,
            )
        return read_out(_unpaired(self.propagate(kernel, **kwargs)), get)


_REFUSED = {
    "mask_constant": "masks are not offered: zero the masked entries of the inputs (biases still reach them)",
    "pattern": "Aggregate is not offered: multiply the inputs by the graph's adjacency matrix before the network",
}


def _refuse(given: dict[str, Any]) -> None:
    """Names arguments of neural-tangents that would otherwise be dropped without a word."""
    for name, instead in _REFUSED.items():
        if given.get(name) is not None:
            raise ValueError(f"{name} must be None or left out, got {given[name]!r}: {instead}")
    if given.get("diagonal_batch") is False:
        raise ValueError("diagonal_batch must be True or None, got False: cov1 and cov2 hold each input with itself")


def _many_vectors(x1, x2, batch_axis: int) -> bool:
    """Whether both sides are matrices and one holds more inputs than a tile."""
    sides = [x for x in (x1, x2) if x is not None]
    if any(isinstance(x, list | tuple | Kernel) or jnp.ndim(x) != 2 for x in sides) or not -2 <= batch_axis < 2:
        return False
    return max(jnp.shape(x)[batch_axis] for x in sides) > tile_limit()


def _pairwise(names) -> tuple[str, ...]:
    """What ``get`` asks for among a Kernel's attributes of pairs, at least one of them."""
    gap = ("gap",) if names is None or {"nngp", "gap"} & set(names) or "ntk" not in names else ()
    return (*gap, "ntk") if names is None or "ntk" in names else gap


def _is_kernel(x) -> bool:
    return isinstance(x, Kernel)


def _all_kernels(x) -> bool:
    leaves = jax.tree.leaves(x, is_leaf=_is_kernel)
    return bool(leaves) and all(map(_is_kernel, leaves))


def _unpaired(kernel):
    return jax.tree.map(lambda k: unpair(k) if k.paired else k, kernel, is_leaf=_is_kernel)


def layer(init: Callable, apply: Callable, propagate: Callable, needs: Needs | None = None) -> Model:
    """A Model from ``init(rng, input_shape)``, ``apply(params, inputs, **kwargs)``, ``propagate(kernel, **kwargs)``."""
    needs = Needs() if needs is None else needs

    def checked(params, inputs, *, mask_constant=None, **kwargs):
        _refuse({"mask_constant": mask_constant, "pattern": kwargs.get("pattern")})
        return apply(params, inputs, **kwargs)

    def placed(k, **kwargs):
        if isinstance(k, Kernel):
            _check_placed(k, needs)
        return propagate(k, **kwargs)

    return Model(init, checked, KernelFn(placed, needs))


def _check_placed(k: Kernel, needs: Needs) -> None:
    """Refuses a layer whose axes are not those of its input: its ``apply`` would be another function."""
    ndim = len(k.shape1)
    for name in ("batch_axis", "channel_axis"):
        asked, found = getattr(needs, name), getattr(k, name)
        if asked is not None and found < ndim and asked % ndim != found % ndim:
            raise ValueError(
                f"{name} of the layer is {asked % ndim}, but its input of shape {k.shape1} has {name} {found % ndim}: "
                "give each layer the axes (or dimension_numbers) of its input"
            )


def composed(init: Callable, apply: Callable, propagate: Callable, needs: Needs) -> Model:
    """As ``layer``, for layers made of layers: arguments and axes are checked by their parts."""
    return Model(init, apply, KernelFn(propagate, needs))


def kernel_layer(model: Sequence) -> KernelFn:
    """The KernelFn of a Model or of an ``(init_fn, apply_fn, kernel_fn)`` triple."""
    kernel_fn = model[2]
    if kernel_fn is None:
        raise ValueError("kernel of the layer is None: this Model has no infinite-width kernel")
    if isinstance(kernel_fn, KernelFn):
        return kernel_fn
    return KernelFn(kernel_fn, Needs(pairs=False))
