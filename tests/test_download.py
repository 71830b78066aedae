"""Getting the sets, from a server on this machine that does all that servers do; no test needs the internet."""

import contextlib
import gzip
import hashlib
import http.server
import io
import json
import lzma
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import layouts
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fag_utils import datasets
from fag_utils.datasets import _fetch, _unpack, download
from fag_utils.datasets.download import File, Source

PAGE = b"<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body></body></html>"
ROOT = Path(__file__).resolve().parent.parent


# ---------------------------------------------------------------- a server with troubles

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        server, path = self.server, self.path.partition("?")[0]
        server.asked.append((path, dict(self.headers)))
        trouble = server.troubles[path].pop(0) if server.troubles.get(path) else None
        self.close_connection = True
        if isinstance(trouble, int):
            return self.answer(trouble, b"", {"Retry-After": "0"})
        if trouble == "page":
            return self.answer(200, PAGE, {"Content-Type": "text/html"})
        if isinstance(trouble, str) and trouble.startswith("http"):
            return self.answer(302, b"", {"Location": trouble})
        if path not in server.files:
            return self.answer(404, b"")
        data = server.files[path]
        headers = {"ETag": f'"{hashlib.md5(data).hexdigest()}"', **server.headers}
        asked = self.headers.get("Range")
        if asked and server.ranges and self.headers.get("If-Range", headers["ETag"]) == headers["ETag"]:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                return self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            if trouble == "elsewhere":  # other bytes than those it was asked for
                start += 1
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self.send(206, data[start:], headers, trouble)
        self.send(200, data, headers, trouble)

    def answer(self, status, body, headers=()):
        self.send(status, body, dict(headers), None)

    def send(self, status, body, headers, trouble):
        length = {"longer": len(body) + 1000, "shorter": len(body) // 2}.get(trouble, len(body))
        self.send_response(status)
        for name, value in {"Content-Length": length, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if trouble == "shorter":
            body = body[:length]
        with contextlib.suppress(ConnectionError):
            if trouble not in ("break", "stall", "trickle"):
                self.wfile.write(body)
                return
            self.wfile.write(body[: 100 if trouble == "trickle" else len(body) // 2])
            self.wfile.flush()
            if trouble == "stall":
                self.server.going_on.wait(20)


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        made.daemon_threads = True
        made.files, made.troubles, made.headers, made.ranges, made.asked = {}, {}, {}, True, []
        made.going_on = threading.Event()
        made.url = f"http://127.0.0.1:{made.server_port}"
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield made
        made.going_on.set()
        made.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """No internet, no Drive, nothing of Kaggle, and no patience."""
    connect = socket.socket.connect

    def local(self, address):
        assert not isinstance(address, tuple) or address[0] in ("127.0.0.1", "::1"), f"{address} is on the internet"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local)
    monkeypatch.setattr(download, "DRIVE", tmp_path / "drive" / "fag_data")
    monkeypatch.setattr(download, "KAGGLE_INPUT", tmp_path / "kaggle" / "input")
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kagglehub"))
    for name in ("FAG_ADIENCE_USER", "FAG_ADIENCE_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_fetch, "PAUSE", 0)
    monkeypatch.setattr(_fetch, "TIMEOUT", 0.3)
    monkeypatch.setattr(_fetch, "CHUNK", 1024)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The folder of the sets; its name is not plain ASCII."""
    monkeypatch.setenv("FAG_DATA", str(tmp_path / "Übungs daten"))
    return tmp_path / "Übungs daten"


def tarred(folder, mode="w:gz"):
    """The bytes of an archive of all that is in a folder."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode) as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name)
    return made.getvalue()


def zipped(members):
    """The bytes of a zip of (name or ZipInfo, content)."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return made.getvalue()


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """UTKFace in small, as its archive."""
    folder = tmp_path_factory.mktemp("utkface")
    layouts.utkface(folder)
    return tarred(folder)


@pytest.fixture
def utkface(server, monkeypatch, faces):
    """UTKFace is on the server, and its SHA-256 is published."""
    server.files["/UTKFace.tar.gz"] = faces
    publish(monkeypatch, "utkface", File("UTKFace.tar.gz", f"{server.url}/UTKFace.tar.gz", len(faces),
                                         f"sha256:{hashlib.sha256(faces).hexdigest()}"))
    return faces


def publish(monkeypatch, name, *files, **more):
    monkeypatch.setitem(download.SOURCES, name, Source(files=files, **more))


def get(name, **options):
    return datasets.get(name, quiet=True, **options)


def refused(name, *words, **options):
    """The text of the DownloadError that `get` raises, with these words in it; the set is not there then."""
    with pytest.raises(datasets.DownloadError) as error:
        get(name, **options)
    text = str(error.value)
    assert not [word for word in words if word not in text], text
    assert datasets.find()[name] is None
    assert not list(datasets.data_dir().glob(".*-unpacking-*")), "a part was left over"
    return text


def ranges(server):
    return [headers.get("Range") for _, headers in server.asked]


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------- when all goes well

def test_a_set_is_downloaded_unpacked_found_and_read(server, utkface, root):
    place = get("utkface")
    assert place == root / "utkface" == datasets.find()["utkface"]
    assert len(datasets.read("utkface")) == len(layouts.UTKFACE)
    assert files_in(root) == {f"utkface/UTKFace/{name}" for name in layouts.UTKFACE} | {
        "downloads/utkface.json", "downloads/utkface.lock"}
    assert get("utkface") == place and len(server.asked) == 1
    assert stat.S_IMODE(place.stat().st_mode) & 0o055 == 0o055, "others can't read it"


def test_what_came_is_remembered_and_the_archive_kept_on_demand(utkface, root):
    get("utkface", keep=True)
    assert (root / "downloads" / "utkface" / "fetched" / "UTKFace.tar.gz").read_bytes() == utkface
    record = json.loads((root / "downloads" / "utkface.json").read_text())["UTKFace.tar.gz"]
    assert record["bytes"] == len(utkface) and record["sha256"] == hashlib.sha256(utkface).hexdigest()
    shutil.rmtree(root / "utkface")
    get("utkface", keep=True)  # from the archive that was kept
    assert len(datasets.read("utkface")) == len(layouts.UTKFACE)


def test_without_a_published_checksum_what_came_is_told_and_a_change_too(server, root, monkeypatch, faces, capsys):
    server.files["/UTKFace.tar.gz"] = faces
    publish(monkeypatch, "utkface", File("UTKFace.tar.gz", f"{server.url}/UTKFace.tar.gz"))
    datasets.get("utkface")
    told = capsys.readouterr()
    first = hashlib.sha256(faces).hexdigest()
    assert first in told.out and "non-commercial" in told.out and "changed" not in told.out
    assert "UTKFace.tar.gz: 100%" in told.err
    shutil.rmtree(root / "utkface")
    server.files["/UTKFace.tar.gz"] = gzip.compress(gzip.decompress(faces), mtime=0)
    datasets.get("utkface")
    told = capsys.readouterr().out
    assert hashlib.sha256(server.files["/UTKFace.tar.gz"]).hexdigest() in told
    assert first in told and "changed" in told


@pytest.mark.parametrize("name", ["celeba", "afad", "megaage_asian", "imdb_wiki", "adience", "lag"])
@pytest.mark.parametrize("mode", ["w", "w:xz"])
def test_every_set_can_be_read_as_it_was_unpacked(server, root, monkeypatch, tmp_path, name, mode):
    layouts.MAKERS[name](tmp_path / "made")
    server.files["/set.tar"] = tarred(tmp_path / "made", mode)
    publish(monkeypatch, name, File("set.tar", f"{server.url}/set.tar"))
    assert datasets.read(name, get(name))["path"].map(os.path.basename).tolist() == (
        datasets.read(name, tmp_path / "made")["path"].map(os.path.basename).tolist())


def test_lists_and_archives_of_one_set(server, root, monkeypatch, tmp_path):
    """LFW: its genders are a folder of Dropbox, whose archives begin with an entry for the folder, "/"."""
    made = tmp_path / "made"
    layouts.lfw(made)
    lists = [(path.name, path.read_bytes()) for path in made.glob("*.txt")]
    server.files["/genders"] = zipped([("/", b""), *lists])
    for path in made.glob("*.txt"):
        path.unlink()
    server.files["/lfw.tgz"] = tarred(made)
    publish(monkeypatch, "lfw", File("lfw.tgz", f"{server.url}/lfw.tgz"),
            File("lfw_genders.zip", f"{server.url}/genders?dl=1", holds=("male_names.txt", "female_names.txt")))
    assert len(datasets.read("lfw", get("lfw"))) == 8
    shutil.rmtree(root / "lfw")
    server.files.pop("/genders")
    assert "male_names.txt and female_names.txt" in refused("lfw", "404", "/genders")
    for name, content in lists:
        (root / "downloads" / "lfw" / name).write_bytes(content)
    assert len(datasets.read("lfw", get("lfw"))) == 8
    assert files_in(root / "downloads" / "lfw") == {"male_names.txt", "female_names.txt"}, "not ours to delete"


def test_an_unknown_set_is_refused_with_the_names_of_those_there_are():
    with pytest.raises(ValueError, match="utkface"):
        datasets.get("mnist")


def test_the_table_of_sources_is_well_formed():
    assert list(download.SOURCES) == datasets.NAMES
    lengths = {"sha256": 64, "md5": 32}
    for name, source in download.SOURCES.items():
        assert source.files or source.kaggle, name
        for file in source.files:
            assert file.address.startswith(("https://", "http://", "drive:")) or file.address == "", file
            kind, _, value = file.checksum.partition(":")
            assert not kind or (len(value) == lengths[kind] and int(value, 16)), file
        assert max(source.about, 1) >= sum(file.size for file in source.files)


# ---------------------------------------------------------------- servers

def test_a_broken_download_goes_on_where_it_broke(server, utkface, root):
    server.troubles["/UTKFace.tar.gz"] = ["break", "break", 503]
    get("utkface", keep=True)
    half, quarter = len(utkface) // 2, (len(utkface) - len(utkface) // 2) // 2
    assert ranges(server) == [None, f"bytes={half}-", f"bytes={half + quarter}-", f"bytes={half + quarter}-"]
    assert server.asked[1][1]["If-Range"] == f'"{hashlib.md5(utkface).hexdigest()}"'
    assert (root / "downloads" / "utkface" / "fetched" / "UTKFace.tar.gz").read_bytes() == utkface


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(server, utkface, root):
    server.troubles["/UTKFace.tar.gz"] = ["break"] + [503] * _fetch.TRIES
    text = refused("utkface", f"{len(utkface) // 2:,} bytes", "503", "Call again")
    assert "UTKFace.tar.gz" in text and "By hand" in text
    server.asked.clear()
    assert get("utkface")
    assert ranges(server) == [f"bytes={len(utkface) // 2}-"]


def test_a_file_that_changed_meanwhile_is_begun_anew(server, root, monkeypatch, faces):
    old = gzip.compress(gzip.decompress(faces), 1, mtime=0)
    server.files["/UTKFace.tar.gz"] = old
    publish(monkeypatch, "utkface", File("UTKFace.tar.gz", f"{server.url}/UTKFace.tar.gz"))
    server.troubles["/UTKFace.tar.gz"] = ["break"] + [503] * _fetch.TRIES
    refused("utkface")
    server.files["/UTKFace.tar.gz"] = faces
    get("utkface", keep=True)
    assert ranges(server)[-1], "it did not ask to go on"
    assert (root / "downloads" / "utkface" / "fetched" / "UTKFace.tar.gz").read_bytes() == faces


def test_a_part_that_is_longer_than_the_file_is_thrown_away(server, utkface, root):
    folder = root / "downloads" / "utkface" / "fetched"
    folder.mkdir(parents=True)
    (folder / "UTKFace.tar.gz.part").write_bytes(bytes(len(utkface) + 5))
    assert get("utkface")
    assert ranges(server) == [f"bytes={len(utkface) + 5}-", None]


def test_a_part_that_is_all_needs_no_more(server, utkface, root):
    folder = root / "downloads" / "utkface" / "fetched"
    folder.mkdir(parents=True)
    (folder / "UTKFace.tar.gz.part").write_bytes(utkface)
    assert get("utkface")
    assert ranges(server) == [f"bytes={len(utkface)}-"]


def test_a_server_that_knows_no_ranges_begins_anew(server, utkface, root):
    server.ranges = False
    server.troubles["/UTKFace.tar.gz"] = ["break"]
    assert get("utkface")
    assert ranges(server) == [None, f"bytes={len(utkface) // 2}-"]


def test_a_server_that_sends_other_bytes_than_asked_is_asked_again(server, utkface, root):
    server.troubles["/UTKFace.tar.gz"] = ["break", "elsewhere"]
    assert get("utkface")
    half = len(utkface) // 2
    assert ranges(server) == [None, f"bytes={half}-", f"bytes={half}-"]


def test_a_server_that_stalls_is_left_and_asked_again(server, utkface, root):
    server.troubles["/UTKFace.tar.gz"] = ["stall"]
    assert get("utkface")
    (first, second) = ranges(server)
    assert first is None and len(utkface) // 2 - 1024 <= int(second[6:-1]) <= len(utkface) // 2


def test_a_server_that_always_breaks_off_is_given_up(server, utkface, root):
    server.ranges = False
    server.troubles["/UTKFace.tar.gz"] = ["trickle"] * 99
    refused("utkface", "100 bytes", f"{_fetch.TRIES} tries", "Call again later")
    assert len(server.asked) == _fetch.TRIES + 1


def test_a_server_that_promises_more_than_it_has(server, utkface, root, monkeypatch):
    publish(monkeypatch, "utkface", File("UTKFace.tar.gz", f"{server.url}/UTKFace.tar.gz"))
    server.troubles["/UTKFace.tar.gz"] = ["longer"]
    assert get("utkface")  # the second request shows that nothing was lacking
    assert ranges(server) == [None, f"bytes={len(utkface)}-"]


def test_a_server_that_promises_less_than_it_has(server, utkface, root, monkeypatch):
    server.troubles["/UTKFace.tar.gz"] = ["shorter"]
    refused("utkface", f"{len(utkface):,}", "not the file that was published")
    publish(monkeypatch, "utkface", File("UTKFace.tar.gz", f"{server.url}/UTKFace.tar.gz"))
    server.troubles["/UTKFace.tar.gz"] = ["shorter"]
    refused("utkface", "UTKFace.tar.gz was not unpacked", "damaged", "It was deleted: call again")
    assert get("utkface")


def test_a_page_instead_of_the_file(server, utkface, root, monkeypatch):
    server.troubles["/UTKFace.tar.gz"] = ["page"]
    refused("utkface", "web page", "Quota exceeded", "tomorrow", server.url, "By hand")
    publish(monkeypatch, "utkface", File("UTKFace.tar.gz", f"{server.url}/UTKFace.tar.gz"))
    server.troubles["/UTKFace.tar.gz"] = ["page"]
    refused("utkface", "web page", "Quota exceeded")
    assert files_in(root) == {"downloads/utkface.lock"} and get("utkface")


def test_something_else_instead_of_the_archive(server, root, monkeypatch):
    server.files["/UTKFace.tar.gz"] = b"Service is busy"
    publish(monkeypatch, "utkface", File("UTKFace.tar.gz", f"{server.url}/UTKFace.tar.gz"))
    refused("utkface", "no archive", "It was deleted")
    assert not list((root / "downloads").rglob("*.gz"))


def test_a_wrong_checksum(server, utkface, root):
    server.files["/UTKFace.tar.gz"] = utkface[:-1] + b"?"
    refused("utkface", hashlib.sha256(utkface).hexdigest(), "damaged, or another one", "It was deleted: call again")
    server.files["/UTKFace.tar.gz"] = utkface
    assert get("utkface")


@pytest.mark.parametrize("status, words, requests", [
    (404, "not there any more", 1), (403, "everybody", 1), (429, "in 5 tries", 5), (500, "in 5 tries", 5)])
def test_a_server_that_refuses(server, utkface, root, status, words, requests):
    server.troubles["/UTKFace.tar.gz"] = [status] * requests
    refused("utkface", f"answered {status}", words, server.url, str(root / "downloads" / "utkface"))
    assert len(server.asked) == requests
    assert get("utkface")


def test_a_server_that_is_not_there(root, monkeypatch):
    publish(monkeypatch, "utkface", File("UTKFace.tar.gz", "http://127.0.0.1:9/UTKFace.tar.gz"))
    refused("utkface", "127.0.0.1:9", "gave 0 bytes", "By hand: get 'Aligned&Cropped Faces'")


def test_a_server_that_calls_the_archive_compressed_content(server, utkface, root):
    server.headers = {"Content-Encoding": "gzip", "Content-Type": "application/x-tar"}
    assert get("utkface")


# ---------------------------------------------------------------- user and password

@pytest.fixture
def adience(server, root, monkeypatch, tmp_path):
    layouts.adience(tmp_path / "made")
    server.files["/aligned.tar.gz"] = tarred(tmp_path / "made")
    publish(monkeypatch, "adience", File("aligned.tar.gz", f"{server.url}/aligned.tar.gz"),
            form=download.SOURCES["adience"].form)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_what_needs_a_form_says_so_and_where(adience, server, root):
    refused("adience", "https://talhassner.github.io", "auth=(user, password)", "FAG_ADIENCE_PASSWORD",
            str(root / "downloads" / "adience"))
    assert not server.asked
    server.troubles["/aligned.tar.gz"] = [401]
    assert "wrong!" not in refused("adience", "password are not right", auth=("somebody", "wrong!"))


@pytest.mark.parametrize("way", ["auth", "environment", "netrc"])
def test_the_users_own_password_is_used(adience, server, monkeypatch, way, tmp_path):
    auth = None
    if way == "auth":
        auth = ("me", "secret")
    elif way == "netrc":
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    else:
        monkeypatch.setenv("FAG_ADIENCE_USER", "me")
        monkeypatch.setenv("FAG_ADIENCE_PASSWORD", "secret")
    assert get("adience", auth=auth)
    assert [headers["Authorization"] for _, headers in server.asked] == ["Basic bWU6c2VjcmV0"]
    record = (datasets.data_dir() / "downloads" / "adience.json").read_text()
    assert "secret" not in record


def test_the_password_goes_to_no_other_server(adience, server):
    other = server.url.replace("127.0.0.1", "localhost")
    server.troubles["/aligned.tar.gz"] = [f"{other}/aligned.tar.gz"]
    assert get("adience", auth=("me", "secret"))
    assert ["Authorization" in headers for _, headers in server.asked] == [True, False]


# ---------------------------------------------------------------- split archives

@pytest.fixture
def afad(server, root, monkeypatch, tmp_path):
    """AFAD in pieces as in its authors' repository, and GitHub's list of them."""
    layouts.afad(tmp_path / "made")
    data = tarred(tmp_path / "made", "w:xz")
    size = len(data) // 27 + 1
    ends = [a + b for a in "ab" for b in "abcdefghijklmnopqrstuvwxyz"]
    pieces = {f"AFAD-Full.tar.xz{ends[i]}": data[i * size:(i + 1) * size] for i in range(27)}
    assert b"".join(pieces.values()) == data and "AFAD-Full.tar.xzba" in pieces
    entries = [{"name": "README.txt", "size": 3, "sha": "0" * 40, "download_url": f"{server.url}/README.txt"}]
    for name, piece in pieces.items():
        server.files[f"/{name}"] = piece
        sha = hashlib.sha1(b"blob %d\0" % len(piece) + piece).hexdigest()
        entries.append({"name": name, "size": len(piece), "sha": sha, "download_url": f"{server.url}/{name}"})
    server.files["/contents"] = json.dumps(entries).encode()
    publish(monkeypatch, "afad",
            File("AFAD-Full.tar.xz", f"{server.url}/AFAD-Full.tar.xz", pieces=f"{server.url}/contents"))
    return pieces


def test_pieces_are_checked_one_by_one_and_unpacked_as_one(server, afad, root):
    server.troubles["/AFAD-Full.tar.xzac"] = ["break"]
    assert (datasets.read("afad", get("afad", keep=True))["age"] == 72).sum() == 6
    assert len(server.asked) == 1 + len(afad) + 1
    assert files_in(root / "downloads" / "afad" / "fetched") == set(afad), "the joined archive takes no room"


def test_a_damaged_piece_is_got_again_alone(server, afad, root):
    good = server.files["/AFAD-Full.tar.xzba"]
    server.files["/AFAD-Full.tar.xzba"] = bytes(len(good))
    refused("afad", "AFAD-Full.tar.xzba", "(git)", "It was deleted")
    server.files["/AFAD-Full.tar.xzba"] = good
    server.asked.clear()
    assert get("afad")
    assert [path for path, _ in server.asked] == ["/contents", "/AFAD-Full.tar.xzba"]


def test_without_githubs_list_the_pieces_are_asked_for_by_name(server, afad, root):
    server.files["/contents"] = b'{"message": "API rate limit exceeded"}'
    assert get("afad")
    assert server.asked[-1][0] == "/AFAD-Full.tar.xzbb"


def test_a_last_piece_that_is_lacking_is_noticed(server, afad, root):
    server.files.pop("/contents")
    server.files.pop("/AFAD-Full.tar.xzba")
    refused("afad", "AFAD-Full.tar.xz was not unpacked", "damaged")


def test_an_archive_joined_by_hand_does_as_well(server, afad, root):
    folder = root / "downloads" / "afad"
    folder.mkdir(parents=True)
    (folder / "AFAD-Full.tar.xz").write_bytes(b"".join(afad.values()))
    assert get("afad") and not server.asked
    assert (folder / "AFAD-Full.tar.xz").exists(), "not ours to delete"


# ---------------------------------------------------------------- Google Drive and Kaggle

@pytest.fixture
def on_drive(monkeypatch, faces):
    publish(monkeypatch, "utkface", File("UTKFace.tar.gz", "drive:0Bxyz", len(faces),
                                         f"md5:{hashlib.md5(faces).hexdigest()}"))


def fake_gdown(monkeypatch, result):
    """A gdown (as it was before version 6) that brings some bytes, or raises an error, or nothing."""
    def bring(url=None, output=None, quiet=False, id=None, resume=False):
        assert (id, resume, url) == ("0Bxyz", True, None)
        if isinstance(result, Exception):
            raise result
        if result is None:
            return None
        Path(output).write_bytes(result)
        return output

    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=bring))


def test_google_drive(on_drive, root, monkeypatch, faces):
    fake_gdown(monkeypatch, faces)
    assert get("utkface") == datasets.find()["utkface"]


@pytest.mark.parametrize("result, words", [
    (PAGE, "Quota exceeded"), (None, "gave no UTKFace.tar.gz"), (RuntimeError("Too many users"), "Too many users"),
    (b"\x1f\x8bdamaged", "checksum")], ids=["page", "nothing", "error", "damaged"])
def test_google_drive_that_gives_nothing(on_drive, root, monkeypatch, result, words):
    fake_gdown(monkeypatch, result)
    refused("utkface", words, "By hand")
    assert not list((root / "downloads" / "utkface" / "fetched").iterdir())


def test_the_real_gdown_goes_on_where_it_broke(on_drive, server, root, monkeypatch, faces, tmp_path):
    requests = pytest.importorskip("requests")
    pytest.importorskip("gdown.download")
    server.files["/uc"] = faces
    server.headers = {"Content-Disposition": 'attachment; filename="x.tar.gz"', "Content-Type": "application/gzip"}
    ask = requests.Session.get
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(requests.Session, "get", lambda self, url, **options: ask(
        self, url.replace("https://drive.google.com", server.url), **options))
    monkeypatch.setattr(sys.modules["gdown.download"], "CHUNK_SIZE", 1024)
    server.troubles["/uc"] = ["break"]
    with contextlib.suppress(datasets.DownloadError):  # gdown before version 6 leaves the second try to us
        get("utkface")
    assert get("utkface")
    assert f"bytes={len(faces) // 2 // 1024 * 1024}-" in ranges(server)


def test_kaggle_steps_in_for_google_drive(on_drive, root, monkeypatch, faces, tmp_path, capsys):
    fake_gdown(monkeypatch, PAGE)
    file = download.SOURCES["utkface"].files[0]
    publish(monkeypatch, "utkface", file, kaggle="jangedoo/utkface-new")
    cache = tmp_path / "kagglehub" / "datasets" / "jangedoo" / "utkface-new"

    def bring(handle):
        assert handle == "jangedoo/utkface-new"
        layouts.utkface(cache / "versions" / "3")
        (cache / "3.complete").touch()
        return str(cache / "versions" / "3")

    monkeypatch.setitem(sys.modules, "kagglehub", types.SimpleNamespace(dataset_download=bring))
    assert datasets.get("utkface") == datasets.find()["utkface"] == cache / "versions" / "3"
    assert "Quota exceeded" in capsys.readouterr().out
    assert len(datasets.read("utkface")) == len(layouts.UTKFACE)


def test_kaggle_that_asks_who_you_are(root, monkeypatch):
    def refuse(handle):
        raise OSError("403 Client Error")

    monkeypatch.setitem(sys.modules, "kagglehub", types.SimpleNamespace(dataset_download=refuse))
    text = refused("utkface", "403 Client Error", "https://www.kaggle.com/settings", "KAGGLE_API_TOKEN",
                   "https://www.kaggle.com/datasets/jangedoo/utkface-new", "UTKFace.tar.gz")
    assert str(root / "downloads" / "utkface") in text


def test_kaggle_that_has_another_set_now(root, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "kagglehub", types.SimpleNamespace(dataset_download=lambda _: str(tmp_path)))
    refused("utkface", "not the set as its reader knows it")


def test_what_kagglehub_has_is_found_only_when_it_is_complete(root, tmp_path):
    kagglehub = pytest.importorskip("kagglehub")
    layouts.utkface(tmp_path / "kagglehub" / "datasets" / "jangedoo" / "utkface-new" / "versions" / "1")
    assert datasets.find()["utkface"] is None
    handle = kagglehub.handle.parse_dataset_handle("jangedoo/utkface-new/versions/1")
    kagglehub.cache.Cache().mark_as_complete(handle)
    assert str(datasets.find()["utkface"]) == kagglehub.cache.Cache().get_path(handle)
    assert datasets.find(tmp_path)["utkface"] is None, "only what stands for the data folder is completed"
    assert get("utkface") == datasets.find()["utkface"]


def test_what_a_notebook_mounts_is_found(root, tmp_path):
    layouts.utkface(tmp_path / "kaggle" / "input" / "utkface-new")
    layouts.celeba(tmp_path / "kaggle" / "input" / "datasets" / "jessicali9530" / "celeba-dataset")
    assert len(datasets.read("utkface")) == len(layouts.UTKFACE) and len(datasets.read("celeba")) == 60
    assert get("celeba") == datasets.find()["celeba"]


def test_what_lies_on_a_mounted_drive_is_found(root, tmp_path, faces):
    drive = tmp_path / "drive" / "fag_data"
    layouts.lag(drive / "LAG")
    assert datasets.find()["lag"] == drive / "LAG" == get("lag")
    (drive / "UTKFace.tar.gz").write_bytes(faces)
    assert get("utkface") == root / "utkface", "an archive is unpacked to the fast disk"
    assert (drive / "UTKFace.tar.gz").exists()
    layouts.lag(root / "lag")
    assert datasets.find()["lag"] == root / "lag"


@pytest.mark.parametrize("lacking", ["requests", "filelock", "gdown", "kagglehub"])
def test_a_lacking_package_is_named(utkface, root, monkeypatch, lacking):
    if lacking == "gdown":
        publish(monkeypatch, "utkface", File("UTKFace.tar.gz", "drive:0Bxyz"))
    elif lacking == "kagglehub":
        publish(monkeypatch, "utkface", kaggle="jangedoo/utkface-new")
    monkeypatch.setitem(sys.modules, lacking, None)
    refused("utkface", f"package {lacking}", "pip install filelock gdown kagglehub requests")


# ---------------------------------------------------------------- hostile and damaged archives

def member(name, content=b"x", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def tar_of(*members, mode="w:gz", **options):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode, **options) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return made.getvalue()


def linked(name, target, kind):
    return member(name, b"", type=kind, linkname=target)


def zip_with_mode(name, mode):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info, b"/etc/passwd"


HOSTILE_TARS = {
    "parent": [member("UTKFace/../../evil.jpg")],
    "absolute": [member("/tmp/evil.jpg")],
    "backslash": [member("..\\evil.jpg")],
    "drive letter": [member("C:/evil.jpg")],
    "symlink": [linked("UTKFace", "/tmp", tarfile.SYMTYPE), member("UTKFace/evil.jpg")],
    "symlink inside": [member("a.jpg"), linked("b.jpg", "a.jpg", tarfile.SYMTYPE)],
    "hard link": [linked("b.jpg", "/etc/passwd", tarfile.LNKTYPE)],
    "device": [member("null", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=3)],
    "pipe": [member("pipe", b"", type=tarfile.FIFOTYPE)],
    "file with holes": [member("a.jpg", type=tarfile.GNUTYPE_SPARSE)],
    "twice": [member("a.jpg"), member("./a.jpg")],
    "file as folder": [member("a"), member("a/b.jpg")],
    "folder as file": [member("a/b.jpg"), member("a")],
    "deep": [member("d/" * 50 + "a.jpg")],
    "long name": [member("d" * 2**21)],
    "no name": [member("./")],
}


@pytest.mark.parametrize("name", HOSTILE_TARS)
def test_a_hostile_tar_is_refused_and_nothing_is_left(server, utkface, root, monkeypatch, name):
    before = files_in(root.parent)
    server.files["/UTKFace.tar.gz"] = tar_of(*HOSTILE_TARS[name])
    publish(monkeypatch, "utkface", File("UTKFace.tar.gz", f"{server.url}/UTKFace.tar.gz"))
    text = refused("utkface", "UTKFace.tar.gz was not unpacked: it ")
    assert ("a link, a device or a file with holes" in text) == bool({"link", "device", "pipe", "holes"} & {
        *name.replace("sym", "").split()})
    left = files_in(root.parent) - before
    assert left == {f"{root.name}/downloads/utkface.{end}" for end in ("json", "lock")}
    assert not Path("/tmp/evil.jpg").exists()


HOSTILE_ZIPS = {
    "parent": [("../evil.jpg", b"x")],
    "absolute": [("/tmp/evil.jpg", b"x")],
    "backslash": [("a\\..\\..\\evil.jpg", b"x")],
    "symlink": [zip_with_mode("UTKFace", stat.S_IFLNK | 0o777)],
    "device": [zip_with_mode("null", stat.S_IFCHR | 0o666)],
    "device of Windows": [("UTKFace/nul.jpg", b"x")],
    "stream of Windows": [("a.jpg:hidden", b"x")],
    "control character": [("a\nb.jpg", b"x")],
    "twice": [("a.jpg", b"x"), ("a.jpg", b"y")],
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", HOSTILE_ZIPS)
def test_a_hostile_zip_is_refused_and_nothing_is_left(root, name):
    root.mkdir()
    (root / "UTKFace.tar.gz").write_bytes(zipped(HOSTILE_ZIPS[name]))
    (root / "inside").mkdir()
    with pytest.raises(datasets.DownloadError, match="^it has"):
        _unpack.unpack([root / "UTKFace.tar.gz"], root / "inside")
    assert files_in(root) - {"inside/a.jpg"} == {"UTKFace.tar.gz"}
    assert files_in(root.parent) == {f"{root.name}/{name}" for name in files_in(root)}


def test_a_zip_whose_name_ends_at_a_zero_byte_for_others(tmp_path):
    """zipfile itself cuts a name there: what is checked is the name as it stands in the archive."""
    (tmp_path / "a.zip").write_bytes(zipped([("a.jpg_.exe", b"x")]).replace(b"a.jpg_.exe", b"a.jpg\0.exe"))
    (tmp_path / "inside").mkdir()
    with pytest.raises(datasets.DownloadError, match="leads out"):
        _unpack.unpack([tmp_path / "a.zip"], tmp_path / "inside")


def test_case_clashes_are_two_files_or_an_error(tmp_path):
    """Where a disk tells a.jpg from A.jpg both are there; where not, no file silently replaces another."""
    (tmp_path / "a.zip").write_bytes(zipped([("a.jpg", b"x"), ("A.jpg", b"y")]))
    (tmp_path / "inside").mkdir()
    (tmp_path / "probe").touch()
    if (tmp_path / "PROBE").exists():
        with pytest.raises(datasets.DownloadError, match="twice"):
            _unpack.unpack([tmp_path / "a.zip"], tmp_path / "inside")
    else:
        _unpack.unpack([tmp_path / "a.zip"], tmp_path / "inside")
        assert {path.name: path.read_bytes() for path in (tmp_path / "inside").iterdir()} == {
            "a.jpg": b"x", "A.jpg": b"y"}


ZEROS = bytes(2**20)
BOMBS = {
    "zip": lambda: zipped([("a.jpg", ZEROS * 80)]),
    "zip of many": lambda: zipped([(f"{i}.jpg", ZEROS) for i in range(80)]),
    "tar.gz": lambda: tar_of(*[member(f"{i}.jpg", ZEROS) for i in range(80)]),
    "tar.xz": lambda: tar_of(*[member(f"{i}.jpg", ZEROS) for i in range(80)], mode="w:xz", preset=0),
    "headers": lambda: tar_of(member("a.jpg", pax_headers={"comment": "x" * 2**21}), format=tarfile.PAX_FORMAT),
    "later headers": lambda: tar_of(member("a.jpg"), member("b.jpg", pax_headers={"comment": "x" * 2**21})),
    "after the end": lambda: gzip.compress(tar_of(member("a.jpg"), mode="w") + ZEROS * 150, 1),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_does_not_fill_the_disk(tmp_path, name):
    data = BOMBS[name]()
    (tmp_path / "a").write_bytes(data)
    (tmp_path / "inside").mkdir()
    with pytest.raises(datasets.DownloadError, match="grow"):
        _unpack.unpack([tmp_path / "a"], tmp_path / "inside")
    written = sum(path.stat().st_size for path in (tmp_path / "inside").iterdir())
    assert written <= _unpack.SPARE + len(data) * _unpack.MOST_GROWTH


def test_more_files_than_any_set_has(tmp_path, monkeypatch):
    monkeypatch.setattr(_unpack, "MOST_FILES", 20)
    for data in (zipped([(f"{i}/", b"") for i in range(30)]), tar_of(*[member(f"{i}") for i in range(30)])):
        (tmp_path / "a").write_bytes(data)
        shutil.rmtree(tmp_path / "inside", ignore_errors=True)
        (tmp_path / "inside").mkdir()
        with pytest.raises(datasets.DownloadError, match="more than 20 files"):
            _unpack.unpack([tmp_path / "a"], tmp_path / "inside")


PHOTOS = zipped([("UTKFace/a.jpg", bytes(range(256)) * 12), ("UTKFace/b.jpg", b"b" * 3072)])
PLAIN = tar_of(*[member(f"UTKFace/{i}.jpg", bytes([i]) * 1024) for i in range(1, 9)], mode="w")
SECOND = PLAIN.index(b"UTKFace/2")  # where the header of the second file begins
PACKED = gzip.compress(PLAIN)
DAMAGED = {
    "gz cut": PACKED[: len(PACKED) // 2],
    "gz without its checksum": PACKED[:-8],
    "gz with a wrong checksum": PACKED[:-8] + b"12345678",
    "gz of nothing": b"\x1f\x8b",
    "xz cut": lzma.compress(PLAIN)[:-12],
    "tar cut in a file": PLAIN[: SECOND - 100],
    "tar cut between files": PLAIN[:SECOND],
    "tar with a broken header": PLAIN[:SECOND] + b"?" + PLAIN[SECOND + 1:],
    "tar without its end": PLAIN[: PLAIN.index(b"UTKFace/8") + 1536],
    "zip cut": PHOTOS[: len(PHOTOS) // 2],
    "zip with a wrong byte": PHOTOS[:60] + bytes([PHOTOS[60] ^ 1]) + PHOTOS[61:],
    "zip with a wrong size": PHOTOS.replace(struct.pack("<I", 3072), struct.pack("<I", 2000)),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_archive_is_no_set(root, name):
    folder = root / "downloads" / "utkface"
    folder.mkdir(parents=True)
    (folder / "UTKFace.tar.gz").write_bytes(DAMAGED[name])
    refused("utkface", "UTKFace.tar.gz was not unpacked: it is damaged", "Move")
    assert (folder / "UTKFace.tar.gz").exists(), "it was put there by hand"


def test_what_macos_adds_is_left_out(tmp_path):
    names = ["UTKFace/._a.jpg", "__MACOSX/UTKFace/a.jpg", "UTKFace/.DS_Store", "UTKFace/a.jpg"]
    (tmp_path / "inside").mkdir()
    (tmp_path / "a.tar").write_bytes(tar_of(*map(member, names)))
    _unpack.unpack([tmp_path / "a.tar"], tmp_path / "inside")
    assert files_in(tmp_path / "inside") == {"UTKFace/a.jpg"}


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b.jpg", "C:", "\\", "nul", "x ", "é", "\0", "~", "a\\..\\b"]),
                max_size=6).map("/".join) | st.text(max_size=20))
@example("/")
@example("UTKFace//24_0_1_20170116220224657 .jpg.chip.jpg")
def test_a_name_leads_into_the_folder_or_is_refused(name):
    try:
        parts = _unpack.safe_parts(name)
    except datasets.DownloadError:
        assert name.strip("./") or ".." in name
        return
    assert not {"", ".", ".."} & set(parts)
    for system, folder in (("posix", "/data/set"), ("windows", "C:\\data\\set")):
        path = {"posix": __import__("posixpath"), "windows": __import__("ntpath")}[system]
        whole = path.normpath(path.join(folder, *parts))
        assert whole == folder or whole.startswith(folder + path.sep)
        assert whole.count(path.sep) == folder.count(path.sep) + len(parts)


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=5), st.lists(st.integers(0, 60), max_size=6))
def test_pieces_are_read_as_one_file(pieces, places):
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / str(i) for i in range(len(pieces))]
        for path, piece in zip(paths, pieces, strict=True):
            path.write_bytes(piece)
        plain = io.BytesIO(b"".join(pieces))
        with io.BufferedReader(_unpack.Joined(paths), 7) as joined:
            assert joined.read() == plain.read()
            for place in places:
                assert joined.seek(place) == plain.seek(place)
                assert joined.read(9) == plain.read(9)
            assert joined.seek(0, io.SEEK_END) == plain.seek(0, io.SEEK_END)


# ---------------------------------------------------------------- disks and folders

def small_disk(monkeypatch, free):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))


def test_the_disk_is_asked_before_the_download(server, utkface, root, monkeypatch):
    file = download.SOURCES["utkface"].files[0]
    publish(monkeypatch, "utkface", file, about=10**9)
    small_disk(monkeypatch, 2 * 10**9)
    refused("utkface", "needs 2.2 GB", "2.0 GB are free", "FAG_DATA", str(root))
    assert not server.asked


def test_the_disk_of_kagglehub_is_asked(root, monkeypatch, tmp_path):
    small_disk(monkeypatch, 10**8)
    refused("utkface", "UTKFace needs 0.9 GB", str(tmp_path / "kagglehub"), "0.1 GB are free", "KAGGLEHUB_CACHE")


def test_the_disk_is_asked_when_the_server_tells_the_size(server, utkface, root, monkeypatch):
    small_disk(monkeypatch, len(utkface) - 1)
    publish(monkeypatch, "utkface", File("UTKFace.tar.gz", f"{server.url}/UTKFace.tar.gz"))
    refused("utkface", "UTKFace.tar.gz needs", "are free")
    assert not list((root / "downloads").rglob("*.part"))


def test_the_disk_is_asked_before_unpacking(server, root, monkeypatch):
    data = zipped([(f"UTKFace/{i}_0_0_1.jpg", b"x") for i in range(1, 100)])
    server.files["/UTKFace.tar.gz"] = data
    publish(monkeypatch, "utkface", File("UTKFace.tar.gz", f"{server.url}/UTKFace.tar.gz"))
    small_disk(monkeypatch, 99 * _unpack.BLOCK)
    refused("utkface", "was not unpacked", "unpacking needs")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_a_disk_that_fills_up_is_said_plainly(utkface, root):
    folder = root / "downloads" / "utkface" / "fetched"
    folder.mkdir(parents=True)
    (folder / "UTKFace.tar.gz.part").symlink_to("/dev/full")
    refused("utkface", "disk", "is full", str(folder.parent), "call again")


def test_a_disk_that_fills_up_while_unpacking_leaves_nothing(utkface, root, monkeypatch):
    def fill(self, name, source, size):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_unpack._Writer, "make_file", fill)
        refused("utkface", "is full", "kept in")
    assert get("utkface")


@pytest.mark.skipif(sys.platform == "win32", reason="folders are protected in another way")
def test_a_folder_that_cannot_be_written(utkface, monkeypatch):
    folder = Path(tempfile.mkdtemp())
    user = os.geteuid()
    try:
        folder.chmod(0o555)
        if user == 0:
            os.seteuid(65534)  # nothing is read-only for root
        monkeypatch.setenv("FAG_DATA", str(folder))
        refused("utkface", str(folder), "can't be read and written", "FAG_DATA", "root=")
    finally:
        os.seteuid(user)
        shutil.rmtree(folder)


def test_a_part_of_a_set_is_neither_taken_nor_touched(server, utkface, root):
    (root / "UTKFace").mkdir(parents=True)
    assert get("utkface") == root / "utkface", "an empty folder is no set"
    shutil.rmtree(root / "utkface")
    layouts.text(root / "utkface" / "notes.txt", "mine")
    with pytest.raises(datasets.DownloadError, match="not the whole set") as error:
        get("utkface")
    assert str(root / "utkface") in str(error.value) and "move it away" in str(error.value)
    assert files_in(root / "utkface") == {"notes.txt"}


def test_an_archive_of_something_else_is_no_set(root, tmp_path):
    folder = root / "downloads" / "lag"
    folder.mkdir(parents=True)
    (folder / "LAGdataset_200.zip").write_bytes(zipped([("notes/a/b/c/d/readme.txt", b"x")]))
    refused("lag", "not the set as its reader knows it")


# ---------------------------------------------------------------- killed, and two at once

CHILD = """
import sys, time
from fag_utils import datasets
from fag_utils.datasets import _unpack, download
from fag_utils.datasets.download import File, Source

download.SOURCES["utkface"] = Source(files=(File("UTKFace.tar.gz", sys.argv[1]),))
make = _unpack._Writer.make_file

def slow(self, name, *content):
    make(self, name, *content)
    if name == "UTKFace/25_0_0_20170116174525125.jpg.chip.jpg":
        print("unpacking", flush=True)
        time.sleep(60)

_unpack._Writer.make_file = slow
print("begins", flush=True)
datasets.get("utkface", quiet=True)
"""


def killed(server, word, until=lambda: True):
    """Run `get` in another process, and kill it after it has printed a word, when a condition holds."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, f"{server.url}/UTKFace.tar.gz"], text=True, cwd=ROOT,
                             stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    with child:
        assert any(line.strip() == word for line in child.stdout)
        while not until():
            assert child.poll() is None
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_killed_while_unpacking(server, utkface, root):
    killed(server, "unpacking")
    (part,) = root.glob(".utkface-unpacking-*")
    assert 1 < len(files_in(part)) < len(layouts.UTKFACE) and datasets.find()["utkface"] is None
    server.asked.clear()
    assert len(datasets.read("utkface", get("utkface"))) == len(layouts.UTKFACE)
    assert not server.asked, "the archive was there"
    assert {path.name for path in root.iterdir()} == {"utkface", "downloads"}


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_killed_while_downloading(server, root, monkeypatch, tmp_path):
    layouts.utkface(tmp_path / "made")
    (tmp_path / "made" / "UTKFace" / "30_0_0_1.jpg").write_bytes(os.urandom(200_000))
    server.files["/UTKFace.tar.gz"] = tarred(tmp_path / "made")
    publish(monkeypatch, "utkface", File("UTKFace.tar.gz", f"{server.url}/UTKFace.tar.gz"))
    server.troubles["/UTKFace.tar.gz"] = ["stall"]
    part = root / "downloads" / "utkface" / "fetched" / "UTKFace.tar.gz.part"
    killed(server, "begins", lambda: part.exists() and part.stat().st_size)
    assert datasets.find()["utkface"] is None
    size = part.stat().st_size
    assert get("utkface")
    assert ranges(server) == [None, f"bytes={size}-"]


def test_two_at_once_get_it_once(server, utkface, root, monkeypatch):
    monkeypatch.setattr(_fetch, "TIMEOUT", 10)
    server.troubles["/UTKFace.tar.gz"] = ["stall"]
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(get, "utkface") for _ in range(2)]
        while not server.asked:
            time.sleep(0.01)
        server.going_on.set()  # the first breaks off, and goes on
        assert [one.result() for one in both] == [root / "utkface"] * 2
    assert ranges(server) == [None, f"bytes={len(utkface) // 2}-"]


# ---------------------------------------------------------------- from a terminal

def test_from_a_terminal(utkface, root, capsys):
    from fag_utils.datasets import __main__ as terminal

    assert terminal.main([]) == 0
    assert "utkface        -" in capsys.readouterr().out
    assert terminal.main(["get", "utkface", "--quiet"]) == 0
    assert capsys.readouterr().out.strip() == str(root / "utkface")
    assert terminal.main([]) == 0
    assert f"utkface        {root / 'utkface'}" in capsys.readouterr().out
    assert terminal.main(["get", "lag", "--quiet"]) == 1
    assert "by hand" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        terminal.main(["get", "mnist"])


def test_an_absent_set_names_the_call_that_gets_it(root):
    with pytest.raises(datasets.MissingSetError, match=r'datasets.get\("celeba"\)'):
        datasets.read("celeba")
    assert datasets.overview()["how to get it"]["afad"].startswith('datasets.get("afad"), or by hand: ')
