"""The sets from a terminal.

    python -m fag_utils.datasets                        which are there, and where
    python -m fag_utils.datasets get celeba utkface     get them: download, check, unpack
"""

import argparse
import sys
from pathlib import Path

from fag_utils import datasets


def main(arguments=None):
    """Run one command; 0 when all went well, else 1."""
    parser = argparse.ArgumentParser(prog="python -m fag_utils.datasets", description="The public sets of faces.")
    commands = parser.add_subparsers(dest="command")
    get = commands.add_parser("get", help="download, check and unpack sets")
    get.add_argument("names", nargs="+", choices=datasets.NAMES, metavar="NAME",
                     help=f"one or more of: {', '.join(datasets.NAMES)}")
    get.add_argument("--root", type=Path, help="the folder of the sets; else FAG_DATA, or data/")
    get.add_argument("--keep", action="store_true", help="keep the archives in the folder downloads")
    get.add_argument("--quiet", action="store_true", help="no bars and no remarks")
    chosen = parser.parse_args(arguments)
    if chosen.command is None:
        for name, folder in datasets.find().items():
            print(f"{name:14} {folder or '-'}")
        return 0
    failed = 0
    for name in chosen.names:
        try:
            print(datasets.get(name, chosen.root, keep=chosen.keep, quiet=chosen.quiet))
        except datasets.DownloadError as error:
            print(error, file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
