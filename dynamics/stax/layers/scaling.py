"""Parameterizations of weight layers: initial scales, forward factors and what a layer adds to the NTK."""

from __future__ import annotations

from typing import Any, NamedTuple

from dynamics.arguments import check_counts
from dynamics.stax.kernel.algebra import where_kept
from dynamics.stax.layers.checks import check_scales
from dynamics.types import Array, ArrayLike

KINDS = ("ntk", "standard", "mup")


class Scaling(NamedTuple):
    """How a layer with ``fan_in`` inputs and ``fan_out`` outputs scales its standard normal weights and biases.

    Attributes:
        kind: 'ntk', 'standard' or 'mup'. W_std, b_std: weight and bias scales (``b_std`` None without a bias).
        fan_out: number of outputs. s: width multipliers ``(input, output)`` of the 'standard' parameterization.
    """

    kind: str
    W_std: Any
    b_std: Any
    fan_out: int
    s: tuple[int, int] = (1, 1)

    @property
    def units(self) -> int:
        """Outputs of the finite layer."""
        return self.fan_out * self.s[1] if self.kind == "standard" else self.fan_out

    @property
    def bias_variance(self) -> Any:
        """``b_std^2``, or None without a bias."""
        return None if self.b_std is None else self.b_std**2

    def weight_variance(self, fan_in: int) -> Any:
        """``A`` of ``k' = A k + B`` (``B = bias_variance``)."""
        shrink = min(1.0, self.fan_out / fan_in) if self.kind == "mup" else 1.0
        return shrink * self.W_std**2

    def initial(self, weight: Array, bias: Array | None, fan_in: int) -> tuple[Array, Array | None]:
        """Initial parameters from standard normal ones."""
        if self.kind == "standard":
            return weight * (self.W_std / (fan_in / self.s[0]) ** 0.5), where_kept(lambda b: b * self.b_std, bias)
        if self.kind == "mup":
            shrink = max(fan_in, self.fan_out) ** -0.5
            return weight * shrink, where_kept(lambda b: b / self.fan_out**0.5, bias)
        return weight, bias

    def forward(self, product: Array, bias: Array | None, fan_in: int) -> Array:
        """Outputs from the product of weights and inputs."""
        root = self.fan_out**0.5
        scales: dict[str, tuple[Any, Any]] = {
            "ntk": (self.W_std / fan_in**0.5, self.b_std),
            "standard": (1 / self.s[0] ** 0.5, 1.0),
            "mup": (self.W_std * root / fan_in**0.5, None if self.b_std is None else self.b_std * root),
        }
        scale, shift = scales[self.kind]
        return scale * product if bias is None else scale * product + shift * bias

    def own_ntk(self, inputs: Array, outputs: Array, fan_in: int) -> Array:
        """What the layer's parameters add to the NTK.

        Args:
            inputs: ``k``, averaged over the offsets of a filter. outputs: ``k' = A k + B``.
            fan_in: number of inputs of an output.
        """
        if self.kind == "ntk":
            return outputs
        if self.kind == "standard":
            return fan_in / self.s[0] * inputs + (0 if self.b_std is None else 1)
        return self.fan_out * (self.W_std**2 * inputs + (0 if self.b_std is None else self.b_std**2))


def scaling(parameterization: str, W_std: ArrayLike, b_std: ArrayLike | None, fan_out: int, s, name: str) -> Scaling:
    """A checked ``Scaling``; ``name`` is what the layer calls its ``fan_out``."""
    kind = parameterization.lower()
    if kind not in KINDS:
        raise ValueError(f"parameterization: got {parameterization!r}; allowed: 'ntk', 'standard', 'mup'")
    check_counts(**{name: fan_out})
    check_scales(W_std=W_std, b_std=b_std)
    return Scaling(kind, W_std, b_std, fan_out, s)


def resized(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    """``shape`` with ``size`` at ``axis``."""
    axis %= len(shape)
    return (*shape[:axis], size, *shape[axis + 1 :])


def along(ndim: int, axis: int, size: int) -> list[int]:
    """A shape of ones with ``size`` at ``axis``."""
    return [size if i == axis % ndim else 1 for i in range(ndim)]
