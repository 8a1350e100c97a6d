"""The command line of every experiment, of a family, and of the gallery."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import math
import os
import platform
import shutil
import sys
import textwrap
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from dynamics.runs import discover
from dynamics.runs.directory import Run, checked_name, default_name, open_run
from dynamics.runs.errors import CLAIM_FAILS, HOLDS, BadInput, Damaged, Interrupted, RunError, Unusable
from dynamics.runs.files import digest, json_text, plain
from dynamics.runs.journal import Journal
from dynamics.runs.provenance import now

GIVEN = ("study", "simulate", "run")
"""What an experiment's ``run`` may take beside its settings."""


def main(name: str, argv: list[str] | None = None) -> NoReturn:
    """Runs the command line of ``name`` and exits.

    Exit codes: 0 every applicable claim holds; 1 unexpected error; 2 bad input; 3 interrupted, resumable; 4 the run
    cannot be used (in use, corrupt, full disk); 5 a claim fails.

    Args:
        name: an experiment's module (``__spec__.name``) or file (``__file__``), a family's package, or the package of
            all experiments, whose command is the gallery.
        argv: the flags; ``sys.argv[1:]`` by default.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        code = _dispatch(name.removesuffix(".__main__"), argv)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.code
    except ImportError as error:
        if "dynamics[" not in str(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        code = BadInput.code
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        code = Interrupted.code
    except BrokenPipeError:  # the reader of our output, `head` or a pager, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = HOLDS
    sys.exit(code)


def _dispatch(name: str, argv: list[str]) -> int:
    if name.endswith(".py"):
        return run_experiment(_module_from_file(Path(name)), Path(name).stem, argv, f"python {name}")
    depth = name.count(".")
    if depth == 0:
        return _gallery(name, argv)
    if depth == 1:
        paper = discover.flagship(name)
        if argv and not argv[0].startswith("-"):
            paper, argv = argv[0].replace("-", "_"), argv[1:]
        known = [entry.paper for entry in discover.gallery(name.split(".")[0]) if entry.family == name]
        if paper not in known:
            raise BadInput(f"experiment: got {paper!r}; allowed: {', '.join(known)}")
        others = f"{name} runs its flagship, {paper}; beside it python -m {name}.PAPER, PAPER being one of "
        others += ", ".join(word for word in known if word != paper)
        name = f"{name}.{paper}"
        return run_experiment(importlib.import_module(name), name.split(".", 1)[1], argv, f"python -m {name}", others)
    return run_experiment(importlib.import_module(name), name.split(".", 1)[1], argv, f"python -m {name}")


def _gallery(package: str, argv: list[str]) -> int:
    entries = discover.gallery(package)
    if argv and argv[0] not in ("-h", "--help", "--json"):
        raise BadInput(
            f"experiment: got {argv[0]!r}; allowed: python -m {package}.FAMILY[.PAPER], from the list without it"
        )
    if argv == ["--json"]:
        print(json_text([entry._asdict() for entry in entries]), end="")
        return HOLDS
    print(f"{len(entries)} experiments, with the time of their quick presets on two CPU cores.")
    print("python -m FAMILY.NAME runs one, python -m FAMILY its flagship (*); --help has more.")
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print("\n".join(listing(entries, columns)))
    return HOLDS


def listing(entries: list[discover.Entry], columns: int | None) -> list[str]:
    """The gallery as lines: one an experiment, or at most so many columns wide, by family."""
    lines, family = [""], ""
    width = max((len(entry.module if columns is None else entry.paper) for entry in entries), default=0)
    for entry in entries:
        name = entry.module if columns is None else entry.paper
        seconds = f"{entry.seconds:4.0f} s" if entry.seconds else "     -"
        head = f"{'*' if entry.flagship else ' '} {name:<{width}} {seconds}  "
        if columns is None:
            lines.append(head + entry.title)
            continue
        if entry.family != family:
            family = entry.family
            lines += [*([""] if len(lines) > 1 else []), family]
        lines += textwrap.wrap(
            entry.title,
            max(columns, len(head) + 20),
            initial_indent=head,
            subsequent_indent=" " * len(head),
            break_on_hyphens=False,
        )
    return lines


def run_experiment(module: ModuleType, experiment: str, argv: list[str], prog: str, others: str = "") -> int:
    """One experiment from flags to report; returns the exit code. ``--help`` ends its description with ``others``."""
    from dynamics.runs import specs, swept
    from dynamics.runs.flags import parse

    own, title, held = module, (module.__doc__ or experiment).strip(), {}

    def stored(base, early):
        held.update(_stored_settings(Path(early["out"] or "runs") / experiment, early))
        return _unswept(type(base), held) if held else None

    words = f"{title}\n\n{others}" if others else title
    config, options = parse(module.Config, specs.expanded(module.Config, argv), prog, words, stored)
    values = specs.parse_sweep(module.Config, options.sweep) or held.get(swept.SWEEP, {})
    _check(options, values)
    for cell in range(math.prod(map(len, values.values())) if values else 0):
        specs.cell_config(config, values, cell)
    seed = config.seed
    module, config = swept.program(module, config, values, options.show)
    root = Path(options.out) / experiment
    name = default_name(config, options.x64) if options.name is None else options.fork or options.name
    path = root / checked_name(name)
    if path.is_symlink() or path.resolve().parent != root.resolve():
        raise BadInput(f"name: got {name!r}; allowed: a directory inside {root}")
    about = {
        "experiment": experiment,
        "module": own.__name__ if own.__spec__ and "." in own.__name__ else str(own.__file__),
        "source": getattr(own, "SOURCE", ""),
        "description": " ".join(title.split("\n\n")[0].split()),
        "preset": options.preset,
        "device": options.device,
        "seed": seed,
        "command": [*prog.split(" "), *argv],
    }
    set_up_jax(options.x64, options.device)
    source = None if options.fork is None else root / checked_name(options.name)  # type: ignore[arg-type]
    again = f"{prog} --out {options.out} --name {name} --resume"
    try:
        claims, words = execute(
            module, config, path, about, quiet=options.quiet, fork_of=source, workers=options.workers,
            cluster=options.cluster,
        )  # fmt: skip
    except Interrupted as error:
        raise Interrupted(f"{error}\nresume with: {again}") from error
    if options.json:
        print(json_text(claims), end="")
    elif not options.quiet:
        print(claims_table(claims))
        print(f"{words}; report: {path / 'report.html'}")
    return CLAIM_FAILS if any(claim["holds"] is False for claim in claims) else HOLDS


def _check(options: Any, swept: dict[str, list]) -> None:
    """Refuses options that would do nothing, or that no run could have.

    Raises:
        BadInput: naming the option and what is allowed.
    """
    if options.fork is not None and options.name is None:
        raise BadInput("--fork: needs --name, the run to continue from")
    if options.workers < 1:
        raise BadInput(f"--workers: got {options.workers}; allowed: an integer >= 1")
    if options.sweep and (options.fork is not None or options.resume):
        raise BadInput("--fork, --resume: not with --sweep; they take that of the run --name")
    if options.show is not None and not swept:
        raise BadInput("--show: only with --sweep")
    if options.cluster is not None:
        from dynamics.runs.cluster import checked

        checked(options.cluster)


def call(function: Any, config: Any, run: Any) -> Any:
    """``function(config)`` with what it asks for by the names of its parameters: ``study``, ``simulate`` or ``run``."""
    names = inspect.signature(function).parameters
    return function(config, **{name: run if name == "run" else getattr(run, name) for name in GIVEN if name in names})


def program_of(module: ModuleType, held: dict[str, Any]) -> tuple[Any, Any]:
    """What ran with stored settings, and these: a module and its Config, or a sweep of it."""
    from dynamics.runs import swept

    return swept.program(module, _unswept(module.Config, held), held.get(swept.SWEEP, {}))


def execute(
    module: Any,
    config: Any,
    path: Path,
    about: dict[str, Any],
    *,
    quiet: bool,
    fork_of: Path | None = None,
    workers: int = 1,
    cluster: str | None = None,
) -> tuple[list[dict[str, Any]], str]:
    """Runs, resumes or merely reads the run at ``path``; returns its claims as JSON objects, and how it went."""
    from dynamics.runs.worker import helped

    shares = workers if cluster is None else workers + 1
    with open_run(path, config, quiet=quiet, fork_of=fork_of, workers=shares, **about) as run:
        done = run.finished and not _damaged(run) and getattr(module, "show", None) is None
        claims = run.journal.get("claims") if done else None
        words = "already finished before (delete the run to repeat it),"
        if claims is None:
            with helped(path, workers, cluster):
                claims, words = run_to_the_end(module, config, run), "finished"
        if run.journal.get("status") == "diverged":
            words += " with diverged lanes"
        return claims, f"{words} after {run.journal.get('seconds'):.1f} s"


def run_to_the_end(module: Any, config: Any, run: Run) -> list[dict[str, Any]]:
    """Runs the experiment and writes claims, figure and report."""
    began, before = time.perf_counter(), run.journal.get("seconds", 0.0)

    def close(status: str, **entries) -> None:
        run.journal.set(status=status, seconds=before + time.perf_counter() - began, **entries)

    try:
        run.journal.set(status="running")
        result = call(module.run, config, run)
        if run.stopping:
            raise Interrupted("interrupted after the last step; all of it is saved")
        claims = plain([claim._asdict() for claim in module.claims(result)])
        run.write("claims.json", json_text(claims))
        _draw(module, result, run)
    except (Interrupted, KeyboardInterrupt) as error:
        close("interrupted")
        raise Interrupted(str(error) or "interrupted") from error
    except BadInput:
        close("interrupted")
        raise
    except RunError:
        raise
    except OSError as error:
        raise Unusable(f"{run.path}: {error}") from error
    except Exception:
        close("failed")
        run.journal.event(now(), "error", traceback.format_exc())
        raise
    lost = run.journal.get("diverged", {})
    status = "diverged" if any(len(found["lanes"]) == found["of"] for found in lost.values()) else "finished"
    seconds = round(before + time.perf_counter() - began, 1)
    facts = {**run.journal.get("provenance"), "status": status, "seconds": seconds, "diverged": lost}
    run.write("provenance.json", json_text(facts))
    _report(run)
    close(status, claims=claims)
    return claims


def _draw(module: Any, result: Any, run: Run) -> None:
    from dynamics.runs.figures import save_figure

    for path in save_figure(module.figure(result), run.path):
        run.note(path.name)


def _report(run: Run) -> None:
    from dynamics.runs.report import write_report

    write_report(run.path)
    run.note("report.html")


def _damaged(run: Run) -> list[str]:
    """Artefacts that are missing or changed; they are then made again from the stored states."""
    held = run.journal.get("files", {})
    wrong = [name for name, known in held.items() if not _same(run.path / name, known)]
    if wrong:
        run.warn(f"{run.path}: {', '.join(wrong)} missing or damaged; written again")
    return wrong


def _same(path: Path, known: str) -> bool:
    try:
        return digest(path.read_bytes()) == known
    except OSError:
        return False


def claims_table(claims: list[dict[str, Any]]) -> str:
    """Claims as aligned text: verdict, name, measured, predicted, tolerance, note."""
    words = {True: "holds", False: "FAILS", None: "n/a"}
    rows: list[tuple[str, ...]] = [("", "claim", "measured", "predicted", "tolerance")]
    for claim in claims:
        numbers = (_number(claim, key) for key in ("measured", "predicted", "tolerance"))
        rows.append((words[claim["holds"]], claim["name"], *numbers))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    for at, claim in enumerate(claims):
        if claim["note"]:
            lines[at + 1] += f"  ({claim['note']})"
    return "\n".join(lines)


def _number(claim: dict[str, Any], key: str) -> str:
    value = claim[key]
    if value is None:
        return claim.get(f"{key}_status", "")
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _stored_settings(root: Path, early: dict[str, str | None]) -> dict[str, Any]:
    """The settings of the run that ``--resume`` or ``--fork`` continues; none where there is no such run."""
    wanted = early["name"]
    if not wanted or (early["resume"] is None and early["fork"] is None):
        return {}
    path = root / checked_name(wanted) / "run.sqlite"
    if not path.is_file():
        return {}
    try:
        with contextlib.closing(Journal(path, readonly=True)) as journal:
            return journal.get("config", {})
    except Damaged:  # opening it for writing says what can be done
        return {}


def _unswept(cls: type, held: dict[str, Any]) -> Any:
    """The Config in stored settings; of a sweep, that of its first cell."""
    from dynamics.runs.swept import SWEEP

    shared = {name: value for name, value in held.items() if name != SWEEP}
    return config_from(cls, {**shared, **{name: values[0] for name, values in held.get(SWEEP, {}).items()}})


def config_from(cls: type, held: dict[str, Any]) -> Any:
    """A Config from its JSON object.

    Raises:
        Unusable: when the class has changed since and no longer takes it.
    """
    try:
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in held.items()})
    except (TypeError, ValueError) as error:
        raise Unusable(f"config.json: no longer fits {cls.__module__}.Config: {error}") from error


def set_up_jax(x64: bool, device: str | None) -> None:
    """Precision, device and a persistent compilation cache for this process.

    Raises:
        BadInput: when there is no such device.
    """
    import jax

    if x64:
        jax.config.update("jax_enable_x64", True)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    if device is None:
        return
    kind, _, index = device.partition(":")
    if kind == "cpu":
        jax.config.update("jax_platforms", "cpu")
    try:
        jax.config.update("jax_default_device", jax.devices(kind)[int(index or 0)])
    except (RuntimeError, ValueError, IndexError) as error:
        found = ", ".join(sorted({f"{d.platform}:{d.id}" for d in jax.devices()}))
        raise BadInput(f"device: got {device!r}; allowed here: {found}") from error


def cache_folder() -> Path:
    """Where compiled programs are kept between commands: one folder a processor type, since they do not travel."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kind = "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    except OSError:
        kind = platform.processor()
    return base / "dynamics" / f"jax-{digest(kind.encode())[:10]}"


def module_named(name: str) -> ModuleType:
    """An experiment's module by its dotted name or its file."""
    return _module_from_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)


def _module_from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise BadInput(f"experiment: got {str(path)!r}; allowed: a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
