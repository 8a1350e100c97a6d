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
from dynamics.stax.kernel.monte_carlo import estimated_kernel_fn, monte_carlo_kernel_fn
from dynamics.stax.layers.attention import GlobalSelfAttention
from dynamics.stax.layers.branching import FanInConcat, FanInProd, FanInSum, FanOut
from dynamics.stax.layers.combinators import Identity, parallel, repeat, serial
from dynamics.stax.layers.conv import Conv, ConvLocal, ConvTranspose
from dynamics.stax.layers.dense import Dense
from dynamics.stax.layers.embedding import Embedding
from dynamics.stax.layers.norm import Dropout, LayerNorm, RMSNorm
from dynamics.stax.layers.pooling import AvgPool, Flatten, GlobalAvgPool, GlobalSumPool, SumPool
from dynamics.stax.layers.rnn import Rnn

__all__ = [
    "ABRelu",
    "Abs",
    "AvgPool",
    "Conv",
    "ConvLocal",
    "ConvTranspose",
    "Cos",
    "Dense",
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
    "Hermite",
    "Identity",
    "Kernel",
    "LayerNorm",
    "LeakyRelu",
    "Monomial",
    "Polynomial",
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
    "Softplus",
    "SumPool",
    "Tanh",
    "batch",
    "estimated_kernel_fn",
    "hermite_series",
    "monte_carlo_kernel_fn",
    "parallel",
    "repeat",
    "serial",
]

_BEFORE = "apply the linear map to the inputs before the network"
_ELSEWHERE = {
    "Aggregate": f"{_BEFORE} (a graph's adjacency matrix times the node features)",
    "AggregateImplementation": f"{_BEFORE} (a graph's adjacency matrix times the node features)",
    "Bool": "give a layer's needs to dynamics.stax.layers.layer as Needs",
    "Diagonal": "give a layer's needs to dynamics.stax.layers.layer as Needs",
    "AttentionMechanism": "pass attention_mechanism='SOFTMAX', 'IDENTITY', 'ABS' or 'RELU' as a string",
    "DotGeneral": f"{_BEFORE} (jax.lax.dot_general)",
    "ImageResize": f"{_BEFORE} (jax.image.resize)",
    "Index": f"{_BEFORE} (select the entries with x[...])",
    "MaskedArray": "masks are not offered: zero the masked entries of the inputs (biases still reach them)",
    "Padding": "pass padding='SAME', 'VALID' or 'CIRCULAR' as a string",
    "PositionalEmbedding": "pass pos_emb_type='NONE', 'SUM' or 'CONCAT' as a string",
    "Slice": f"{_BEFORE} (select the entries with x[...])",
    "layer": "an (init_fn, apply_fn, kernel_fn) triple is a layer as it is; see also dynamics.stax.layers.layer",
    "requires": "give a layer's needs to dynamics.stax.layers.layer as Needs",
    "supports_masking": "masks are not offered: zero the masked entries of the inputs (biases still reach them)",
    "unmask_fn": "masks are not offered: zero the masked entries of the inputs (biases still reach them)",
}


def __getattr__(name: str):
    if name in _ELSEWHERE:
        raise AttributeError(f"dynamics.stax does not offer neural-tangents' {name}: {_ELSEWHERE[name]}")
    raise AttributeError(f"module 'dynamics.stax' has no attribute {name!r}; it has {', '.join(__all__)}")
