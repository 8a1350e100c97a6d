"""Watching loops that are not ours: readings are the dense values, the budget holds, a folder is a durable run."""

import os
import re
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

from dynamics import models, observe, operators
from dynamics.losses import half_mse
from dynamics.observe.loop_state import loop_state
from dynamics.observe.watch import Cost, Reader, Watch, _dynamics
from dynamics.runs import BadInput, RunError, load
from dynamics.runs.report.live import Live, server
from dynamics.runs.trackers import Tracker
from dynamics.types import Batch, Objective

X, Y = jax.random.normal(jax.random.key(0), (12, 3)), jnp.ones((12, 1))
L = Objective(lambda w, x: jnp.tanh(x @ w), half_mse)
W = jnp.full((3, 1), 0.1)


def eigenvalues(L, params, batch):
    flat, unravel = ravel_pytree(params)
    return jnp.linalg.eigvalsh(jax.hessian(lambda v: L(unravel(v), batch))(flat))


def test_an_nnx_cnn_with_batch_norm_and_dropout_reads_its_dense_values():
    x, y = jax.random.normal(jax.random.key(1), (64, 8, 8, 1)), jnp.arange(64) % 3
    seen = [observe.loss(), observe.preconditioned_sharpness(num_matvecs=30)]
    look, L, model, optimizer = cnn_loop(x, y, 5, seen, width=1, every=4)
    assert look.record.step.tolist() == [0, 4]
    look(8, model, optimizer)
    state, batch = loop_state(model, optimizer), Batch(x[:64], y[:64])
    frozen = L.at(state.model_state)
    last = {name: value[-1] for name, value in look.record.values.items()}
    nu = jax.tree.leaves(state.opt_state[0].nu)

    @jax.jit
    def dense(params, nu):
        root = ravel_pytree([(1 - 0.9**5) * (jnp.sqrt(leaf / (1 - 0.999**5)) + 1e-8) for leaf in nu])[0] ** -0.5
        flat, unravel = ravel_pytree(params)
        H = jax.hessian(lambda v: frozen(unravel(v), batch))(flat)
        return frozen(params, batch), jnp.linalg.eigvalsh(root[:, None] * H * root)[-1]

    loss, sharpness = dense(state.params, nu)
    np.testing.assert_allclose(last["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(last["preconditioned_sharpness"], sharpness, rtol=1e-3)


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


@pytest.mark.usefixtures("as_users_meet_it")
@pytest.mark.parametrize(
    ("at", "refused"),
    [
        ((1.5, W), "step: got 1.5; allowed: an integer of 32 bits, outside jit"),
        ((2**31, W), "step: got 2147483648; allowed: an integer"),
        ((0, {}), "params: got no arrays; allowed: those of the model"),
        ((0, W, "adam"), "opt_state: got str at opt_state; allowed: optax's state or an nnx.Optimizer"),
    ],
)
def test_a_call_with_what_cannot_be_read_is_refused(at, refused):
    with pytest.raises((TypeError, ValueError), match=re.escape(refused)):
        observe.watch(L, observe.loss(), Batch(X, Y))(*at)


@pytest.mark.usefixtures("as_users_meet_it")
def test_a_traced_call_and_donated_arrays_are_refused():
    look = observe.watch(L, observe.loss(), Batch(x := X + 0, Y))
    with pytest.raises(ValueError, match="step: got a traced value; allowed: an integer"):
        jax.jit(lambda step: look(step, W))(0)
    with pytest.raises(TypeError, match=r"params: got a traced value \(params\); allowed: a call outside jit"):
        jax.jit(lambda params: look(0, params))(W)
    opt_state = optax.adam(0.1).init(W)
    opt_state[0].nu.delete()
    with pytest.raises(TypeError, match=r"opt_state: got arrays that were donated \(opt_state\[0\].nu\)"):
        look(1, W, opt_state)
    x.delete()
    with pytest.raises(TypeError, match=r"batch: got arrays that were donated \(batch.x\); allowed: arrays that no"):
        look(2, W)


@pytest.mark.usefixtures("as_users_meet_it")
@pytest.mark.parametrize(
    ("read", "refused"),
    [
        (lambda p, b: {}, "observable: got no reading from it; allowed: one at least"),
        (lambda p, b: {0: p}, "reading: got the name 0; allowed: a string"),
        (lambda p, b: {"a": {"b": p}}, "reading: got dict as 'a'; allowed: an array"),
        (lambda p, b: {"a": jax.random.key(0)}, "reading: got a random key as 'a'; allowed: an array"),
        (observe.ntk_of_state(), "state: got LoopState; allowed for ntk_of_state: kernel_descent's; or ntk()"),
    ],
)
def test_what_is_no_reading_is_refused(read, refused):
    with pytest.raises(TypeError, match=re.escape(refused)):
        observe.watch(L, [read], Batch(X, Y))(0, W)


@pytest.mark.usefixtures("as_users_meet_it")
def test_readings_keep_their_shapes_and_a_watch_ends_when_it_is_closed():
    look = observe.watch(L, [lambda params, batch: {"w": params}], Batch(X, Y))
    look(0, W)
    with pytest.raises(ValueError, match=r"shapes {'w': \(3, 2\)}; allowed: those of its first ones, {'w': \(3, 1\)}"):
        look(1, jnp.ones((3, 2)))
    look(2, W)
    assert look.record.step.tolist() == [0, 2]
    look.close()
    look.close()
    with pytest.raises(ValueError, match=r"step: got 3 after close\(\); allowed: a new watch"):
        look(3, W)
    with pytest.raises(ValueError, match="observables: got none; allowed: one at least"):
        observe.watch(L, [], Batch(X, Y))


def test_a_batch_whose_memory_the_loader_uses_again_stays_what_it_was():
    x = np.array(X)
    look = observe.watch(L, [observe.loss()], Batch(x, np.array(Y)))
    first = look(0, W)["loss"]
    x *= 5
    assert look(1, W)["loss"] == first


def test_what_is_remembered_of_donated_parameters_stays():
    look = observe.watch(L, [observe.movement(), lambda params, batch: {"w": params}], Batch(X, Y))
    update, params = jax.jit(lambda w: w + 1.0, donate_argnums=0), W + 0
    for step in range(3):
        look(step, params)
        params = update(params)
    np.testing.assert_allclose(look.record.values["w"][:, 0, 0], [0.1, 1.1, 2.1], rtol=1e-6)
    np.testing.assert_allclose(look.record.values["weight_change"], [0, 10, 20], rtol=1e-5)


def test_an_equinox_module_of_moments_is_a_preconditioner_and_needs_all_of_them():
    module, optimizer = eqx.nn.Linear(3, 1, key=jax.random.key(0)), optax.adam(0.1)
    linear, P = Objective(lambda params, x: jax.vmap(params)(x), half_mse), _dynamics(L, optimizer).preconditioner
    gradient = jax.grad(linear)(module, Batch(X, Y))
    opt_state = optimizer.update(gradient, optimizer.init(module))[1]
    H = operators.hessian(linear, module, Batch(X, Y))
    v, root = jnp.arange(4.0), (jnp.abs(ravel_pytree(gradient)[0]) * 0.1) ** -0.5  # after one step: (1 - b1) |g|
    found = operators.preconditioned(H, P(loop_state(module, opt_state))).matvec(v)
    np.testing.assert_allclose(found, root * H.matvec(root * v), rtol=1e-3)
    with pytest.raises(ValueError, match=r"opt_state: got no moments of params\S+; allowed: this optimizer's over all"):
        P(loop_state(module, optax.sgd(0.1).init(module)))


def test_complex_parameters_in_a_loop_of_ones_own_have_a_preconditioner_or_a_sentence():
    """Of optax's split state it is that of both parts; what moves a complex number as one is refused."""
    objective = Objective(lambda w, x: jnp.real(x @ w * (1 - 1j)), half_mse)
    w, optimizer = jnp.full((3, 1), 0.1 + 0.2j), optax.adam(0.1)

    def read(state):
        seen = [observe.preconditioned_sharpness(num_matvecs=6)]
        return observe.watch(objective, seen, Batch(X, Y), optimizer=optimizer)(0, w, state)

    with pytest.raises(
        ValueError, match=r"opt_state: got tuple of complex parameters; allowed: that of optax\.contrib"
    ):
        read(optimizer.init(w))
    split = optax.contrib.split_real_and_imaginary(optimizer)
    slope = jnp.conj(jax.jit(jax.grad(objective))(w, Batch(X, Y)))
    _, state = jax.jit(split.update)(slope, split.init(w), w)
    nu = state.inner_state[0].nu
    p = np.concatenate([np.ravel(0.1 * (np.sqrt(leaf / 1e-3) + 1e-8)) for leaf in jax.tree.leaves(nu)])
    H = jax.jit(jax.hessian(lambda v: objective((v[:3] + 1j * v[3:])[:, None], Batch(X, Y))))(
        np.concatenate([w.real, w.imag])[:, 0]
    )
    expected = np.linalg.eigvalsh(H / np.sqrt(np.outer(p, p)))[-1]
    np.testing.assert_allclose(read(state)["preconditioned_sharpness"], expected, rtol=1e-3)


def test_what_takes_long_is_said_before_it_begins(monkeypatch, capsys):
    reader = sys.modules["dynamics.observe.reader"]
    monkeypatch.setattr(reader, "TOLD", 0.0)
    observe.watch(L, [observe.loss()], Batch(X, Y))(0, W)
    told = capsys.readouterr().err
    assert "watch: preparing the next observable: its program is traced, once" in told
    assert "watch: compiling loss: once, about " in told
    observe.watch(L, [observe.loss()], Batch(X, Y), quiet=True)(0, W)
    assert capsys.readouterr().err == ""


KEPT = """
import jax, jax.numpy as jnp
jax.jit(jnp.sin)(1.0)  # settles that there is no cache
from dynamics.compiled import cache_folder, keep_compiled
keep_compiled()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: jnp.cos(x) + 1)(1.0)
print(any(cache_folder().iterdir()))
"""


def test_what_is_compiled_is_kept_also_where_something_was_compiled_before(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", KEPT], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


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
    again = observe.watch(L, [observe.loss(), observe.sharpness()], Batch(X, Y), every=2, to=tmp_path / "mine")
    with (
        pytest.raises(BadInput, match=r"holds loss up to step 4, at step 0; allowed: a later step, or .*mine-2"),
        again,
    ):
        again(0, W)
    assert load(tmp_path / "mine").status == "finished"
    with observe.watch(L, [observe.loss(), observe.sharpness()], Batch(X, Y), every=2, to=tmp_path / "mine") as look:
        look(6, W)
    assert load(tmp_path / "mine").records["loss"].step.tolist() == [0, 2, 4, 6]
    assert "report.html" in capsys.readouterr().err


def test_a_folder_in_use_or_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(
        BadInput, match=r"a folder with 'config.json' in it; allowed: a new or an empty folder, such as"
    ):
        observe.watch(L, observe.loss(), Batch(X, Y), to=tmp_path)
    assert (tmp_path / "config.json").read_text() == "mine"
    with pytest.raises(BadInput, match="to: got 3; allowed"):
        observe.watch(L, observe.loss(), Batch(X, Y), to=[tmp_path / "run", 3])
    look = observe.watch(L, observe.loss(), Batch(X, Y), to=tmp_path / "run", quiet=True)  # the first let go of it
    with pytest.raises(BadInput, match=r"which another watch of this process writes to; allowed: after its close\(\)"):
        observe.watch(L, observe.loss(), Batch(X, Y), to=tmp_path / "run")
    look.close()
    for name in ("a\0b", "", "x" * 300):
        with pytest.raises(RunError, match=r"to: got|cannot be made: File name too long"):
            observe.watch(L, observe.loss(), Batch(X, Y), to=name and f"{tmp_path}/{name}")


def test_forks_threads_failing_trackers_and_odd_names_leave_the_run_whole(tmp_path, capsys):
    def fails(*_):
        raise RuntimeError("no")

    to = [Tracker(fails, fails), tmp_path / "one\udcff", Tracker(lambda *_: None, fails), tmp_path / "$\\two$"]
    look = observe.watch(L, lambda params, batch: {r"$\foo$": params.sum()}, Batch(X, Y), to=to)
    thread = Thread(target=look, args=(0, W))
    thread.start()
    thread.join()
    owner = [sink._owner for sink in look._sinks]
    for sink in look._sinks:
        sink._owner = -1  # as a process that was forked off sees it
        sink.keep(r"$\foo$", 5, {r"$\foo$": np.ones(())})
        sink.close("finished", {}, 0.0)
        sink._owner = owner[0]
    look.close()
    for path in to[1::2]:
        run = load(path)
        assert run.status == "finished"
        assert run.records[r"$\foo$"].step.tolist() == [0]
        assert (path / "report.html").exists()
    assert capsys.readouterr().err.count("tracker dropped: RuntimeError: no") == 2
    page = Live(tmp_path).page([], log=False)
    assert page.count("finished") == page.count(" checked") == 2


LOOP = """
import sys, jax.numpy as jnp, numpy as np, os
from dynamics import observe, losses
from dynamics.types import Batch, Objective
L = Objective(lambda w, x: x @ w, losses.half_mse)
look = observe.watch(L, [observe.loss()], Batch(jnp.ones((4, 2)), jnp.ones((4, 1))), to=sys.argv[1])
look._sinks[0]._run.budget.due = lambda now: True  # commits at every reading
for step in range(4):
    look(step, jnp.full((2, 1), .1 * step))
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
        with error:
            return error.code, error.read().decode()


def test_the_live_page_overlays_runs_and_shows_no_file(live, tmp_path):
    code, page = answer(f"{live}/?run=one&run=two&scale=log")
    assert code == 200
    assert page.count(" checked") == 3
    assert "data:image/svg+xml" in page
    assert answer(f"{live}/report?run=one")[0] == 200
    with urllib.request.urlopen(f"{live}/report?run=one", timeout=20) as page:
        assert page.headers["Content-Security-Policy"] == "sandbox allow-scripts"  # it cannot read the other reports
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
    (tmp_path / "runs" / "one" / "report.html").unlink()
    (tmp_path / "runs" / "one" / "report.html").symlink_to(tmp_path / "secret.txt")
    code, told = answer(f"{live}/report?run=one")
    assert (code, "is not followed" in told) == (500, True)
    (tmp_path / "runs").rename(tmp_path / "gone")
    assert answer(live)[0] == 500
    with pytest.raises(BadInput, match="root: got 'nothere'; allowed: an existing folder of runs"):
        server(Path("nothere"), 0)
