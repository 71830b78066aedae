"""Serve the photo demo as a page without code, by Voila: http://localhost:8866

    python tools/demo.py                 # for this computer only
    python tools/demo.py --port 8900     # any option of Voila's may follow

The page holds the cells of notebook 10 that are tagged `demo`, and what they need; the lesson around them is left
out. A browser sends a photograph in parts of one megabyte, up to the 100 megabytes that the demo takes.
"""

import sys

import book
from sync import is_setup

NOTEBOOK = book.FOLDER / "10_photo_demo.ipynb"
KEPT = {"parameters", "demo"}


def only_the_demo(notebook):
    """The notebook without its lesson."""
    notebook.cells = [cell for cell in notebook.cells if is_setup(cell) or KEPT & set(cell.metadata.get("tags", []))]
    return notebook


def config():
    from traitlets.config import Config

    settings = Config()
    settings.VoilaConfiguration.prelaunch_hook = lambda request, notebook, cwd: only_the_demo(notebook)
    # What Jupyter takes in one message, and sends in a second, is made for numbers and not for pictures.
    settings.Voila.tornado_settings = {"websocket_max_message_size": 200_000_000}
    settings.ZMQChannelsWebsocketConnection.iopub_data_rate_limit = 1e9
    return settings


if __name__ == "__main__":
    from voila.app import Voila

    Voila.launch_instance([str(NOTEBOOK), *sys.argv[1:]], config=config())
