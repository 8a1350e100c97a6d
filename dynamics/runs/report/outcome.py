"""An experiment from its ``run`` to its claims, figure and report, in an open run directory."""

from __future__ import annotations

import inspect
import traceback
from typing import Any

from dynamics.precision import own_precision
from dynamics.runs.durable.directory import Directory
from dynamics.runs.durable.errors import BadInput, Interrupted, RunError, Unusable
from dynamics.runs.durable.files import json_text, plain
from dynamics.runs.durable.provenance import now
from dynamics.runs.figures import drawn
from dynamics.runs.report.run_page import report_page

GIVEN = ("study", "simulate", "run")
"""What an experiment's ``run`` may take beside its settings."""


def call(function: Any, config: Any, run: Any) -> Any:
    """``function(config)`` with what it asks for by the names of its parameters: ``study``, ``simulate`` or ``run``."""
    names = inspect.signature(function).parameters
    with own_precision():
        return function(
            config, **{name: run if name == "run" else getattr(run, name) for name in GIVEN if name in names}
        )


def run_to_the_end(module: Any, config: Any, run: Directory) -> list[dict[str, Any]]:
    """Runs the experiment and writes claims, figure and report."""

    def close(status: str, **entries) -> None:
        run.journal.set(status=status, seconds=run.seconds, **entries)

    try:
        run.journal.set(status="running")
        result = call(module.run, config, run)
        if run.stopping:
            raise Interrupted("interrupted after the last step; all of it is saved")
        with own_precision():
            claims = plain([claim._asdict() for claim in module.claims(result)])
        run.write("claims.json", json_text(claims))
        draw(module, result, run)
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
    about = {"status": status, "seconds": round(run.seconds, 1), "diverged": lost}
    facts = {**run.journal.get("provenance"), **about}
    run.write("provenance.json", json_text(facts))
    run.write("report.html", report_page(run.path))
    close(status, claims=claims)
    return claims


def draw(module: Any, result: Any, run: Directory) -> None:
    """Writes an experiment's figure as PNG and SVG."""
    with own_precision():
        made = module.figure(result)
    for name, data in drawn(made).items():
        run.write(name, data)
