"""What the other tools share: the notebooks of the course, how one is run, and how one is kept."""

import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"


def paths():
    """The notebooks in reading order: the numbered chapters, then the appendices."""
    return sorted(FOLDER.glob("*.ipynb"), key=lambda path: (not path.name[0].isdigit(), path.name))


def read(path):
    return nbformat.read(path, as_version=4)


def execute(notebook, timeout=1800):
    """Run all cells, from the folder of the notebooks, in the Python that runs this program.

    What the kernel itself has to say (not the cells) goes to build/kernel.log.
    """
    from nbclient import NotebookClient

    (ROOT / "build").mkdir(exist_ok=True)
    resources = {"metadata": {"path": str(FOLDER)}}
    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3", resources=resources)
    with open(ROOT / "build" / "kernel.log", "w") as log:
        client.execute(stderr=log)


def strip(notebook):
    """Take out what makes every run differ or a page break: times, widgets, progress bars, addresses."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        for key in ("execution", "papermill", "ExecuteTime", "collapsed"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in map(_strip_output, cell.outputs) if output]


def _strip_output(output):
    if output.output_type == "stream":
        if output.name == "stderr" and "\r" in output.text and "%|" in output.text:
            return None  # a progress bar; a warning stays, for the tests to complain about
        output.text = _strip_text(output.text)
    elif "data" in output:
        if output.data.pop(WIDGET, None):
            return None  # a widget without its state shows nothing
        if "text/plain" in output.data:
            output.data["text/plain"] = _strip_text(output.data["text/plain"])
        output.metadata.pop("executionInfo", None)
    return output


def _strip_text(text):
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def title(notebook):
    """The first heading, without its number sign."""
    return re.search(r"^# +(.+)$", _first_text(notebook), re.M)[1].strip()


def aim(notebook):
    """What will be true at the end: the first paragraph of prose, from its words "At the end" if it has them."""
    for paragraph in re.split(r"\n\s*\n", _first_text(notebook)):
        if not paragraph.lstrip().startswith(("#", "[![", "-", "*", "|")):
            text = " ".join(paragraph.split())
            return text[max(text.find("At the end"), 0):]
    return ""


def running_time(notebook):
    """What the notebook says of its running time at classroom scale: the first sentence, or nothing."""
    found = re.search(r"running time\W*(.+?)(?:[.;]\s|[.;]?\n\n|[.;]?$)", _first_text(notebook), re.I | re.S)
    return " ".join(found[1].strip(" *_").split()) if found else ""


def _first_text(notebook):
    """The Markdown before the first code cell."""
    texts = []
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            break
        texts.append(cell.source)
    return "\n\n".join(texts)
