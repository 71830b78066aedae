"""Print what `make` installs: the package's needs and those of its extras, as pyproject.toml says.

    python tools/requirements.py tensorflow-cpu         # that build of TensorFlow in the place of `tensorflow`
    python tools/requirements.py tensorflow-cpu base    # without the extras
    python tools/requirements.py tensorflow-cpu fast    # an extra that make doesn't install

The builds share one import name, and pip can't know: so the venv is filled from this list, and the package
put on top with --no-deps. On Linux the CPU build is a download of 270 MB, the other one of 600 MB.
"""

import re
import sys
from pathlib import Path

INSTALLED = ("base", "course", "transfer", "download", "cluster", "lite", "export", "test")
PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def requirements(text):
    """{"base": [...], EXTRA: [...]} of a pyproject.toml; read without tomllib, which Python 3.10 lacks."""
    extras = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    base = re.search(r"^dependencies = \[\n.*?^\]", text, re.M | re.S)[0]
    lists = re.findall(r"^(\w+) = \[\n(.*?)^\]", base + extras, re.M | re.S)
    found = {name: re.findall(r'^ +"(.+)",', body, re.M) for name, body in lists}
    return {"base": found.pop("dependencies"), **found}


if __name__ == "__main__":
    build = sys.argv[1] if len(sys.argv) > 1 else "tensorflow"
    groups = requirements(PYPROJECT.read_text(encoding="utf-8"))
    for name in sys.argv[2:] or INSTALLED:
        for line in groups[name]:
            print(re.sub(r"^tensorflow(?=\W)", build, line))
