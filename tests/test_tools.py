"""The coordinate check: its theory against Tensor Programs' exponents, its layers against the models, its verdicts."""

import sys

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dynamics import models, stax
from dynamics.losses import half_mse
from dynamics.program.layers import layers_of
from dynamics.statistics import PowerLaw
from dynamics.theory import abc
from dynamics.theory.coordinates import LayerScaling, coordinate_exponents, scheme_exponents
from dynamics.tools import coordinate_check, coordinate_figure
from dynamics.tools.command import tools_main
from dynamics.tools.coordinates import _judged, _notes
from dynamics.types import Batch, Model, StatefulModel

CHAIN = [(0, 1), (1, 1), (1, 1), (1, 0)], [(), (0,), (1,), (2,)]


@pytest.mark.parametrize(
    ("scheme", "parametrisation"),
    [("standard", abc.standard(4)), ("NTK", abc.ntk(4)), ("muP", abc.maximal_update(4))],
)
def test_exponents_of_gradient_descent_are_those_of_tensor_programs(scheme, parametrisation):
    """Hidden features change as ``n^-r`` of definition 3.2 in Yang & Hu, which was written down another way; a step at
    a rate ``n^-c`` is ``n^-c`` of one at a constant rate."""
    found = scheme_exponents(scheme, "gradient", *CHAIN)
    assert max(one.change for one in found[:-1]) - parametrisation.c == -abc.feature_exponent(parametrisation)
    start = parametrisation.a[-1] + parametrisation.b[-1]
    assert found[-1].activation == 0.5 - start


def test_exponents_of_adam_are_those_of_the_papers():
    """Largest stable rates: each scheme's blow-up at the rate of another is the difference of their exponents."""
    table = {"standard": [0, 1, 1, 1.5], "NTK": [-1, -0.5, -0.5, 0], "muP": [0] * 4, "u-muP": [-0.5, 0, 0, 0]}
    for scheme, changes in table.items():
        assert [one.change for one in scheme_exponents(scheme, "adaptive", *CHAIN)] == changes


def test_a_sum_of_aligned_terms_grows_as_their_number_in_numbers():
    """The two rules themselves, by matrices: random and aligned products, fitted over widths."""
    rng, widths = np.random.default_rng(0), np.array([100, 400, 1600])
    random, aligned, through = [], [], []
    for n in widths:
        W, w, x = rng.normal(size=(50, n)), rng.normal(size=(1, n)), rng.normal(size=n)
        random.append(np.sqrt(np.mean((W @ x) ** 2)))
        aligned.append(np.sqrt(np.mean((np.sign(np.outer(rng.normal(size=50), x)) @ x) ** 2)))
        through.append(np.abs(w @ np.sign(w[0])).item())  # what the output's own backward signal has made
    slopes = [np.polyfit(np.log(widths), np.log(values), 1)[0] for values in (random, aligned, through)]
    np.testing.assert_allclose(slopes, [0.5, 1.0, 1.0], atol=0.06)  # 50 rows: 10 % a point
    own = coordinate_exponents([LayerScaling(0, 1, 0, 0, 0), LayerScaling(1, 1, 0, -2, 0, sources=(0,))])[1]
    assert own.change == 1.0


class Block(nn.Module):
    width: int

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(7, self.width)(tokens) + self.param("place", nn.initializers.ones, (3, self.width))
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, name="attend")(h, h)
        return 0.5 * nn.Dense(7, name="out")(nn.remat(nn.Dense)(self.width, name="mix")(nn.gelu(x)))


def test_layers_of_a_flax_transformer_are_found_with_their_graph():
    model = models.from_flax(Block(8), dtype=jnp.int32)
    params = jax.jit(lambda key: model.init(key, (-1, 3))[1])(jax.random.key(0))
    x = jnp.arange(6).reshape(2, 3)
    said = []

    @jax.jit
    def read(params):
        (f,), layers, missed = layers_of(model.apply, params, x)
        said.append([layer._replace(weight=None, data=None, output=None, scale=None) for layer in layers])
        assert not missed
        return f, [(layer.output, layer.scale) for layer in layers], model.apply(params, x)

    f, outputs, exact = read(params)
    layers = [layer._replace(output=output, scale=scale) for layer, (output, scale) in zip(said[0], outputs)]
    np.testing.assert_allclose(f, exact, rtol=1e-6)
    np.testing.assert_allclose(layers[-1].output, f, rtol=1e-6)  # with its scale
    np.testing.assert_allclose(layers[-1].scale, 0.5, rtol=1e-6)
    np.testing.assert_allclose(layers[0].output, params["Embed_0"]["embedding"][x] + 1.0, rtol=1e-6)
    assert [layer.sources for layer in layers] == [(), (0,), (0,), (0,), (1, 2, 3), (0, 4), (5,)]
    assert [(layer.fan_in, layer.fan_out) for layer in layers] == [(1, 8)] + [(8, 8)] * 5 + [(8, 7)]


def test_a_weight_in_a_loop_is_said_not_to_be_read():
    def apply(w, x):
        return jax.lax.scan(lambda h, _: (jnp.tanh(h @ w["loop"]), None), x @ w["first"], None, 3)[0]

    params = {"first": jnp.ones((2, 2)), "loop": jnp.ones((2, 2))}
    _, layers, missed = layers_of(apply, params, jnp.ones((1, 2)))
    assert [layer.leaves for layer in layers] == [(0,)]
    assert missed == {1}


BATCH = Batch(jnp.sin(jnp.arange(12.0)).reshape(3, 4), jnp.ones((3, 1)))
WIDTHS = (16, 64, 256)


SMALL = Model(lambda key, shape: (shape, jnp.ones((4, 1))), lambda w, x: x @ w)


def stax_ntk(width):
    dense = [stax.Dense(width), stax.Relu(), stax.Dense(width), stax.Relu(), stax.Dense(1)]
    return stax.serial(*dense), optax.sgd(0.1)


def of_equinox(width):
    return lambda key: eqx.nn.MLP(4, 1, width, 2, key=key), optax.adam(2**-13)


def of_module(width):
    return eqx.nn.MLP(4, 1, width, 2, key=jax.random.key(0)), optax.sgd(0.1)


class Net(nnx.Module):
    def __init__(self, width, rngs):
        self.a, self.b = nnx.Linear(4, width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)
        self.c = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        return self.c(nnx.relu(self.b(nnx.relu(self.a(x)))))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "verdict", "kind"),
    [
        (stax_ntk, "NTK", "gradient"),
        (of_equinox, "standard", "adaptive"),
        (lambda width: (lambda key: Net(width, nnx.Rngs(key)), optax.adam(2**-13)), "standard", "adaptive"),
        (
            lambda width: (stax_ntk(width)[0], optax.sgd(0.1 * width)),
            "none",
            "gradient",
        ),  # muP's rate without its start
    ],
    ids=["stax", "equinox", "nnx", "a rate too large"],
)
def test_verdict_of_models_of_every_library(make, verdict, kind):
    found = coordinate_check(make, (64, 256, 1024), BATCH, 2, seeds=4)
    assert (found.verdict, found.kind) == (verdict, kind)
    assert found.loss.shape == (3, 4, 3)
    assert len(coordinate_figure(found).axes) == 3
    if verdict != "none":
        for one, theory in zip(found.change, found.predicted):
            assert abs(one.exponent - theory.change) < 0.15 + 0.5 * (one.high - one.low)


def law(exponent, half):
    return PowerLaw(exponent, exponent - half, exponent + half, 1.0, 4, 4)


def test_no_verdict_where_intervals_hold_two_schemes():
    schemes = {name: scheme_exponents(name, "adaptive", *CHAIN) for name in ("standard", "NTK", "muP", "u-muP")}
    sure, unsure, far = ([law(at, half) for at in ats] for ats, half in (
        ((0.1, -0.1, 0.0, -0.2), 0.1), ((0.1, -0.1, 0.0, -0.2), 0.7), ((0.0, 0.0, 0.6, 0.0), 0.9),
    ))  # fmt: skip
    assert [_judged(laws, schemes)[1] for laws in (sure, unsure, far)] == ["muP", "none", "none"]


def test_changes_that_are_none_not_finite_or_rounding_are_noted():
    sizes = {name: np.ones((1, 5, 2, 3)) for name in ("activation", "change", "update", "weight")}
    sizes["change"][0, 0, :, 2], sizes["change"][0, 1], sizes["change"][0, 2, 0, 0] = np.nan, 0.0, 0.02
    sizes["update"][0, 3, 1, 1], sizes["update"][0, 4] = 0.02, 0.0  # no change of a weight is exact
    notes = _notes("abcde", (8, 16, 32), sizes, np.full((5, 2), 2.0**-7))
    words = (
        "a: not finite at width 32;",
        "b: does not change",
        "c: its change is within rounding",
        "d: its change is w",
    )
    assert len(notes) == 4
    assert all(note.startswith(word) for note, word in zip(notes, words))


@pytest.mark.slow
@pytest.mark.usefixtures("as_users_meet_it")
def test_half_precision_has_no_verdict_and_a_net_without_width_is_refused():
    class Half(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            return nn.Dense(1, dtype=jnp.bfloat16)(nn.relu(nn.Dense(self.width, dtype=jnp.bfloat16)(x)))

    found = coordinate_check(lambda width: (Half(width), optax.adam(2**-13)), tuple(np.array(WIDTHS)), BATCH, seeds=2)
    assert found.verdict == "none"
    assert "within rounding" in str(found)
    with pytest.raises(ValueError, match=r"make: got layers .* of the same sizes at all widths"):
        coordinate_check(lambda width: (stax.serial(stax.Dense(1)), optax.sgd(0.1)), WIDTHS, BATCH, seeds=2)


# role: (start, multiplier, Adam rate) by fan-in and fan-out
RULES = {
    "standard": {
        "input": lambda i, o: (1, 1, 1),
        "hidden": lambda i, o: (i**-0.5, 1, 1),
        "output": lambda i, o: (i**-0.5, 1, 1),
    },
    "muP": {
        "input": lambda i, o: (1, 1, 1),
        "hidden": lambda i, o: (i**-0.5, 1, 1 / i),
        "output": lambda i, o: (1, 1 / i, 1),
    },
    "u-muP": {
        "input": lambda i, o: (1, 1, o**-0.5),
        "hidden": lambda i, o: (1, i**-0.5, i**-0.5),
        "output": lambda i, o: (1, 1 / i, 1),
    },
}


class Linear(nn.Module):
    features: int
    scheme: str
    role: str = "hidden"

    @nn.compact
    def __call__(self, x):
        start, multiplier, _ = RULES[self.scheme][self.role](x.shape[-1], self.features)
        start = nn.initializers.normal(start)
        return multiplier * nn.Dense(self.features, use_bias=False, kernel_init=start, name=self.role)(x)


class LanguageModel(nn.Module):
    """A block of causal attention in heads of 16 and of a perceptron, behind layer norms."""

    width: int
    scheme: str
    vocabulary: int = 32

    @nn.compact
    def __call__(self, tokens):
        def norm(x):
            return nn.LayerNorm(use_scale=False, use_bias=False)(x)

        n, T = tokens.shape
        x = nn.Embed(self.vocabulary, self.width, embedding_init=nn.initializers.normal(1.0))(tokens)
        h = norm(x)
        heads = [Linear(self.width, self.scheme, name=name)(h).reshape(n, T, -1, 16) for name in ("q", "k", "v")]
        mixed = nn.dot_product_attention(*heads, mask=nn.make_causal_mask(jnp.ones((n, T)))).reshape(n, T, self.width)
        x = x + Linear(self.width, self.scheme, name="mix")(mixed)
        up = nn.gelu(Linear(4 * self.width, self.scheme, name="up")(norm(x)))
        x = x + Linear(self.width, self.scheme, name="down")(up)
        return Linear(self.vocabulary, self.scheme, "output", name="unembed")(norm(x))


def scaled_adam(scheme, rate):
    def update(updates, state, params=None):
        def one(path, leaf):
            role = "input" if path[-1].key == "embedding" else path[-2].key
            return -rate * RULES[scheme][role](*leaf.shape)[2] * leaf

        return jax.tree_util.tree_map_with_path(one, updates), state

    return optax.chain(optax.scale_by_adam(), optax.GradientTransformation(lambda params: (), update))


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "rate"), [("standard", 2**-14), ("muP", 2**-8), ("u-muP", 2**-6)])
def test_a_flax_transformer_has_the_exponents_of_its_parametrisation(scheme, rate):
    tokens = jax.random.randint(jax.random.key(3), (4, 5), 0, 32)

    def loss(f, y):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(f, y))

    found = coordinate_check(
        lambda width: (LanguageModel(width, scheme), scaled_adam(scheme, rate)),
        (64, 128, 256, 512),
        Batch(tokens[:, :-1], tokens[:, 1:]),
        loss=loss,
        key=jax.random.key(7),
    )
    assert found.verdict == scheme
    assert found.deviation[scheme] < 0.15
    assert min(value for name, value in found.deviation.items() if name != scheme) > 0.45
    for one, theory in zip(found.activation, found.predicted):
        assert abs(one.exponent - theory.activation) < 0.05


@pytest.mark.slow
def test_command_line_on_a_file_of_ones_own(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import jax.numpy as jnp, optax\nfrom dynamics import stax\nfrom dynamics.types import Batch\n"
        "def make(n):\n    return stax.serial(stax.Dense(n), stax.Relu(), stax.Dense(n), stax.Dense(1)), optax.sgd(1)\n"
        "def check():\n    return dict(make=make, data=Batch(jnp.eye(3), jnp.ones((3, 1))))\n"
    )
    words = ["coordinate-check", "mine:check", "--widths", "32", "128", "512", "--figure", "seen.svg"]
    assert tools_main([*words, "--expect", "NTK"]) == 0
    assert "verdict: NTK" in capsys.readouterr().out
    assert (tmp_path / "seen.svg").stat().st_size > 1000
    assert tools_main([*words, "--expect", "muP"]) == 5
    sys.modules.pop("mine", None)


def test_what_the_command_line_refuses_is_said_in_a_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.py").write_text(
        "value = 3\ndef nothing():\n    return 3\ndef takes(width):\n    return 3\n"
        "def strange():\n    return dict(make=3, data=3, rate=3)\n"
        "from dynamics.types import Batch\ndef zero():\n    return dict(make=zero, data=Batch(3, 3))\n"
    )
    for words, sentence in (
        (["coordinates"], "command: got 'coordinates'; allowed: coordinate-check"),
        (["coordinate-check", "wrong"], "target: got 'wrong'; allowed: MODULE:FUNCTION"),
        (["coordinate-check", "absent.py:f"], "target: got 'absent.py', which is no file; allowed"),
        (["coordinate-check", "absent:f"], "target: got 'absent', which is no module here; allowed"),
        (["coordinate-check", "wrong.py:value"], "target: got 'value' of wrong.py; allowed: a function"),
        (["coordinate-check", "wrong.py:nothing"], "wrong.py:nothing: got int; allowed: dict(make="),
        (["coordinate-check", "wrong.py:nothing", "--figure", "a.pdf"], "--figure: got 'a.pdf'; allowed"),
        (
            ["coordinate-check", "wrong.py:nothing", "--figure", "no/a.png"],
            "--figure: got 'no/a.png'; allowed: a file in",
        ),
        (
            ["coordinate-check", "wrong.py:nothing", "--expect", "mup"],
            "--expect: got 'mup'; allowed: NTK, muP, standard",
        ),
        (["coordinate-check", "wrong.py:takes"], "wrong.py:takes: got a function that takes (width); allowed"),
        (["coordinate-check", "wrong.py:strange"], "wrong.py:strange: got rate; allowed: make, widths, data"),
        (["coordinate-check", "wrong.py:zero", "--steps", "0"], "steps: got 0; allowed"),
        (["coordinate-check", "wrong.py:zero", "--seeds", "0"], "seeds: got 0; allowed"),
        (["coordinate-check", "wrong.py:zero", "--widths"], "widths: got (); allowed: three or more"),
    ):
        assert tools_main(words) == 2
        assert sentence in capsys.readouterr().err
    assert tools_main(["--help"]) == 0
    sys.modules.pop("wrong", None)


@pytest.mark.usefixtures("as_users_meet_it")
@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (stax_ntk, {"widths": (64, 64)}, r"widths: got \(64, 64\); allowed: three or more"),
        (stax_ntk, {"widths": 64}, r"widths: got \(64,\); allowed: three or more"),
        (stax_ntk, {"steps": 0}, "steps: got 0; allowed"),
        (stax_ntk, {"seeds": True}, "seeds: got True; allowed"),
        (
            lambda width: (SMALL, optax.sgd(0.1)),
            {"loss": lambda f, y: (f - y)[:, 0]},
            r"loss: got \(3,\) of a batch; allowed: a scalar",
        ),
        (stax_ntk, {"data": 3}, "data: got int; allowed: Batch"),
        (lambda width: 3, {}, r"make: got int at width 16; allowed: \(model, optimizer\)"),
        (lambda width: (nn.Dropout(0.5), optax.sgd(0.1)), {}, "make: got a module with statistics or dropout"),
        (lambda width: (StatefulModel(*[None] * 3), optax.sgd(0.1)), {}, "make: got a StatefulModel; allowed"),
        (lambda width: (3, optax.sgd(0.1)), {}, "make: got the model int; allowed: a Model"),
        (of_module, {}, "make: got the module MLP; allowed: a function of a key that builds it"),
        (
            lambda width: (
                Model(lambda key, shape: (shape, jnp.ones(3)), lambda w, x: x[:, :1] * w[0]),
                optax.sgd(0.1),
            ),
            {},
            "make: got a model without a weight",
        ),
    ],
)
def test_what_cannot_be_checked_is_named(make, options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        coordinate_check(make, **({"widths": WIDTHS, "data": BATCH, "loss": half_mse} | options))
