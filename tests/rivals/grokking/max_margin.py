"""Other theories of the margin, another penalty, no activation, plain descent."""

from unittest import mock

import optax

from dynamics.experiments.grokking import max_margin as experiment

CONFIG = {"task": ("add 7", "permute 3"), "width": 24, "steps": 1000, "seeds": 3}


def wrong(result):
    theories = {
        "a factor 2": {"max_margin": lambda p: 2 * (2 / 27) ** 0.5 / (p**0.5 * (p - 1))},
        "p in place of p - 1": {"max_margin": lambda p: (2 / 27) ** 0.5 / p**1.5},
        "d^2 in place of d^(5/2)": {"group_margin": lambda d: 2 / (3 * (3 * 6) ** 0.5 * sum(n**2 for n in d[1:]))},
    }
    for name, theory in theories.items():
        with mock.patch.multiple(experiment, **theory):
            yield name, result
    penalised, network = experiment.maximise_margin, experiment.two_layer
    patches = {
        "sum of squares as penalty": {"maximise_margin": lambda config, apply, power: penalised(config, apply, 2.0)},
        "no activation": {"two_layer": lambda width, n, phi: network(width, n, lambda h: h)},
        "plain descent": {"optax": mock.Mock(wraps=optax, adam=lambda rate: optax.sgd(1e-3))},
    }
    for name, patch in patches.items():
        with mock.patch.multiple(experiment, **patch):
            yield name, experiment.run(result.config)
