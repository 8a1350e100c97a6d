"""The house holds: imports run one way, light entry points stay light, no private JAX API, names resolve."""

import ast
import pathlib
import subprocess
import sys

import pytest

import dynamics

ROOT = pathlib.Path(dynamics.__file__).parent

# A room may import itself and the rooms below it; rooms on one floor do not import one another.
FLOORS = {
    "record": set(),
    "types": {"record"},
    "config": {"record", "types"},
    "losses": {"record", "types"},
    "taylor": {"record", "types"},
    "mesh": {"record", "types"},
    "linalg": {"record", "types"},
    "stax": {"record", "types", "linalg", "mesh", "empirical"},
    "empirical": {"record", "types", "linalg", "mesh", "taylor"},
    "operators": {"record", "types", "linalg", "mesh", "losses", "empirical", "taylor"},
    "stability": {"record", "types", "linalg", "operators"},
    "models": {"record", "types", "stax"},
    "tasks": {"record", "types"},
    "evolve": {
        "types",
        "record",
        "observe",
        "losses",
        "taylor",
        "linalg",
        "operators",
        "stability",
        "empirical",
        "mesh",
    },
    "observe": {"record", "types", "losses", "taylor", "linalg", "operators", "stability", "empirical", "mesh"},
    "theory": {"record", "types", "losses", "taylor", "linalg", "stability", "empirical", "mesh", "stax"},
    "interop": {"record", "types", "stax", "models"},
    "runs": {"record", "types", "config", "evolve", "mesh", "tasks", "losses", "stax", "models"},
}


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
            if parts[0] == "experiments" and here != "runs":
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
            if parts[0] == "dynamics" and len(parts) > 1 and (parts[1] in FLOORS or (ROOT / parts[1]).is_dir()):
                there = parts[1]
                if there != here and there not in FLOORS[here]:
                    wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(sorted(set(wrong)))


def test_every_room_has_a_floor():
    rooms = {room(path) for path in ROOT.rglob("*.py")} - {"__init__"}
    assert rooms == set(FLOORS)


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


def test_an_unknown_name_is_a_sentence():
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        dynamics.nonsense  # noqa: B018
