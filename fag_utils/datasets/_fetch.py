"""Fetching one file, from a server over http, from Google Drive or from Kaggle, whatever goes wrong on the way.

Three libraries do it: requests, gdown and kagglehub. Not pooch: it begins again after a break, and these files are
large and their servers slow. requests has no way to go on either, but the few lines for it are here.
"""

import contextlib
import errno
import html
import inspect
import itertools
import re
import time
from pathlib import Path

from tqdm import tqdm

from fag_utils.datasets._common import DownloadError
from fag_utils.datasets._unpack import need_space

TIMEOUT = 30  # seconds without a byte from a server
TRIES = 5  # in a row that bring nothing
PAUSE = 1.0  # seconds before the second try, twice as long before each further one
CHUNK = 2**16  # bytes to wait for: when a server stalls, what came of a chunk is lost
FULL = {errno.ENOSPC, errno.EDQUOT}
_LATER = {408, 429, 500, 502, 503, 504}


class NotThereError(DownloadError):
    """The server has no such file."""


class _Busy(Exception):
    """A trouble that may be over at the next try."""


@contextlib.contextmanager
def extra():
    """Around the imports of what only the extra `download` brings."""
    try:
        yield
    except ImportError as error:
        raise DownloadError(f"Getting the sets needs the package {error.name}: pip install filelock gdown kagglehub "
                            "requests (the extra `download` of fag-utils).") from error


def head(path):
    """The first 512 bytes of a file."""
    with open(path, "rb") as file:
        return file.read(512)


def page_title(start):
    """The title of a web page that starts with these bytes; None where it is no web page."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not text.startswith((b"<!doctype html", b"<html", b"<head", b"<script")):
        return None
    title = re.search(rb"<title[^>]*>(.*?)</title>", start, re.IGNORECASE | re.DOTALL)
    return html.unescape(title[1].decode("utf-8", "replace")).strip()[:100] if title else "without a title"


def check_no_page(start, name, address):
    """DownloadError where a server sent a page, as on a used-up quota, instead of the file `name`."""
    if (title := page_title(start)) is not None:
        raise DownloadError(f"{address} sent a web page, {title!r}, instead of {name}. Often too many have asked for "
                            "the file: try again tomorrow, or open the address in a browser.")


def one_line(error):
    """An exception of a library as a short text."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def over_http(address, target, size=0, auth=None, quiet=False):
    """Download a file; it is at `target` only when all came.

    Until then what came is in TARGET.part, and the next try, or call, goes on from there where the server can.
    size : bytes the file must have, 0 if that isn't known
    auth : (user, password) for the server, and for no other that it may redirect to

    Raises DownloadError when the server gives it no more, or something else.
    """
    with extra():
        import requests
        import urllib3
    part = target.with_name(f"{target.name}.part")
    tag = target.with_name(f"{target.name}.part.tag")  # by which the server tells one version of a file from another
    troubles = 0
    bar = tqdm(desc=target.name, unit="B", unit_scale=True, disable=quiet)
    with requests.Session() as session, bar:
        session.headers["Accept-Encoding"] = "identity"  # else bytes could not be counted
        session.auth = auth
        while True:
            have = _size(part)
            try:
                if _request(session, address, part, tag, size, bar):
                    break
                trouble = "the connection broke off"
            except _Busy as busy:
                trouble = str(busy)
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                trouble = one_line(error)
            troubles = 0 if _size(part) > have else troubles + 1
            if troubles >= TRIES:
                raise DownloadError(f"{address} gave {_size(part):,} bytes of {target.name} and then no more, in "
                                    f"{TRIES} tries: {trouble}\nCall again later: it goes on from there.")
            time.sleep(PAUSE * 2**troubles)
    part.replace(target)
    tag.unlink(missing_ok=True)


def _size(path):
    return path.stat().st_size if path.exists() else 0


def _request(session, address, part, tag, size, bar):
    """Ask once for what is lacking in `part`; True when all has come. The exceptions of requests pass."""
    have = _size(part)
    name = part.name.removesuffix(".part")
    headers = {"Range": f"bytes={have}-"} if have else {}
    if have and tag.exists():
        headers["If-Range"] = tag.read_text(encoding="latin-1")
    with session.get(address, headers=headers, stream=True, timeout=TIMEOUT) as response:
        start, total = _range(response)
        if response.status_code == 416:  # there is nothing after these bytes
            if total == have:
                return True
            part.unlink()  # they are of another file
            raise _Busy(f"{address} has {total} bytes, fewer than came before")
        _check_status(response, name, address)
        if start not in (0, have):
            raise _Busy(f"{address} sent bytes from {start} on, not from {have}")
        if size and total and total != size:
            check_no_page(response.raw.read(4096, decode_content=False), name, address)
            raise DownloadError(f"{address} has {total:,} bytes, and {name} has {size:,}: it is not the file that "
                                "was published there.")
        if total:
            need_space(part.parent, total - start, name)
        validator = response.headers.get("ETag", "")
        if not validator or validator.startswith("W/"):  # a weak one doesn't promise the same bytes
            validator = response.headers.get("Last-Modified", "")
        tag.unlink(missing_ok=True)
        if validator:
            tag.write_text(validator, encoding="latin-1")
        bar.total, bar.n = total, start
        # As they are sent: some servers call a .tar.gz a compressed .tar, and requests would undo that.
        chunks = response.raw.stream(CHUNK, decode_content=False)
        first = next(chunks, b"")
        if start == 0:
            check_no_page(first, name, address)
        with open(part, "ab" if start else "wb") as out:
            for chunk in itertools.chain([first], chunks):
                out.write(chunk)
                bar.update(len(chunk))
            came = out.tell()
    return total is None or came == total


def _check_status(response, name, address):
    status = response.status_code
    if status in (200, 206):
        return
    reason = f"{address} answered {status} ({response.reason})"
    if status in _LATER:
        wait = response.headers.get("Retry-After", "")
        time.sleep(min(int(wait), TIMEOUT) if wait.isdigit() else 0)
        raise _Busy(reason)
    if status in (404, 410):
        raise NotThereError(f"{reason}: {name} is not there any more.")
    if status in (401, 407):
        raise DownloadError(f"{reason}: user name or password are not right.")
    raise DownloadError(f"{reason}: it doesn't give {name} to everybody. Open the address in a browser.")


def _range(response):
    """(first byte, bytes of the whole file or None) of what a server sends."""
    if response.status_code in (206, 416):
        found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", ""))
        start, total = found.groups() if found else (None, "*")
        return int(start or 0), None if total == "*" else int(total)
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def from_drive(number, target, quiet=False):
    """Download a file of Google Drive, by the ID in its address."""
    with extra():
        import gdown
    address = f"https://drive.google.com/uc?id={number}"
    # gdown goes on from what an earlier call left beside the target. Since version 6 it can also give up waiting.
    patience = {"timeout": TIMEOUT, "retries": TRIES}
    if "timeout" not in inspect.signature(gdown.download).parameters:
        patience = {}
    try:
        gdown.download(id=number, output=str(target), quiet=quiet, resume=True, **patience)
    except Exception as error:  # gdown's own, those of requests, and the system's
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        raise DownloadError(f"{address} gave no {target.name}: {one_line(error)}") from error
    if not target.is_file():  # so says gdown before version 6 that it failed
        raise DownloadError(f"{address} gave no {target.name}: open it in a browser to see why.")
    start = head(target)
    if page_title(start) is not None:
        target.unlink()
    check_no_page(start, target.name, address)


def from_kaggle(handle):
    """Path of the folder into which kagglehub has downloaded a set, "OWNER/SET", or mounted it."""
    with extra():
        import kagglehub
    try:
        return Path(kagglehub.dataset_download(handle))
    except Exception as error:  # kagglehub's own, those of requests, and the system's
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        raise DownloadError(
            f"Kaggle gave no {handle}: {one_line(error)}\nIf it asks who you are: make a token at "
            "https://www.kaggle.com/settings and put it into the environment variable KAGGLE_API_TOKEN. If it asks "
            f"for consent: give it at https://www.kaggle.com/datasets/{handle}.") from error


def github_files(address, pattern):
    """What GitHub lists of a folder, at an address of its API: sorted [(name, address, bytes, SHA-1 of the blob)].

    [] where it doesn't answer: without a password it answers one address 60 times an hour, and Colab's machines
    share theirs.
    """
    with extra():
        import requests
    try:
        entries = requests.get(address, timeout=TIMEOUT).json()
        return sorted((entry["name"], entry["download_url"], entry["size"], entry["sha"])
                      for entry in entries if re.fullmatch(pattern, entry["name"]))
    except (requests.RequestException, ValueError, TypeError, KeyError):
        return []
