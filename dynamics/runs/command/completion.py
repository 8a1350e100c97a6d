"""Shell completion for ``dynamics`` and ``python -m experiments...``: names, flags, and the values of some flags.

``dynamics runs completion bash >> ~/.bashrc`` (or ``zsh``, ``~/.zshrc``) installs it. It extends what the shell does
for ``python`` and leaves every other use of ``python`` as it was. The words are written into the script when it is
made, so that completing starts no Python.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
from collections.abc import Sequence

from dynamics.runs.command import discover
from dynamics.runs.command.flags import Options
from dynamics.runs.command.folder import COMMANDS
from dynamics.runs.durable.errors import BadInput
from dynamics.runs.durable.modules import EXPERIMENTS
from dynamics.runs.trackers import MAKERS

_SCRIPT = """\
# completion of `dynamics` and `python -m experiments...`, made by `dynamics runs completion {shell}`
{prelude}_dynamics_flags() {{
  case "$1" in
{flags}
  esac
}}
_dynamics_words() {{
  local name="$1" before="$2"
  case "$before" in
    --preset) _dynamics_flags "$name:presets" ;;
    --device) echo "cpu gpu tpu" ;;
    --track) echo "{trackers}" ;;
    --cluster) echo "local slurm" ;;
    *) _dynamics_flags "$name" ;;
  esac
}}
_dynamics_command() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
  COMPREPLY=()
  case "$COMP_CWORD:${{COMP_WORDS[1]}}" in
    1:*) words="run experiments runs tools" ;;
    2:run) words={names} ;;
    2:runs) words={commands} ;;
    2:tools) words="coordinate-check" ;;
    *:run) words="$(_dynamics_words "${{COMP_WORDS[2]}}" "$before")" ;;
    *:experiments) words="--json" ;;
  esac
  COMPREPLY=( $(compgen -W "$words" -- "$word") )
}}
_dynamics_module() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" at=1 name
  COMPREPLY=()
  while (( at < COMP_CWORD )) && [ "${{COMP_WORDS[at]}}" != "-m" ]; do (( at++ )); done
  if [ "$before" = "-m" ]; then
    COMPREPLY=( $(compgen -W {modules} -- "$word") )
  elif (( at < COMP_CWORD )); then
    name="${{COMP_WORDS[at+1]#dynamics.}}"
    COMPREPLY=( $(compgen -W "$(_dynamics_words "${{name#experiments.}}" "$before")" -- "$word") )
  fi
}}
complete -o bashdefault -o default -F _dynamics_command dynamics
complete -o bashdefault -o default -F _dynamics_module python python3
"""
_PRELUDE = {"bash": "", "zsh": "autoload -U +X compinit && compinit; autoload -U +X bashcompinit && bashcompinit\n"}


def script(shell: str, package: str = EXPERIMENTS) -> str:
    """The completion script of a shell.

    Args:
        shell: bash or zsh.
        package: the package of experiments.

    Raises:
        BadInput: for another shell.

    Cost: imports every experiment once, a few seconds.
    """
    if shell not in _PRELUDE:
        raise BadInput(f"completion: got {shell!r}; allowed: {', '.join(_PRELUDE)}")
    entries = [entry for entry in discover.gallery(package) if re.fullmatch(r"[\w.]+", entry.module)]
    words = {entry.experiment: _words(entry.module) for entry in entries}
    words.update({entry.family: words[entry.experiment] for entry in entries if entry.flagship})
    lines = []
    for name, (flags, presets) in sorted(words.items()):
        lines += [f"    {name}) echo {shlex.quote(flags)} ;;", f"    {name}:presets) echo {shlex.quote(presets)} ;;"]
    modules = ["experiments", *(f"experiments.{name}" for name in sorted(words)), "dynamics", "dynamics.runs"]
    return _SCRIPT.format(
        shell=shell, prelude=_PRELUDE[shell], flags="\n".join(lines), trackers=" ".join(MAKERS),
        names=_quoted(sorted(words)), modules=_quoted(modules), commands=_quoted(list(COMMANDS)),
    )  # fmt: skip


def _quoted(words: Sequence[str]) -> str:
    return shlex.quote(" ".join(words))


def print_script(shell: str) -> int:
    """Prints a shell's completion script; the command ``completion``."""
    print(script(shell), end="")
    return 0


def _words(module: str) -> tuple[str, str]:
    """The flags and the presets of an experiment, each as one line; bash would expand what is no plain word."""
    config = importlib.import_module(module).Config
    fields = [field.name for cls in (config, Options) for field in dataclasses.fields(cls)]
    presets = [name for name in config.presets() if re.fullmatch(r"[\w.-]+", name)]
    return " ".join(f"--{name.replace('_', '-')}" for name in [*fields, "help"]), " ".join(presets)
