"""Watching loops that are not ours: readings are the dense values, the budget holds, a folder is a durable run."""

import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from threading import Thread

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from jax.flatten_util import ravel_pytree
from programs.own_loops import cnn_loop, transformer_loop

from dynamics import models, observe
from dynamics.losses import half_mse
from dynamics.observe.loop_state import loop_state
from dynamics.observe.watch import Cost, Reader, Watch
from dynamics.runs import BadInput, load
from dynamics.runs.report.live import server
from dynamics.types import Batch, Objective

X, Y = jax.random.normal(jax.random.key(0), (12, 3)), jnp.ones((12, 1))
L = Objective(lambda w, x: jnp.tanh(x @ w), half_mse)
W = jnp.full((3, 1), 0.1)


def eigenvalues(L, params, batch):
    flat, unravel = ravel_pytree(params)
    return jnp.linalg.eigvalsh(jax.hessian(lambda v: L(unravel(v), batch))(flat))


def test_an_nnx_cnn_with_batch_norm_and_dropout_reads_its_dense_values():
    x, y = jax.random.normal(jax.random.key(1), (64, 8, 8, 1)), jnp.arange(64) % 3
    seen = [observe.loss(), observe.sharpness(num_matvecs=30), observe.preconditioned_sharpness(num_matvecs=30)]
    look, L, model, optimizer = cnn_loop(x, y, 5, seen, width=1, every=4)
    assert look.record.step.tolist() == [0, 4]
    look(8, model, optimizer)
    state, batch = loop_state(model, optimizer), Batch(x[:64], y[:64])
    frozen = L.at(state.model_state)
    last = {name: value[-1] for name, value in look.record.values.items()}
    np.testing.assert_allclose(last["loss"], frozen(state.params, batch), rtol=1e-5)
    np.testing.assert_allclose(last["sharpness"], eigenvalues(frozen, state.params, batch)[-1], rtol=1e-3)
    nu = [leaf for leaf in jax.tree.leaves(state.opt_state[0].nu)]
    root = ravel_pytree([(1 - 0.9**5) * (jnp.sqrt(leaf / (1 - 0.999**5)) + 1e-8) for leaf in nu])[0] ** -0.5
    flat, unravel = ravel_pytree(state.params)
    H = jax.hessian(lambda v: frozen(unravel(v), batch))(flat)
    np.testing.assert_allclose(
        last["preconditioned_sharpness"], jnp.linalg.eigvalsh(root[:, None] * H * root)[-1], rtol=1e-3
    )


@pytest.mark.slow
def test_a_transformer_on_tokens_reads_its_dense_values():
    tokens = jax.random.randint(jax.random.key(1), (20, 6), 0, 5).at[:, 4:].set(-1)
    tokens = jnp.concatenate([jnp.abs(tokens[:, :-1]), tokens[:, -1:]], 1)  # the last label is to be ignored
    seen = [observe.loss(), observe.sharpness(num_matvecs=30), observe.hessian_density(probes=40), observe.ntk()]
    look, L, state = transformer_loop(tokens, 5, seen, width=4, vocabulary=5, every=4)
    look(8, state)
    batch = Batch(tokens[:16, :-1], tokens[:16, 1:])
    found, last = eigenvalues(L, state.params, batch), {name: value[-1] for name, value in look.record.values.items()}
    np.testing.assert_allclose(last["loss"], L(state.params, batch), rtol=1e-5)
    np.testing.assert_allclose(last["sharpness"], found[-1], rtol=1e-3)
    assert abs(last["hessian_trace"] - found.sum()) < 4 * last["hessian_trace_error"]
    J = jax.jacobian(lambda p: L.apply(p, batch.x))(state.params)
    squares = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(J))
    np.testing.assert_allclose(last["ntk_trace"], squares / 25, rtol=1e-3)  # a mean over outputs [5, 5]


class Model(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.BatchNorm(use_running_average=not train)(nn.Dense(2)(x))


class State(TrainState):
    batch_stats: dict = None
    rng: jax.Array = None


def test_train_states_and_equinox_modules_hand_over_what_their_models_take():
    model = Model()
    held = model.init(jax.random.key(0), X)
    state = State.create(
        apply_fn=model.apply, params=held["params"], tx=optax.sgd(0.1), batch_stats=held["batch_stats"],
        rng=jax.random.key(1),
    )  # fmt: skip
    given = loop_state(state)
    assert given.model_state.keys() == {"batch_stats"}
    assert given.opt_state is state.opt_state
    norm = Objective(models.from_flax(model), half_mse)
    look = observe.watch(norm, [observe.loss()], Batch(X, jnp.ones((12, 2))))
    np.testing.assert_allclose(look(0, state)["loss"], half_mse(model.apply(held, X), jnp.ones((12, 2))), rtol=1e-6)
    with pytest.raises(TypeError, match="model_state: got none; allowed for a model with batch statistics"):
        observe.watch(norm, [observe.loss()], Batch(X, jnp.ones((12, 2))))(0, held["params"])

    module = eqx.nn.MLP(3, 1, 4, 1, key=jax.random.key(2))
    bridge = models.from_equinox(lambda key: eqx.nn.MLP(3, 1, 4, 1, key=key))
    readings = observe.watch(Objective(bridge.apply, half_mse), [observe.loss()], Batch(X, Y))(0, module)
    np.testing.assert_allclose(readings["loss"], half_mse(jax.vmap(module)(X), Y), rtol=1e-6)


@pytest.mark.usefixtures("as_users_meet_it")
def test_what_is_no_state_of_a_loop_is_refused():
    look = observe.watch(L, [observe.loss()], Batch(X, Y))
    donated = jnp.full((3, 1), 0.1)
    donated.delete()
    with pytest.raises(TypeError, match=r"params: got arrays that were donated \(params\); allowed: what the update"):
        look(0, donated)
    with pytest.raises(TypeError, match="params: got str at params\\['w'\\]; allowed: a tree of arrays, a flax Train"):
        observe.watch(L, [observe.loss()], Batch(X, Y))(0, {"w": "x"})
    with pytest.raises(
        ValueError, match=r"budget: got .05 beside every=2|budget: got 0.05 beside every=2; allowed: one"
    ):
        observe.watch(L, [observe.loss()], Batch(X, Y), budget=0.05, every=2)
    for wrong in (0.0, 1.0, 5, True, float("nan"), "5%"):
        with pytest.raises(ValueError, match=r"budget: got .*; allowed: a share of the loop's time > 0 and < 1"):
            observe.watch(L, [observe.loss()], Batch(X, Y), budget=wrong)
    with pytest.raises(TypeError, match="optimizer: got float; allowed: an optax transformation"):
        observe.watch(L, [observe.loss()], Batch(X, Y), optimizer=0.1)
    with pytest.raises(BadInput, match="to: got 3; allowed: a folder, 'tensorboard', 'wandb', a Tracker"):
        observe.watch(L, [observe.loss()], Batch(X, Y), to=3)
    with pytest.raises(
        TypeError, match=r"opt_state: got none; allowed for a preconditioner: watch\(step, params, opt_st"
    ):
        observe.watch(L, [observe.preconditioned_sharpness()], Batch(X, Y), optimizer=optax.adam(0.1))(0, W)


class Costly(Reader):
    """A reader on a clock of its own."""

    def __init__(self, clock, name, seconds):
        self.clock, self.names, self.seconds, self.cost, self.at, self.steps = clock, [name], seconds, Cost(), 0.0, []

    def read(self, step, state, batch):
        self.clock[0] += self.seconds
        self.steps.append(step)
        self.at = self.clock[0]
        self.cost = Cost(self.cost.readings + 1, self.cost.seconds + self.seconds, self.seconds)
        return {self.name: np.zeros(())}


def test_the_budget_holds_and_cheap_readings_come_more_often(monkeypatch):
    clock, told = [0.0], []
    monkeypatch.setattr(sys.modules["dynamics.observe.watch"].time, "perf_counter", lambda: clock[0])
    readers = [Costly(clock, "cheap", 0.01), Costly(clock, "dear", 1.0), Costly(clock, "too dear", 40.0)]
    look = Watch(readers[:2], None, None, 0.05, [], told.append)
    for step in range(20_000):
        look(step, W)
        clock[0] += 0.01
    cheap, dear = (np.array(reader.steps) for reader in readers[:2])
    assert 0.04 < look.share <= 0.05 + 1.0 / clock[0]
    assert len(cheap) > 50 * len(dear) > 50
    assert np.diff(cheap).max() < 45  # evenly: every .01 / .025 s, but for half of that after a dear one
    assert np.mean(np.diff(cheap) >= 20) > 0.95
    look = Watch(readers[2:], None, None, 0.05, [], told.append)
    for step in range(10_000):
        look(step, W)
        clock[0] += 0.01
    assert readers[2].steps == [0]
    assert told == ["a reading of too dear takes 40.0 s: at 5.00% of the loop's time one every 800 s"]


def test_a_folder_is_a_durable_run_that_is_taken_up_again(tmp_path, capsys):
    with observe.watch(L, [observe.loss(), observe.sharpness()], Batch(X, Y), every=2, to=tmp_path / "mine") as look:
        for step in range(5):
            look(step, W - 0.1 * step)
    run = load(tmp_path / "mine")
    assert run.status == "finished"
    assert {label: record.step.tolist() for label, record in run.records.items()} == {
        "loss": [0, 2, 4],
        "sharpness": [0, 2, 4],
    }
    np.testing.assert_array_equal(run.records["loss"].values["loss"], look.record.values["loss"])
    assert "figures" in (tmp_path / "mine" / "report.html").read_text()
    with pytest.raises(BadInput, match=r"holds loss up to step 4, at step 0; allowed: a later step, or .*mine-2"):
        observe.watch(L, [observe.loss(), observe.sharpness()], Batch(X, Y), every=2, to=tmp_path / "mine")(0, W)
    assert load(tmp_path / "mine").status == "finished"
    with observe.watch(L, [observe.loss(), observe.sharpness()], Batch(X, Y), every=2, to=tmp_path / "mine") as look:
        look(6, W)
    assert load(tmp_path / "mine").records["loss"].step.tolist() == [0, 2, 4, 6]
    assert "report.html" in capsys.readouterr().err


LOOP = """
import sys, jax.numpy as jnp, numpy as np, os
from dynamics import observe, losses
from dynamics.types import Batch, Objective
L = Objective(lambda w, x: x @ w, losses.half_mse)
look = observe.watch(L, [observe.loss()], Batch(jnp.ones((4, 2)), jnp.ones((4, 1))), to=sys.argv[1])
look._sinks[0]._last = -1e9  # commits at every reading
for step in range(4):
    look(step, jnp.full((2, 1), .1 * step))
    look._sinks[0]._last = -1e9
if sys.argv[2] == "killed": os._exit(9)
if sys.argv[2] == "failed": raise SystemExit(1 / 0)
"""


@pytest.mark.parametrize(("how", "status"), [("killed", "running"), ("failed", "interrupted"), ("ended", "finished")])
def test_a_loop_that_never_closes_leaves_what_it_read(tmp_path, how, status):
    subprocess.run([sys.executable, "-c", LOOP, str(tmp_path / "run"), how], capture_output=True, check=False)
    run = load(tmp_path / "run")
    assert run.status == status
    assert run.records["loss"].step.tolist() == [0, 1, 2, 3]
    assert (tmp_path / "run" / "report.html").exists() == (how != "killed")


@pytest.fixture
def live(tmp_path):
    """The address of a live page over two runs, beside a file that it must not show."""
    (tmp_path / "secret.txt").write_text("not for you")
    (tmp_path / "runs").mkdir()
    for name in ("one", "two"):
        with observe.watch(L, [observe.loss()], Batch(X, Y), to=tmp_path / "runs" / name, quiet=True) as look:
            look(3, W)
    with server(tmp_path / "runs", 0) as made:
        Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_address[1]}"
        made.shutdown()


def answer(address, **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=20) as page:
            return page.status, page.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_live_page_overlays_runs_and_shows_no_file(live):
    code, page = answer(f"{live}/?run=one&run=two&scale=log")
    assert code == 200
    assert page.count(" checked") == 3
    assert "data:image/svg+xml" in page
    assert answer(f"{live}/report?run=one")[0] == 200
    for path in (
        "secret.txt",
        "../secret.txt",
        "%2e%2e/secret.txt",
        "one/run.sqlite",
        "one/report.html",
        "//etc/passwd",
    ):
        assert answer(f"{live}/{path}") == (404, "not found")
        assert answer(f"{live}/report?run={path}") == (404, "no such run")
    assert answer(live, Host="evil.example:80")[0] == 403
    assert answer(f"{live}/?run=%3Cscript%3E")[1].count("<script>") == 1
    with pytest.raises(BadInput, match="root: got 'nothere'; allowed: an existing folder of runs"):
        server(Path("nothere"), 0)
