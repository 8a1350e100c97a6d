"""A network's program (its jaxpr): which parameters meet which data, which output depends on which sample."""

from dynamics.program.on_cpus import shifted_convolutions
from dynamics.program.sample_axis import splits_into_samples

__all__ = ["shifted_convolutions", "splits_into_samples"]
