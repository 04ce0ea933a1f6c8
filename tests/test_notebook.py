"""The notebook of the quick start runs from top to bottom, imports public names only, and is stored without outputs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="the extra `dev` is not installed")
nbclient = pytest.importorskip("nbclient", reason="the extra `dev` is not installed")

HERE = Path(__file__).parent
FILE = HERE.parent / "examples" / "quick_start.ipynb"
# What makes it small: the cell with the tag `parameters` is followed by these.
SMALL = """
SCANS = SyntheticConfig(cases_per_site=1, unlabelled=1, validation=0, test=1, shape=(32, 26, 20))
STEPS = 2
"""


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(FILE, as_version=4)


def test_the_notebook_is_stored_without_outputs_and_small(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
    assert len(cells) < 12
    nbformat.validate(notebook)


def test_the_notebook_imports_public_names_only(notebook):
    public = set((HERE / "public_names.txt").read_text(encoding="utf-8").split())
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    imports = re.findall(r"^from labelwise(?:\.(\w+))? import (.+)$", source, flags=re.MULTILINE)
    names = {f"{module}.{name}".lstrip(".") for module, line in imports for name in line.split(", ")}
    assert len(names) > 6
    assert names - public == set()


def test_the_links_of_the_notebook_lead_somewhere(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert len(links) > 2
    assert [link for link in links if not (FILE.parent / link).exists()] == []


def test_the_notebook_runs_and_shows_its_pictures(notebook, tmp_path):
    (place,) = [n for n, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    notebook.cells[place].source += SMALL
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert kinds.count("image/png") == 3
    said = "".join(
        str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", "")) for output in outputs
    )
    assert "annotated: liver" in said
    assert "annotated: nothing" in said
    assert re.search(r"Model\('run', supervised, liver, spleen, kidneys, pancreas, on \w+", said)
    assert re.search(r"'liver': (\d|nan)", said)
    assert not [output for output in outputs if output.get("name") == "stderr"]
