"""Shell completion for ``python -m experiments...``: module names, flags, and the values of the flags that have a few.

``python -m dynamics.runs completion bash >> ~/.bashrc`` (or ``zsh``, ``~/.zshrc``) installs it. It extends what the
shell does for ``python`` and leaves every other use of ``python`` as it was. The words are written into the script when
it is made, so that completing starts no Python.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex

from dynamics.runs.command import discover
from dynamics.runs.command.flags import Options
from dynamics.runs.durable.errors import BadInput
from dynamics.runs.trackers import MAKERS

_SCRIPT = """\
# completion of `python -m experiments...`, made by `python -m dynamics.runs completion {shell}`
{prelude}_dynamics_flags() {{
  case "$1" in
{flags}
  esac
}}
_dynamics_complete() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" at=1
  COMPREPLY=()
  while (( at < COMP_CWORD )) && [ "${{COMP_WORDS[at]}}" != "-m" ]; do (( at++ )); done
  if [ "$before" = "-m" ]; then
    COMPREPLY=( $(compgen -W {modules} -- "$word") )
  elif (( at < COMP_CWORD )); then
    case "$before" in
      --preset) COMPREPLY=( $(compgen -W "$(_dynamics_flags "${{COMP_WORDS[at+1]}}:presets")" -- "$word") ) ;;
      --device) COMPREPLY=( $(compgen -W "cpu gpu tpu" -- "$word") ) ;;
      --track) COMPREPLY=( $(compgen -W "{trackers}" -- "$word") ) ;;
      --cluster) COMPREPLY=( $(compgen -W "local slurm" -- "$word") ) ;;
      *) COMPREPLY=( $(compgen -W "$(_dynamics_flags "${{COMP_WORDS[at+1]}}")" -- "$word") ) ;;
    esac
  fi
}}
complete -o bashdefault -o default -F _dynamics_complete python python3
"""
_PRELUDE = {"bash": "", "zsh": "autoload -U +X compinit && compinit; autoload -U +X bashcompinit && bashcompinit\n"}


def script(shell: str, package: str = "experiments") -> str:
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
    families = {entry.module.rsplit(".", 1)[0]: entry for entry in entries if entry.flagship}
    words = {entry.module: _words(entry.module) for entry in entries}
    words.update({family: words[entry.module] for family, entry in families.items()})
    lines = []
    for module, (flags, presets) in sorted(words.items()):
        lines += [
            f"    {module}) echo {shlex.quote(flags)} ;;",
            f"    {module}:presets) echo {shlex.quote(presets)} ;;",
        ]
    modules = shlex.quote(" ".join([package, *sorted(words), "dynamics.runs"]))
    known = {"flags": "\n".join(lines), "modules": modules, "trackers": " ".join(MAKERS)}
    return _SCRIPT.format(shell=shell, prelude=_PRELUDE[shell], **known)


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
