"""What a newcomer gets wrong: every message names the argument, what came, and what to write instead."""

import inspect

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynamics import evolve, observe, operators
from dynamics.evolve import descent, every, gradient_descent, gradient_flow, kernel_descent, log_steps, simulate
from dynamics.losses import half_mse
from dynamics.models import from_equinox, from_flax
from dynamics.types import Batch, Data, Objective, View

KEY = jax.random.key(0)
X = jnp.linspace(-1.0, 1.0, 12).reshape(6, 2)
GOOD = Batch(X, X[:, :1])
W = jnp.ones((2, 1))


def apply(w, x):
    return x @ w


L = Objective(apply, half_mse)
TRAINING = gradient_descent(L, 0.1)


def run(data=GOOD, *, f=apply, loss=half_mse, steps=2, key=KEY, train=(), test=()):
    return simulate(gradient_descent(Objective(f, loss), 0.1), W, data, train=train, test=test, steps=steps, key=key)


def read(observable, objective=L):
    view = View(W, GOOD, objective)
    return observable.update(observable.init(view), view)


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.Dropout(0.5, deterministic=False)(x))


CASES = {
    "no targets": (lambda: run(Batch(X, None)), "y: got NoneType; allowed: an array"),
    "rows differ": (lambda: run(Batch(X, X[:3, :1])), r"y: got shape \(3, 1\); allowed: the shape of f, \(6, 1\)"),
    "names as targets": (lambda: run(Batch(X, np.array(["cat", "dog"] * 3))), "data.y: got <U3; .*one_hot"),
    "objects as inputs": (lambda: run(Batch(np.full((6, 2), None), X)), "data.x: got object; allowed: an array"),
    "lists": (lambda: run(Batch(X.tolist(), X[:, :1])), "data.x: got a list; allowed: an array"),
    "no samples": (lambda: run(Batch(X[:0], X[:0, :1])), r"data.x: got shape \(0, 2\); .*at least one sample"),
    "several outputs": (lambda: run(f=lambda w, x: (x @ w, x)), "f: got tuple; .*a model returns one array"),
    "arguments swapped": (lambda: run(f=half_mse, loss=apply), "shape"),
    "loss a vector": (lambda: run(loss=lambda f, y: (f - y) ** 2), r"loss: got shape \(6, 1\); allowed: a scalar"),
    "loss a word": (lambda: run(loss="mse"), "loss: got 'mse'; allowed: a function"),
    "penalty a number": (
        lambda: gradient_descent(Objective(apply, half_mse, 0.1), 0.1),
        "penalty: got 0.1; allowed: a function",
    ),
    "objective a pair": (
        lambda: gradient_descent((apply, half_mse), 0.1),
        r"objective: got tuple; allowed: Objective\(apply, loss\), or Objective.of",
    ),
    "data an array": (lambda: run(X), r"data: got an array; allowed: Batch\(x, y\)"),
    "data an array, in flow": (
        lambda: simulate(gradient_flow(L, 0.1), W, X, steps=1),
        r"batch: got an array; allowed: Batch\(x, y\).*Objective.of",
    ),
    "rate nan": (lambda: gradient_descent(L, float("nan")), "learning_rate: got nan; allowed: a finite"),
    "rate a word": (lambda: gradient_descent(L, "0.1"), "learning_rate: got '0.1'; allowed"),
    "rate for optimizer": (lambda: descent(L, 0.1), "optimizer: got 0.1; allowed: an optax"),
    "optimizer not made": (lambda: descent(L, optax.adam), "the function adam; call it, as in optax"),
    "kernel descent with a penalty": (
        lambda: kernel_descent(Objective(apply, half_mse, jnp.sum), optax.sgd(0.1)),
        r"objective: got a penalty, .*; allowed: Objective\(apply, loss\)",
    ),
    "whole params": (lambda: TRAINING.init({"w": jnp.ones((2, 1), int)}), r"params\['w'\]: got int\d+; allowed: float"),
    "params a number": (lambda: TRAINING.init(3), "params: got int"),
    "no params": (lambda: TRAINING.init(None), "params: got NoneType without arrays"),
    "key a number": (lambda: run(key=0), r"key: got 0; allowed: a PRNG key, e.g. jax.random.key\(0\)"),
    "steps a word": (lambda: run(steps="3"), "steps: got '3'; allowed: an integer"),
    "steps too many": (lambda: run(steps=2**31), "steps: got 2147483648; .* below 2\\^31"),
    "no steps": (lambda: simulate(TRAINING, W, GOOD), "simulate: got a call without steps="),
    "every 0": (lambda: every(0, 10), "every: got interval=0"),
    "every 2.5": (lambda: every(2.5, 10), "every: got interval=2.5, .*integers"),
    "an objective for dynamics": (
        lambda: simulate(L, W, GOOD, steps=2),
        "dynamics: got Objective; allowed: a Dynamics, e.g. gradient_descent",
    ),
    "factory for dynamics": (lambda: simulate(gradient_descent, W, GOOD, steps=2), "dynamics: got function; allowed"),
    "observable gives a number": (lambda: run(train=lambda w, batch: jnp.sum(w)), "observable: got .*; allowed: a"),
    "factory not called": (lambda: run(train=[observe.weight_ranks]), "factory weight_ranks; allowed: what it"),
    "factory within joined": (lambda: observe.joined(observe.sharpness), r"what it makes, observe.sharpness\("),
    "factory within seldom": (lambda: observe.seldom(observe.ntk, 2), r"allowed: what it makes, observe.ntk\("),
    "observable a number": (lambda: run(train=3.0), "observable: got float; allowed: an Observable"),
    "observable a word": (lambda: run(train="loss"), "observable: got str; allowed: an Observable"),
    "same reading twice": (
        lambda: run(train=[observe.loss(), observe.loss()]),
        r"observable: got the reading 'loss' twice; allowed: once; use prefixed\(",
    ),
    "no test set": (
        lambda: run(test=observe.weight_ranks()),
        r"test: got Batch; allowed: Data\(train, test\)",
    ),
    "empty test set": (
        lambda: run(Data(GOOD, None), test=observe.weight_ranks()),
        r"test: got Data without test; allowed: Data\(train, test\)",
    ),
    "no objective": (
        lambda: simulate(evolve.ode(lambda x, data: -x, 0.1), W, GOOD, train=observe.sharpness(), steps=1),
        "objective: got none; allowed for sharpness: a dynamics or a View with an Objective",
    ),
    "no preconditioner": (
        lambda: simulate(gradient_flow(L, 0.1), W, GOOD, train=observe.preconditioned_sharpness(), steps=1),
        r"knows no preconditioner; allowed: .*preconditioned_sharpness\(opt_state -> P\)",
    ),
    "no state for a preconditioner": (
        lambda: read(observe.preconditioned_sharpness()),
        "knows no preconditioner; allowed: the run of gradient_descent, adam",
    ),
    "seldom never": (lambda: observe.seldom(observe.loss(), 0), "interval: got 0; allowed: an integer >= 1"),
    "one output, flat": (
        lambda: read(observe.ntk(), Objective(lambda w, x: (x @ w)[:, 0], half_mse)),
        r"f: got shapes \[\(6,\)\]; allowed: .*f\[:, None\]",
    ),
    "model for function": (
        lambda: gradient_descent(Objective(from_flax(nn.Dense(1)), half_mse), 0.1),
        "apply: got a Model; allowed: its function, model.apply",
    ),
    "module for function": (
        lambda: read(observe.sharpness(), Objective(nn.Dense(1), half_mse)),
        "got the module Dense; .*from_flax",
    ),
    "dropout without a switch": (
        lambda: from_flax(Dropped()).init(KEY, (-1, 2)),
        "module: got Dropped, which draws random numbers .*allowed: .* `train` or `deterministic`",
    ),
    "equinox dropout": (
        lambda: from_equinox(lambda key: eqx.nn.Dropout(0.5)).init(KEY, (-1, 2)),
        "make: got a module that draws random numbers; allowed: dropout with inference=True",
    ),
    "equinox module, made": (
        lambda: from_equinox(eqx.nn.Linear(2, 1, key=KEY)),
        r"got the module Linear; .*lambda key: Linear\(",
    ),
}  # fmt: skip


@pytest.mark.usefixtures("as_users_meet_it")
@pytest.mark.parametrize("case", CASES)
def test_the_message_says_what_to_change(case):
    wrong, words = CASES[case]
    with pytest.raises((TypeError, ValueError), match=words):
        wrong()


ROOMS = {"observe": observe, "evolve": evolve}
OPERATORS = ("hessian", "gauss_newton", "fisher", "gradient_covariance", "ntk")
AS_BEFORE = {"joined", "prefixed", "since_start"}
NEW = {"slice", "watch", "weight_matching"}


def renewed():
    """``(room, name)`` of every function that takes an Objective or gives an Observable: in 0.1, of model and loss."""
    found = [("operators", name) for name in OPERATORS]
    for room, module in ROOMS.items():
        for name in module.__all__:
            function = getattr(module, name)
            if inspect.isfunction(function):
                signature = inspect.signature(function)
                first = str(next((p.annotation for p in signature.parameters.values()), ""))
                if first.startswith(("Objective", "OperatorOf")) or str(signature.return_annotation) == "Observable":
                    found.append((room, name))
    return [(room, name) for room, name in found if name not in AS_BEFORE | NEW]


@pytest.mark.usefixtures("as_users_meet_it")
@pytest.mark.parametrize(("room", "name"), [pair for pair in renewed() if pair[1] != "seldom"])
def test_a_call_in_the_form_of_0_1_says_the_new_one(room, name):
    """``name(apply, loss, ...)`` of every name that takes options or an Objective now: one sentence, its remedy."""
    function = getattr({"operators": operators, **ROOMS}[room], name)
    for old in (apply, from_flax(nn.Dense(1)), from_flax(Dropped())):
        with pytest.raises(TypeError) as caught:
            function(old, half_mse, W, GOOD)
        said = str(caught.value)
        assert said.startswith(f"{name}: got a {type(old).__name__} where 0.1 took apply and loss; allowed: ")
        assert f"{name}(" in said
        assert said.endswith("with L = Objective(apply, loss) said once, where the dynamics is made")


def test_what_is_renewed_is_found():
    assert {("observe", "sharpness"), ("evolve", "linearized"), ("observe", "density")} <= set(renewed())
    movers = {"descent", "gradient_descent", "adam", "gradient_flow", "central_flow", "adaptive_central_flow"}
    assert {name for room, name in renewed() if room == "evolve"} >= movers | {"kernel_descent"}


FORMS_OF_0_1 = {
    "simulate": (
        lambda: simulate(TRAINING, lambda s, d: {}, TRAINING.init(W), GOOD, 2, KEY, [0]),
        r"simulate: got .* form of 0.1; allowed: simulate\(gradient_descent\(L, .05\), params, data, train=",
    ),
    "simulate, keywords": (
        lambda: simulate(TRAINING, observe.loss(), TRAINING.init(W), GOOD, steps=2, key=KEY),
        "simulate: got a call .* in the form of 0.1",
    ),
    "ntk alone": (lambda: observe.ntk(apply), r"ntk: got a function where 0.1 took apply and loss; allowed: ntk\(\)"),
    "scores": (lambda: observe.scores(apply, loss=half_mse), r"allowed: scores\(name=function\)"),
    "seldom": (
        lambda: observe.seldom(observe.loss(), observe.ntk(), 3),
        r"seldom: got a cheap and a costly observable, as in 0.1; allowed: \[cheap, seldom\(costly, interval\)\]",
    ),
    "operator of a point": (
        lambda: observe.top_eigenvalue(lambda p, b: operators.hessian(L, p, b), "lowest"),
        r"top_eigenvalue: got an operator of \(p, b\); allowed: of \(view\)",
    ),
    "density of a point": (
        lambda: observe.density(lambda p, b: operators.hessian(L, p, b), "h"),
        r"density: got an operator of \(p, b\); allowed: of \(view\)",
    ),
    "densities of a point": (
        lambda: observe.layer_densities(lambda p, b, where: operators.hessian(L, p, b, where=where), "h"),
        r"layer_densities: got an operator of \(p, b, where\); allowed: of \(objective, params, batch, where\)",
    ),
}


@pytest.mark.usefixtures("as_users_meet_it")
@pytest.mark.parametrize("case", FORMS_OF_0_1)
def test_other_forms_of_0_1(case):
    wrong, words = FORMS_OF_0_1[case]
    with pytest.raises(TypeError, match=words):
        wrong()


NAN, L_OF_NUMBERS = float("nan"), Objective(lambda w, x: x @ w, half_mse)
NO_NUMBERS = {
    "log_steps": lambda: log_steps(NAN),
    "log_steps, endless": lambda: log_steps(float("inf")),
    "every": lambda: every(NAN, 10),
    "momentum": lambda: gradient_descent(L_OF_NUMBERS, 0.1, momentum=NAN),
    "momentum of 2": lambda: gradient_descent(L_OF_NUMBERS, 0.1, momentum=2.0),
    "learning_rate": lambda: gradient_descent(L_OF_NUMBERS, NAN),
    "dt": lambda: gradient_flow(L_OF_NUMBERS, NAN),
    "dt of a flow": lambda: gradient_flow(L_OF_NUMBERS, -1.0),
    "dt of a field": lambda: evolve.ode(lambda state, data: state, NAN),
    "dt of descent": lambda: descent(L_OF_NUMBERS, optax.sgd(0.1), dt=NAN),
    "b1": lambda: evolve.adam(L_OF_NUMBERS, 0.1, b1=NAN),
    "b2": lambda: evolve.adam(L_OF_NUMBERS, 0.1, b2=2.0),
    "eps": lambda: evolve.adam(L_OF_NUMBERS, 0.1, eps=-1.0),
    "eps of a flow": lambda: evolve.adaptive_central_flow(L_OF_NUMBERS, 0.1, eps=NAN),
}


@pytest.mark.usefixtures("as_users_meet_it")
@pytest.mark.parametrize("name", NO_NUMBERS)
def test_what_is_no_number_in_its_range_is_refused(name):
    with pytest.raises(ValueError, match=rf"^{name.split()[0].strip(',')}: got .*; allowed: "):
        NO_NUMBERS[name]()
