"""Numbers from arrays and curves: alignments, ranks, spectra, Fourier and group components, crossings, noise scale."""

from dynamics.statistics.alignment import (
    centred,
    cka,
    debiased_alignment,
    effective_dimension,
    kernel_alignment,
    kernel_distance,
    label_alignment,
)
from dynamics.statistics.chains import ChainMean, chain_mean
from dynamics.statistics.crossings import first_step, time_ratio, value_at
from dynamics.statistics.dimension import boundary, box_dimension, pair_dimension
from dynamics.statistics.fourier import frequency_power, frequency_share, gini, sum_components, top_frequency
from dynamics.statistics.groups import Components, component_power, component_share, irreducible_components
from dynamics.statistics.noise_scale import CriticalBatch, critical_batch
from dynamics.statistics.power_laws import PowerLaw, mean_interval, power_law
from dynamics.statistics.rank import effective_rank, isometry_gap, stable_rank, weight_norm
from dynamics.statistics.tails import SpectralTail, spectral_tail

__all__ = [
    "ChainMean",
    "Components",
    "CriticalBatch",
    "PowerLaw",
    "SpectralTail",
    "boundary",
    "box_dimension",
    "centred",
    "chain_mean",
    "cka",
    "component_power",
    "component_share",
    "critical_batch",
    "debiased_alignment",
    "effective_dimension",
    "effective_rank",
    "first_step",
    "frequency_power",
    "frequency_share",
    "gini",
    "irreducible_components",
    "isometry_gap",
    "kernel_alignment",
    "kernel_distance",
    "label_alignment",
    "mean_interval",
    "pair_dimension",
    "power_law",
    "spectral_tail",
    "stable_rank",
    "sum_components",
    "time_ratio",
    "top_frequency",
    "value_at",
    "weight_norm",
]
