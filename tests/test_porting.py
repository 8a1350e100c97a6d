"""Code written for neural-tangents: the snippets of docs/porting.md give the original's numbers."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

PAGE = Path(__file__).parents[1] / "docs" / "porting.md"
SNIPPETS = re.findall(r"^## (\d+)\. .*?\n```python([^\n]*)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_there_are_twelve():
    assert [int(number) for number, _, _ in SNIPPETS] == list(range(1, 13))


HEAVY = {"5", "11"}  # twenty CPU seconds each, of compilation


def answers(rename=None, without=()):
    """The snippets run one after the other in one namespace; ``{number: answer}`` of those to compare.

    With ``rename`` only those are run, after it has changed their imports.
    """
    namespace, found = {}, {}
    for number, info, code in SNIPPETS:
        if number in without:
            continue
        if rename is None or "compare=yes" in info:
            exec(compile(rename(code) if rename else code, f"snippet {number}", "exec"), namespace)
        if "compare=yes" in info:
            found[int(number)] = np.asarray(namespace.pop("answer"))
    return found


@pytest.fixture(scope="module")
def ours():
    with jax.enable_x64(True):
        return answers()


def test_the_snippets_run(x64):
    found = answers(without=HEAVY)
    assert len(found) > 6
    assert all(np.isfinite(answer).all() for answer in found.values())


@pytest.fixture(scope="module")
def reference():
    pytest.importorskip("frozendict", reason="the reference needs frozendict")
    from dynamics.interop import neural_tangents

    try:
        neural_tangents.load()
    except ImportError as error:
        pytest.skip(str(error))

    def rename(code):
        code = re.sub(r"^import dynamics as nt$", "import neural_tangents as nt", code, flags=re.MULTILINE)
        return re.sub(r"^from dynamics import stax$", "from neural_tangents import stax", code, flags=re.MULTILINE)

    return rename


@pytest.mark.slow
def test_same_numbers_as_the_original(ours, reference):
    with jax.enable_x64(True):
        theirs = answers(reference)
    assert len(ours) == 9
    for number, answer in ours.items():
        # float64; the original takes arccos of cosines next to 1, which is good to sqrt(eps) = 1.5e-8 on the diagonal
        np.testing.assert_allclose(answer, theirs[number], rtol=1e-6, atol=1e-7, err_msg=f"snippet {number}")
