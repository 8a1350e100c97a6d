"""Architectures as ``(init, apply, kernel)``: finite networks and their infinite-width kernels.

Reference: Novak et al. 2020, 'Neural Tangents: fast and easy infinite neural networks in Python'.
"""

from dynamics.stax.activations.piecewise_linear import ABRelu, Abs, LeakyRelu, RectifiedMonomial, Relu, Sign
from dynamics.stax.activations.quadrature import (
    Elementwise,
    ElementwiseNumerical,
    Series,
    Sigmoid,
    Silu,
    Softplus,
    Tanh,
    hermite_series,
)
from dynamics.stax.activations.smooth import (
    Cos,
    Erf,
    Exp,
    ExpNormalized,
    Gabor,
    Gaussian,
    Gelu,
    Hermite,
    Monomial,
    Polynomial,
    Rbf,
    Sigmoid_like,
    Sin,
)
from dynamics.stax.kernel.batching import batch
from dynamics.stax.kernel.kernel import Kernel
from dynamics.stax.kernel.masks import MaskedArray, unmask_fn
from dynamics.stax.kernel.monte_carlo import estimated_kernel_fn, monte_carlo_kernel_fn
from dynamics.stax.layers.attention import GlobalSelfAttention
from dynamics.stax.layers.branching import FanInConcat, FanInProd, FanInSum, FanOut
from dynamics.stax.layers.checks import AggregateImplementation, AttentionMechanism, Padding, PositionalEmbedding
from dynamics.stax.layers.combinators import Identity, parallel, repeat, serial
from dynamics.stax.layers.conv import Conv, ConvLocal, ConvTranspose
from dynamics.stax.layers.dense import Dense
from dynamics.stax.layers.embedding import Embedding
from dynamics.stax.layers.linear import Aggregate, DotGeneral, ImageResize, Index, Slice
from dynamics.stax.layers.norm import Dropout, LayerNorm, RMSNorm
from dynamics.stax.layers.pooling import AvgPool, Flatten, GlobalAvgPool, GlobalSumPool, SumPool
from dynamics.stax.layers.rnn import Rnn
from dynamics.stax.layers.weights import Haar, LowRank, Sparse

__all__ = [
    "ABRelu",
    "Abs",
    "Aggregate",
    "AggregateImplementation",
    "AttentionMechanism",
    "AvgPool",
    "Conv",
    "ConvLocal",
    "ConvTranspose",
    "Cos",
    "Dense",
    "DotGeneral",
    "Dropout",
    "Elementwise",
    "ElementwiseNumerical",
    "Embedding",
    "Erf",
    "Exp",
    "ExpNormalized",
    "FanInConcat",
    "FanInProd",
    "FanInSum",
    "FanOut",
    "Flatten",
    "Gabor",
    "Gaussian",
    "Gelu",
    "GlobalAvgPool",
    "GlobalSelfAttention",
    "GlobalSumPool",
    "Haar",
    "Hermite",
    "Identity",
    "ImageResize",
    "Index",
    "Kernel",
    "LayerNorm",
    "LeakyRelu",
    "LowRank",
    "MaskedArray",
    "Monomial",
    "Padding",
    "Polynomial",
    "PositionalEmbedding",
    "RMSNorm",
    "Rbf",
    "RectifiedMonomial",
    "Relu",
    "Rnn",
    "Series",
    "Sigmoid",
    "Sigmoid_like",
    "Sign",
    "Silu",
    "Sin",
    "Slice",
    "Softplus",
    "Sparse",
    "SumPool",
    "Tanh",
    "batch",
    "estimated_kernel_fn",
    "hermite_series",
    "monte_carlo_kernel_fn",
    "parallel",
    "repeat",
    "serial",
    "unmask_fn",
]

_OWN = "an (init_fn, apply_fn, kernel_fn) triple is a layer as it is; dynamics.stax.layers.layer makes one from rules"
_ELSEWHERE = {
    "Bool": "give a layer's needs to dynamics.stax.layers.layer as Needs",
    "Diagonal": "give a layer's needs to dynamics.stax.layers.layer as Needs",
    "layer": _OWN,
    "requires": "give a layer's needs to dynamics.stax.layers.layer as Needs",
    "supports_masking": f"{_OWN}, with output_mask for masks",
}


def __getattr__(name: str):
    if name in _ELSEWHERE:
        raise AttributeError(f"dynamics.stax does not offer neural-tangents' {name}: {_ELSEWHERE[name]}")
    raise AttributeError(f"module 'dynamics.stax' has no attribute {name!r}; it has {', '.join(__all__)}")
