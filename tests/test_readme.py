"""What the README shows runs, and so do the notebooks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"<!-- runs -->\n```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert "return" in capsys.readouterr().out
    assert (tmp_path / "policy.stablehlo").exists()


def test_the_two_commands_are_there():
    text = (ROOT / "README.md").read_text()
    assert re.search(r"<!-- main job -->\n```bash\n[^\n]*jaxrl train configs/ppo_poolflip.toml\n```", text)
    assert re.search(r"<!-- tests -->\n```bash\n[^\n]*pytest[^\n]*\n```", text)


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem) for path in NOTEBOOKS],
)
@pytest.mark.slow
def test_notebook_runs(path, tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("JAXRL_SMALL", "1")
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "rendered output is kept out of the repository"
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
