"""For `make test-colab`: say which of Colab's packages an environment has no longer in Colab's version.

    .venv-colab/bin/python tools/colab.py      # after the course's package was installed: exit status 1 if any

On Colab, a package that replaces one of theirs makes the reader restart the session, or breaks it.
"""

import sys
from importlib import metadata
from pathlib import Path

PINS = Path(__file__).with_name("colab.txt")


def replaced(pins, version):
    """{name: (Colab's version, the version here)} of the packages that differ."""
    wanted = dict(line.split("==") for line in pins.splitlines() if "==" in line)
    return {name: (pin, version(name)) for name, pin in wanted.items() if version(name) != pin}


if __name__ == "__main__":
    different = replaced(PINS.read_text(encoding="utf-8"), metadata.version)
    for name, (colab, here) in different.items():
        print(f"{name}: Colab has {colab}, and installing the course made it {here}")
    sys.exit(bool(different))
