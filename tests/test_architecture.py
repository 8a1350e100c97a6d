"""The house holds: imports run one way, light entry points stay light, no private JAX API, names resolve."""

import ast
import importlib
import inspect
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

import dynamics

ROOT = pathlib.Path(dynamics.__file__).parent

# From the ground up: a room imports itself and the rooms on lower floors; rooms on one floor do not import one another.
FLOORS = (
    ("arguments", "extras"),
    ("backend", "precision", "record"),
    ("claims",),
    ("types",),
    ("program",),
    ("compiled", "config", "linalg", "losses", "mesh", "statistics", "tasks"),
    ("empirical", "taylor"),
    ("geometry", "operators", "preconditioners", "stax"),
    ("models", "stability"),
    ("interop", "observe"),
    ("evolve", "theory"),
    ("runs",),
    ("tools",),
    ("__main__", "experiments"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
APART = {("observe", "models"), ("observe", "stax"), ("evolve", "models"), ("evolve", "stax"), ("evolve", "tasks")}
APART |= {("runs", "theory"), ("runs", "operators"), ("interop", "empirical")}  # lower, and yet no business of theirs


def modules_imported(path: pathlib.Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found


def room(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_imports_run_downwards():
    wrong = []
    for path in ROOT.rglob("*.py"):
        here = room(path)
        if here == "__init__":
            continue
        for name in modules_imported(path):
            parts = name.split(".")
            there = parts[1] if len(parts) > 1 else ""
            known = parts[0] == "dynamics" and there in FLOOR and there != here
            if known and (FLOOR[there] >= FLOOR[here] or (here, there) in APART):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(sorted(set(wrong)))


def test_experiments_work_under_both_their_names():
    """Among themselves they import relatively; all else names them as a wheel has them, ``dynamics.experiments``."""
    own = re.compile(r"^ *(from|import) (dynamics\.)?experiments\b", re.MULTILINE)
    others = re.compile(r"^[ \"]*(from|import) experiments\b", re.MULTILINE)
    places = {"dynamics": own, "experiments": own, "notebooks": others, "docs": others, "tests": others}
    for folder, wrong in places.items():
        for path in (ROOT.parent / folder).rglob("*"):
            if path.suffix in (".py", ".md", ".ipynb"):
                assert not wrong.search(path.read_text()), path


def imports(path: pathlib.Path, names: set[str]) -> set[str]:
    """The modules among ``names`` that a file imports, wherever in it and also for types alone."""
    return {name for name in modules_imported(path) if name in names}


def test_no_import_runs_in_a_circle():
    """Files, not rooms: what is left after taking away, again and again, the files that import no other one."""
    files = {
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for folder in (ROOT, ROOT.parent / "experiments")
        for path in folder.rglob("*.py")
    }
    # The package's front door, and those of rooms, import what is behind them, not the other way round.
    left = {name: imports(path, files.keys()) - {name} for name, path in files.items()}
    left = {name: {one for one in found if not name.startswith(f"{one}.")} for name, found in left.items()}
    while leaves := {name for name, found in left.items() if not found & left.keys()}:
        left = {name: found for name, found in left.items() if name not in leaves}
    assert not left, f"circles among {sorted(left)}"


# Inside a function: packages that are optional, or too heavy for a listing and the library's entry points.
INSIDE = set(
    [
        "equinox",
        "flax",
        "PIL",
        "matplotlib",
        "pandas",
        "pooch",
        "scipy",
        "sklearn",
        "submitit",
        "tensorboardX",
        "tyro",
        "wandb",
        "xarray",
    ]
)


def test_imports_inside_functions_are_of_heavy_packages():
    wrong = []
    for path in [path for folder in (ROOT, ROOT.parent / "experiments") for path in folder.rglob("*.py")]:
        for function in ast.walk(ast.parse(path.read_text())):
            for node in ast.walk(function) if isinstance(function, ast.FunctionDef) else ():
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
                wrong += [
                    f"{path}:{node.lineno} imports {name}"
                    for name in names
                    if name.split(".")[0] not in INSIDE and name != "jax.experimental"  # its multihost_utils
                ]
    assert not wrong, "\n".join(wrong)


# ImportError, AttributeError and the errors of files and runs (Unusable, ...) refuse no value, but say what to do.
REFUSALS = ("ValueError", "TypeError", "KeyError", "BadInput")
DIALECT = re.compile(r"[^:]+: got .+; allowed[^:]*: .", re.DOTALL)
HANDS_ON = re.compile(r"\{(str\()?(error|rest)\)?\}$")  # at its end another message, which speaks the dialect


def message(node: ast.expr) -> str:
    """The text of an error, with its fields as written."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(message(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return message(node.left) + message(node.right)
    return f"{{{ast.unparse(node.value if isinstance(node, ast.FormattedValue) else node)}}}"


def test_errors_speak_one_dialect():
    """``name: got VALUE; allowed: RANGE`` wherever a value is refused."""
    wrong = []
    for folder in (ROOT, ROOT.parent / "experiments"):
        for path in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                    text = message(node.exc.args[0]) if node.exc.args else ""
                    refuses = ast.unparse(node.exc.func) in REFUSALS
                    if refuses and not DIALECT.match(text) and not HANDS_ON.search(text):
                        wrong.append(f"{path}:{node.lineno}: {text}")
    assert not wrong, "\n".join(wrong)


def test_every_room_has_a_floor():
    rooms = {room(path) for path in ROOT.rglob("*.py")} - {"__init__"}
    assert rooms == set(FLOOR)


PRIVATE = ("jax._src", "jax.interpreters", "jaxlib")  # the bridge alone puts moved names back into jax.interpreters


def test_no_private_jax():
    private = [
        f"{path}: {name}"
        for folder in (ROOT, ROOT.parent / "experiments")
        for path in folder.rglob("*.py")
        for name in modules_imported(path)
        if name.startswith(("jax._src", "jaxlib") if path.name == "neural_tangents.py" else PRIVATE)
    ]
    assert not private


HEAVY = {
    "matplotlib",
    "tyro",
    "sklearn",
    "flax",
    "orbax",
    "xarray",
    "tensorflow",
    "optax",
    "tqdm",
    "equinox",
    "diffrax",
}


@pytest.mark.parametrize(
    "line", ["from dynamics import stax", "import dynamics as nt; nt.stax; nt.predict; nt.empirical_ntk_fn"]
)
def test_library_entry_points_stay_light(line):
    code = f"{line}\nimport sys\nprint(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", dynamics.__all__)
def test_every_public_name_resolves(name):
    assert getattr(dynamics, name) is not None


def test_a_function_is_not_hidden_by_the_module_of_its_name():
    import dynamics.evolve

    assert callable(dynamics.linearize)


SHAPED = r"\b(Bool|Complex|Float|Inexact|Int|Num|Real|Shaped)\[[^\]]*\]"
FREE = r"Callable\[(\[[^\]]*\]|\.\.\.), [^\]]*\]|Readings"


def public_functions():
    """Functions and methods of classes that users reach: what ``__all__`` names, and all of rooms of plain modules."""
    for info in pkgutil.walk_packages(dynamics.__path__, "dynamics."):
        if info.name.split(".")[1] in ("__main__", "experiments", "runs"):
            continue
        module = importlib.import_module(info.name)
        plain = vars(module) if info.name.split(".")[1] in ("losses", "models", "statistics", "tasks", "theory") else ()
        for name in getattr(module, "__all__", () if ".predict." in info.name else plain):
            value = getattr(module, name)
            if name.startswith("_") or not getattr(value, "__module__", "").startswith("dynamics."):
                continue
            members = vars(value).values() if inspect.isclass(value) else (value,)
            yield from (one for one in members if inspect.isfunction(one) and not one.__name__.startswith("_"))


def test_public_signatures_carry_shapes():
    """Arrays are annotated with jaxtyping's shapes, which conftest.py checks at every call of every test."""
    bare, shaped = [], 0
    for function in {inspect.unwrap(one) for one in public_functions()}:
        for name, annotation in function.__annotations__.items():
            rest, found = re.subn(SHAPED, "", re.sub(FREE, "", str(annotation)))
            shaped += found
            if re.search(r"\bArray\b", rest):
                bare.append(f"{function.__module__}.{function.__qualname__}: {name}: {annotation}")
    assert shaped > 150
    assert not bare, "\n".join(bare)


def test_an_unknown_name_is_a_sentence():
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        dynamics.nonsense  # noqa: B018


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("from dynamics.observe import first_step", "write dynamics.statistics.first_step"),
        ("from dynamics.evolve import lanes", "write dynamics.evolve.study"),
        ("from dynamics.types import StatefulObservable", "write Observable"),
    ],
)
def test_a_name_of_0_1_is_answered_with_the_new_line(line, instead):
    with pytest.raises(ImportError, match=instead):
        exec(line)
