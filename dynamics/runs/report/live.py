"""The page of runs as they go: ``dynamics runs serve DIR``, on this machine alone, several runs overlaid.

One page and the reports of the runs that it lists; no path of a request is ever opened as a file.
"""

from __future__ import annotations

import contextlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from dynamics.runs.durable.errors import BadInput, RunError
from dynamics.runs.durable.files import read_bytes
from dynamics.runs.durable.load import LoadedRun, load
from dynamics.runs.figures import curves, drawn
from dynamics.runs.printable import printable
from dynamics.runs.report.listing import run_folders
from dynamics.runs.report.page import render
from dynamics.runs.report.run_page import Picture, picture

ADDRESS = "127.0.0.1"
MOST = 8
"""Runs that are drawn at once."""


class Shown(NamedTuple):
    """A run on the live page."""

    name: str
    status: str
    step: int
    told: str
    chosen: bool
    reported: bool


class Live:
    """What the page shows: the runs under ``root``, read again when their journal has changed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._held: dict[Path, tuple[float, LoadedRun]] = {}
        self._drawn: tuple[Any, Picture | None] = ((), None)
        self._lock = threading.Lock()

    def runs(self) -> dict[str, Path]:
        """Folders by the names that the page gives them: their place under the root."""
        return {
            printable(path.name if path == self.root else path.relative_to(self.root)): path
            for path in run_folders(self.root)
            if (path / "run.sqlite").is_file()
        }

    def page(self, chosen: list[str], log: bool) -> str:
        """The page with the curves of the ``chosen`` runs, by default of those that changed last."""
        with self._lock:
            found = self.runs()
            newest = sorted(found, key=lambda name: -self._changed(found[name]))
            named = [name for name in chosen if name in found][:MOST]
            drawn_runs = named or newest[: 1 if len(found) > MOST else MOST]
            rows, records = [], {}
            for name in newest:
                run, told = self._load(found[name])
                record = {} if run is None else run.records
                if name in drawn_runs:
                    records[name] = {label: held for label, held in record.items() if len(held.step)}
                step = max((int(held.step[-1]) for held in record.values() if len(held.step)), default=0)
                status = "unreadable" if run is None else run.status
                reported = (found[name] / "report.html").is_file()
                rows.append(Shown(name, status, step, told, name in drawn_runs, reported))
            return render(
                "live.html.j2", ["page.css", "run.css", "live.css"], "live.js", title=f"Live: {self.root.name}",
                folder=self.root.name, rows=rows, figure=self._figure(records, log), log=log, most=MOST,
            )  # fmt: skip

    def report(self, name: str) -> bytes | None:
        """The report page of a run that the page lists."""
        path = self.runs().get(name)
        if path is None or not (path / "report.html").is_file():
            return None
        return read_bytes(path / "report.html")

    def _figure(self, records: dict[str, Any], log: bool) -> Picture | None:
        """The curves; None where nothing was read yet."""
        places = self.runs()
        key = log, tuple((name, self._changed(places[name])) for name in records if name in places)
        if self._drawn[0] != key:
            some = any(held for held in records.values())
            made = picture("curves", drawn(curves(records, log=log))["figure.svg"]) if some else None
            self._drawn = key, made
        return self._drawn[1]

    def _load(self, path: Path) -> tuple[LoadedRun | None, str]:
        """The run, and in words why it cannot be read."""
        changed = self._changed(path)
        if path not in self._held or self._held[path][0] != changed:
            try:
                self._held[path] = changed, load(path)
            except (RunError, OSError) as error:
                return None, str(error)
        return self._held[path][1], ""

    @staticmethod
    def _changed(path: Path) -> float:
        with contextlib.suppress(OSError):
            return (path / "run.sqlite").stat().st_mtime
        return 0.0


def server(root: Path, port: int) -> ThreadingHTTPServer:
    """The server of the live page, on 127.0.0.1, not yet serving; port 0 takes any that is free.

    Raises:
        BadInput: for a folder that does not exist, or a port that cannot be had.
    """
    if not root.is_dir():
        raise BadInput(f"root: got {str(root)!r}; allowed: an existing folder of runs")
    live = Live(root.resolve())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                self._get()
            except Exception as error:  # the page goes on; what it shows is what it says
                self._answer(500, f"{type(error).__name__}: {error}".encode(errors="backslashreplace"), "text/plain")

        def _get(self) -> None:
            host = (self.headers.get("Host") or "").partition(":")[0]
            if host not in (ADDRESS, "localhost"):  # a page elsewhere that names this address as its own
                return self._answer(403, b"forbidden", "text/plain")
            where = urlsplit(self.path)
            asked = parse_qs(where.query)
            if where.path == "/report":
                page = live.report(asked.get("run", [""])[0])
                if page is None:
                    return self._answer(404, b"no such run", "text/plain")
                return self._answer(200, page, policy="sandbox allow-scripts")  # a file of others: an origin of its own
            if where.path != "/":
                return self._answer(404, b"not found", "text/plain")
            self._answer(200, live.page(asked.get("run", []), asked.get("scale") == ["log"]).encode())

        def _answer(self, code: int, body: bytes, kind: str = "text/html", policy: str = "") -> None:
            self.send_response(code)
            for name, value in (
                *[("Content-Security-Policy", policy)] * bool(policy),
                ("Content-Type", f"{kind}; charset=utf-8"), ("Content-Length", str(len(body))),
                ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"),
                ("Referrer-Policy", "no-referrer"), ("Cross-Origin-Resource-Policy", "same-origin"),
            ):  # fmt: skip
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    try:
        return ThreadingHTTPServer((ADDRESS, port), Handler)
    except (OSError, OverflowError) as error:
        raise BadInput(f"port: got {port}; allowed: a free one from 1024 to 65535, or 0 for any ({error})") from error


def serve(root: Path, port: int) -> int:
    """Serves the live page until Ctrl-C; the command ``serve``."""
    with server(root, port) as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        try:
            print(f"http://{ADDRESS}:{made.server_address[1]}/ shows {root} while it grows; Ctrl-C ends it", flush=True)
            while thread.is_alive():
                time.sleep(0.2)
        except KeyboardInterrupt:
            print()
        made.shutdown()
    return 0
