"""From a layer's rules to a Model: the callable ``kernel_fn`` and what it needs from the layers before it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from dynamics.precision import full_precision
from dynamics.stax.kernel.inputs import kernel_from_inputs
from dynamics.stax.kernel.kernel import Kernel, unpair
from dynamics.stax.kernel.masks import MaskedArray, any_masked, cleared, is_masked, masked
from dynamics.stax.kernel.read_out import names_of, read_out
from dynamics.stax.kernel.tiles import tile_limit
from dynamics.stax.kernel.tokens import kernel_from_tokens
from dynamics.stax.kernel.vectors import tiled_kernel
from dynamics.types import Model

_LONGEST = 1000  # operations of a kernel that is compiled as one program outside of jit


class Needs(NamedTuple):
    """What a layer asks of its input kernel.

    Attributes:
        batch_axis, channel_axis: axes of the layer's input, or None where any will do.
        pairs: whether the layer acts on each pair of inputs by itself, so that pairs ``i <= j`` suffice.
        tokens: whether the inputs of the network are integer tokens without a channel axis.
        branches: what each of several inputs has to be, where a network takes several.
        spatial: whether full spatial covariances are needed at the input, given whether they are at the output.
    """

    batch_axis: int | None = None
    channel_axis: int | None = None
    spatial: Callable[[bool], bool] = bool
    pairs: bool = True
    tokens: bool = False
    branches: tuple[Any, ...] = ()

    def of_input(self, i: int) -> Needs:
        """What input ``i`` of several has to be."""
        return self.branches[i] if i < len(self.branches) else self


@dataclasses.dataclass(frozen=True, eq=False)
class KernelFn:
    """``kernel_fn(x1_or_kernel, x2=None, get=None)``: the kernel of the infinitely wide network.

    ``propagate`` maps the input's Kernel to the output's.
    """

    propagate: Callable[..., Any]
    needs: Needs

    @full_precision
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
            pattern: the graphs ``(pattern1, pattern2)`` of ``Aggregate``. diagonal_batch: True or None only.
            mask_constant: entries of the inputs equal to it are masked (NaN too); None for no masks.
            diagonal_spatial: True keeps only equal positions of ``x1`` and ``x2`` (pooling then takes different ones to
                be uncorrelated), False keeps all; inferred from the layers when None.
            **kwargs: handed to every layer.

        Returns:
            A Kernel, an array or a namedtuple. Cost: ``O(n1 n2 d)`` for vectors of size ``d``, ``O(n1 n2)`` a layer.

        Raises:
            ValueError: for unknown names in ``get``, shapes and axes that do not fit, complex inputs, layers in an
                order without a limit, and kernels above the free memory.
        """
        if diagonal_batch is False:
            raise ValueError(
                "diagonal_batch: got False; allowed: True, None (cov1 and cov2 hold each input with itself)"
            )
        plain = pattern is None and mask_constant is None and not (kwargs or self.needs.tokens)
        # The broadcasts of pairs with their sides are meant, whatever the user forbids in their own code.
        with jax.numpy_rank_promotion("allow"):
            if plain and _are_values(x1_or_kernel, x2) and (get is None or isinstance(get, str | tuple | list)):
                found = self._whole(x1_or_kernel, x2, get, diagonal_spatial)
                if found is not None:
                    return found
            return self._evaluated(x1_or_kernel, x2, get, pattern, mask_constant, diagonal_spatial, kwargs)

    def _whole(self, x1, x2, get, diagonal_spatial):
        """The kernel of arrays as one program, where that is not long: a call outside of jit would else compile one
        program an operation. None for a network that is too long, whose layers repeat what is compiled."""
        get = tuple(get) if isinstance(get, list) else get
        leaves, structure = jax.tree.flatten((x1, x2))
        key = get, diagonal_spatial, structure, tuple((x.shape, x.dtype) for x in leaves), jnp.result_type(float)
        if key not in self._short:
            jaxpr = self._program.trace(x1, x2, get, diagonal_spatial).jaxpr
            self._short[key] = len(jaxpr.eqns) <= _LONGEST
        return self._program(x1, x2, get, diagonal_spatial) if self._short[key] else None

    @functools.cached_property
    def _program(self):
        def evaluated(x1, x2, get, diagonal_spatial):
            return self._evaluated(x1, x2, get, None, None, diagonal_spatial, {})

        return jax.jit(evaluated, static_argnums=(2, 3))

    @functools.cached_property
    def _short(self) -> dict[Any, bool]:
        return {}

    def _evaluated(self, x1, x2, get, pattern, mask_constant, diagonal_spatial, kwargs):
        names = names_of(get)
        if pattern is not None:
            kwargs["pattern"] = pattern
        if _all_kernels(x1):
            if x2 is not None:
                raise ValueError(f"x2: got {type(x2).__name__} beside a Kernel; allowed: None")
            kernel = x1
        elif self.needs.pairs and not (kwargs or self.needs.tokens) and mask_constant is None and _many_vectors(x1, x2):
            axes = self.needs.batch_axis or 0, _or(self.needs.channel_axis, -1)
            return read_out(tiled_kernel(self.propagate, x1, x2, *axes, _pairwise(names)), get)
        else:
            kernel = _input_kernel(
                self.needs,
                x1,
                x2,
                full_spatial=self.needs.spatial(True) if diagonal_spatial is None else not diagonal_spatial,
                compute_ntk=names is None or "ntk" in names,
                paired=self.needs.pairs and mask_constant is None,
                mask_constant=mask_constant,
            )
        return read_out(_unpaired(self.propagate(kernel, **kwargs)), get)


def _are_values(x1, x2) -> bool:
    """Whether these are arrays with values, or lists of them: no Kernel, nothing traced, nothing masked."""
    leaves = jax.tree.leaves((x1, x2), is_leaf=lambda x: isinstance(x, Kernel | MaskedArray))
    return bool(leaves) and all(isinstance(x, jax.Array | np.ndarray) and not isinstance(x, Tracer) for x in leaves)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _input_kernel(needs: Needs, x1, x2, **options) -> Any:
    """The Kernel of inputs, one for each where there are several."""
    if isinstance(x1, list | tuple):
        others = [None] * len(x1) if x2 is None else x2
        pairs = enumerate(zip(x1, others, strict=True))
        return type(x1)(_input_kernel(needs.of_input(i), one, two, **options) for i, (one, two) in pairs)
    axes = {"batch_axis": needs.batch_axis or 0, "channel_axis": _or(needs.channel_axis, -1)}
    return (kernel_from_tokens if needs.tokens else kernel_from_inputs)(x1, x2, **options, **axes)


def _many_vectors(x1, x2) -> bool:
    """Whether both sides are matrices and one is larger than a tile."""
    sides = [x for x in (x1, x2) if x is not None]
    if any(isinstance(x, list | tuple | Kernel) or jnp.ndim(x) != 2 for x in sides):
        return False
    return max(max(jnp.shape(x)) for x in sides) > tile_limit()


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


def same_mask(mask: Any, shape: Any) -> Any:
    """Outputs are masked where inputs are."""
    return mask


def layer(
    init: Callable,
    apply: Callable,
    propagate: Callable,
    needs: Needs | None = None,
    output_mask: Callable[[Any, Any], Any] = same_mask,
    clears: bool = True,
) -> Model:
    """A Model from ``init(rng, input_shape)``, ``apply(params, inputs, **kwargs)``, ``propagate(kernel, **kwargs)``.

    Args:
        init, apply, propagate: the layer; ``apply`` may take ``mask``, None without masks.
        needs: what it asks of its input.
        output_mask: ``(mask, shape)`` of the input to the mask of the output (lists for several inputs).
        clears: whether covariances of masked outputs have to be set to zero, because they might not be already.
    """
    needs = Needs() if needs is None else needs

    def masking(params, inputs, *, mask_constant=None, **kwargs) -> Any:
        if mask_constant is None and not any_masked(inputs):
            return apply(params, inputs, **kwargs)
        found = jax.tree.map(lambda x: masked(x, mask_constant), inputs, is_leaf=is_masked)
        inputs, mask = (_each(lambda x, n=name: getattr(x, n), found) for name in ("masked_value", "mask"))
        outputs = apply(params, inputs, mask=mask, **kwargs)
        if all(x is None for x in _list(mask)):
            return outputs
        new = output_mask(mask, _each(jnp.shape, inputs))
        return type(outputs)(map(MaskedArray, outputs, new)) if isinstance(new, list) else MaskedArray(outputs, new)

    def placed(k, **kwargs):
        if isinstance(k, Kernel):
            _check_placed(k, needs)
        out = propagate(k, **kwargs)
        masks = [_each(lambda k, n=name: getattr(k, n), k) for name in ("mask1", "mask2")]
        if all(x is None for mask in masks for x in _list(mask)):
            return out
        shapes = [_each(lambda k, n=name: getattr(k, n), k) for name in ("shape1", "shape2")]
        new = [
            None if all(x is None for x in _list(mask)) else output_mask(mask, shape)
            for mask, shape in zip(masks, shapes, strict=True)
        ]
        if isinstance(out, Kernel):
            split = not out.x1_is_x2 and isinstance(k, Kernel) and k.x1_is_x2  # two graphs on the same inputs
            out = out.replace(mask1=new[0], mask2=new[0] if split else new[1])
            return cleared(out) if clears else out
        return type(out)(k.replace(mask1=_at(new[0], i), mask2=_at(new[1], i)) for i, k in enumerate(out))

    return Model(init, masking, KernelFn(placed, needs))


def _list(x: Any) -> Any:
    return x if isinstance(x, list | tuple) else [x]


def _each(fn: Callable, x: Any) -> Any:
    """``fn`` of ``x``, or of each of several."""
    return [fn(each) for each in x] if isinstance(x, list | tuple) else fn(x)


def _at(x: Any, i: int) -> Any:
    return None if x is None else x[i]


def _check_placed(k: Kernel, needs: Needs) -> None:
    """Refuses a layer whose axes are not those of its input: its ``apply`` would be another function."""
    ndim = len(k.shape1)
    for name in ("batch_axis", "channel_axis"):
        asked, found = getattr(needs, name), getattr(k, name)
        if asked is not None and found < ndim and asked % ndim != found % ndim:
            raise ValueError(
                f"{name}: got {asked % ndim} for an input of shape {k.shape1}; allowed: {found % ndim}, the "
                "input's own (give each layer the axes, or dimension_numbers, of its input)"
            )


def composed(init: Callable, apply: Callable, propagate: Callable, needs: Needs) -> Model:
    """As ``layer``, for layers made of layers: arguments and axes are checked by their parts."""
    return Model(init, apply, KernelFn(propagate, needs))


def kernel_layer(model: Sequence) -> KernelFn:
    """The KernelFn of a Model or of an ``(init_fn, apply_fn, kernel_fn)`` triple."""
    kernel_fn = model[2]
    if kernel_fn is None:
        raise ValueError("kernel_fn: got None, a Model without an infinite-width kernel; allowed: a layer that has one")
    if isinstance(kernel_fn, KernelFn):
        return kernel_fn
    return KernelFn(kernel_fn, Needs(pairs=False))
