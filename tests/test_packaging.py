"""The package as others get it: wheel and sdist, clean environments, extras one by one, one version everywhere."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from dynamics.extras import DISTRIBUTION, MissingExtra, installation, missing

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# what each extra must make work, in a clean environment that has nothing but the wheel and that extra
EXTRAS = {
    "data": "from dynamics.tasks import digits; assert digits(10).train.x.shape == (10, 64); import pooch",
    "theory": "import diffrax, optimistix",
    "xarray": (
        "import numpy as np; from dynamics import Record; "
        "Record(np.arange(2), np.arange(2.0), {'loss': np.ones(2)}).to_dataset().to_netcdf('record.nc')"
    ),
    "equinox": "import equinox, jax; from dynamics.models import from_equinox; "
    "from_equinox(lambda key: equinox.nn.MLP(2, 1, 4, 1, key=key)).init(jax.random.key(0), (-1, 2))",
    "trackers": "from dynamics.runs.trackers import tensorboard; tensorboard('events').close(); import wandb",
    "slurm": "import submitit",
    "docs": "import myst_nb, pydata_sphinx_theme, sphinx",
}

IMPORT_ALL = """
import importlib, pkgutil, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED: raise ImportError(name + " is not there")
sys.meta_path.insert(0, Refuse())
import dynamics
assert dynamics.__file__.startswith(PLACE), dynamics.__file__
for module in pkgutil.walk_packages(dynamics.__path__, "dynamics."):
    if {"interop", "experiments", "__main__"} & set(module.name.split(".")): continue
    importlib.import_module(module.name)
for name in dynamics.__all__: getattr(dynamics, name)
print(dynamics.__version__)
"""


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """``(wheel, sdist)`` of the working tree."""
    build = pytest.importorskip("hatchling.build", reason="building needs hatchling, of the extra `test`")
    out = tmp_path_factory.mktemp("dist")
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        return out / build.build_wheel(str(out)), out / build.build_sdist(str(out))
    finally:
        os.chdir(before)


def import_all(place, *, blocked=()):
    code = IMPORT_ALL.replace("BLOCKED", repr(tuple(blocked))).replace("PLACE", repr(str(place)))
    environment = {**os.environ, "PYTHONPATH": str(place), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=place, env=environment, capture_output=True, text=True, timeout=300
    )


def test_one_version_everywhere():
    import dynamics

    citation = (ROOT / "CITATION.cff").read_text()
    assert dynamics.__version__ == PROJECT["version"]
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE).group(1) == PROJECT["version"]
    assert re.search(r"^license: (.*)$", citation, re.MULTILINE).group(1) == PROJECT["license"] == "Apache-2.0"
    heading = re.search(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE).group(1)
    assert heading == PROJECT["version"]


def test_wheel_and_sdist_hold_what_they_should(built):
    wheel, sdist = built
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    code = {
        path.relative_to(ROOT).as_posix()
        for folder in ("dynamics", "experiments")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {re.sub(r"^experiments/", "dynamics/experiments/", name) for name in code} <= inside
    assert "dynamics/py.typed" in inside
    assert {
        f"dynamics/runs/report/{name}" for name in ("assets/page.css", "assets/run.js", "templates/run.html.j2")
    } <= inside
    assert any(name.endswith("licenses/LICENSE") for name in inside)
    assert {name.partition("/")[0] for name in inside if "dist-info" not in name} == {"dynamics"}
    with tarfile.open(sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    assert code | {"README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "hatch_build.py"} <= files


def test_every_module_imports_without_experiments_or_optional_packages(built, tmp_path):
    with zipfile.ZipFile(built[0]) as archive:
        archive.extractall(tmp_path)
    shutil.rmtree(tmp_path / "dynamics" / "experiments")
    optional = ("experiments", "sklearn", "pooch", "xarray", "equinox", "tensorflow", "neural_tangents", "wandb")
    done = import_all(tmp_path, blocked=(*optional, "tensorboardX", "submitit", "beartype", "diffrax"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == PROJECT["version"]


def interpreters():
    """Every Python 3.11 to 3.13 on this machine that answers, one a version."""
    found = {}
    places = [*Path.home().glob(".pyenv/versions/*/bin/python"), *map(shutil.which, ("python3.11", "python3.12"))]
    for place in (*places, shutil.which("python3.13"), sys.executable):
        if place is None:
            continue
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        done = subprocess.run([str(place), "-c", code], capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip() in ("3.11", "3.12", "3.13"):
            found.setdefault(done.stdout.strip(), str(place))
    return found


def environment(python, folder):
    """A clean virtual environment; returns its interpreter and the command that installs into it."""
    if shutil.which("uv"):
        subprocess.run(["uv", "venv", "--quiet", "--python", python, str(folder)], check=True)
        return folder / "bin" / "python", [
            "uv",
            "pip",
            "install",
            "--quiet",
            "--python",
            str(folder / "bin" / "python"),
        ]
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    return folder / "bin" / "python", [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_installs_and_runs_in_a_clean_environment(built, tmp_path, version, kind):
    if version not in (found := interpreters()):
        pytest.skip(f"no Python {version} answers here")
    if kind == "sdist" and version != "3.11":
        pytest.skip("the sdist builds the same wheel; one version is enough")
    python, install = environment(found[version], tmp_path / "venv")
    subprocess.run([*install, str(built[kind == "sdist"])], check=True)
    mine = tmp_path / "mine"  # where a user has experiments of his own
    (mine / "experiments").mkdir(parents=True)
    (mine / "experiments" / "__init__.py").write_text("raise ImportError('not these')\n")

    def run(*words):
        done = subprocess.run(
            list(map(str, words)), cwd=mine, env={"JAX_PLATFORMS": "cpu", "PATH": "/bin", "HOME": str(tmp_path)},
            capture_output=True, text=True,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    code = IMPORT_ALL.replace("BLOCKED", "()").replace("PLACE", repr(str(tmp_path)))
    assert run(python, "-c", code)[0] == 0
    command = python.with_name("dynamics")
    assert "* grokking.lazy_to_rich" in run(command, "experiments")[1]
    assert "* grokking.lazy_to_rich" in run(python, "-m", "dynamics.experiments")[1]
    assert run(command, "run", "depth.length", "--seeds", "2", "--name", "a", "--quiet")[::2] == (0, "")
    folder = mine / "runs" / "depth.length" / "a"
    assert run(command, "runs", "repeat", folder)[0] == 0
    assert run(python, "-m", "dynamics.experiments.depth", "length", "--name", "a", "--resume", "--quiet")[0] == 0
    code, _, errors = run(command, "run", "rich_lazy.digits_kernel", "--name", "b")
    assert (code, "pip install 'training-dynamics[data]'" in errors) == (2, True)
    code = "from dynamics.runs.command.discover import *; [importlib.import_module(one.module) for one in gallery()]"
    assert run(python, "-c", code)[::2] == (0, "")
    code = "from dynamics.experiments.grokking import lazy_to_rich; print(lazy_to_rich.Config().window)"
    assert run(python, "-c", code)[1] == "(40, 440)\n"


@pytest.mark.slow
@pytest.mark.parametrize("extra", EXTRAS)
def test_each_extra_alone(built, tmp_path, extra):
    python, install = environment(sys.executable, tmp_path / "venv")
    subprocess.run([*install, f"{DISTRIBUTION}[{extra}] @ {built[0].as_uri()}"], check=True)
    environment_variables = {"JAX_PLATFORMS": "cpu", "PATH": "/bin", "HOME": str(tmp_path)}
    subprocess.run([str(python), "-c", EXTRAS[extra]], check=True, cwd=tmp_path, env=environment_variables)


def test_the_package_page_says_whose_it_is(built):
    """One name and one address everywhere; the README's links and pictures lead out of the package page."""
    with zipfile.ZipFile(built[0]) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        head, _, page = archive.read(name).decode().partition("\n\n")
    assert f"Name: {DISTRIBUTION}\n" in head
    assert PROJECT["name"] == DISTRIBUTION
    repository = PROJECT["urls"]["Repository"]
    assert all(address.startswith(repository) for address in PROJECT["urls"].values())
    assert f'repository-code: "{repository}"' in (ROOT / "CITATION.cff").read_text()
    assert f"url: {repository}/security/advisories/new\n" in (ROOT / ".github/ISSUE_TEMPLATE/config.yml").read_text()
    for target in re.findall(r"\]\(([^)#][^)]*)\)", re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)):
        assert target.startswith(("https://", "http://")), target
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture.removeprefix(f"{repository}/raw/HEAD/")).is_file(), picture
    readme = (ROOT / "README.md").read_text()
    fences = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
    assert fences.findall(page) == fences.findall(readme)


def test_issue_forms_can_be_read():
    yaml = pytest.importorskip("yaml", reason="reads what GitHub reads")
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 4
    for form in forms:
        held = yaml.safe_load(form.read_text())
        fields = held.get("body", [])
        assert form.stem == "config" or (held["name"] and held["description"] and fields)
        assert all(field["attributes"]["label"] and field["id"] for field in fields)
        assert len({field["id"] for field in fields}) == len(fields)
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["url"] == PROJECT["urls"]["Repository"]


def test_a_missing_extra_names_the_command_that_installs_it(tmp_path):
    """From a checkout another one than from a wheel, and nowhere the name of somebody else's distribution."""
    assert str(missing("digits", "scikit-learn", "data")) == "digits needs scikit-learn: pip install -e '.[data]'"
    assert issubclass(MissingExtra, ImportError)
    assert installation("slurm", tmp_path / "dynamics") == "pip install 'training-dynamics[slurm]'"
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "somebody-elses"\n')
    assert installation("slurm", tmp_path / "dynamics") == "pip install 'training-dynamics[slurm]'"
    here = Path(__file__)
    for folder in ("dynamics", "docs", "experiments", "notebooks", "tests"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".md", ".ipynb") and path != here:
                assert not re.search(r"(?<!training-)dynamics\[[a-z,-]+\]", path.read_text()), path
    assert not re.search(r"(?<!training-)dynamics\[[a-z,-]+\]", (ROOT / "README.md").read_text())


def test_every_extra_is_tested():
    assert set(EXTRAS) == set(PROJECT["optional-dependencies"]) - {"test", "neural-tangents"}
