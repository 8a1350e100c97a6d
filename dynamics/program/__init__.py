"""A network's program (its jaxpr): which parameters meet which data, which output depends on which sample."""

from dynamics.program.sample_axis import splits_into_samples
from dynamics.program.shifted_convolutions import shifted_convolutions

__all__ = ["shifted_convolutions", "splits_into_samples"]
