"""Networks outside ``stax``, bridges from flax and equinox, output scale and start at zero for any model."""

from dynamics.models.from_equinox import from_equinox
from dynamics.models.from_flax import from_flax, frozen
from dynamics.models.scaling import antisymmetric, centred, scaled
from dynamics.models.transformer import transformer
from dynamics.models.two_layer import committee, quadratic, two_layer

__all__ = [
    "antisymmetric",
    "centred",
    "committee",
    "from_equinox",
    "from_flax",
    "frozen",
    "quadratic",
    "scaled",
    "transformer",
    "two_layer",
]
