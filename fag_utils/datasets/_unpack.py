"""Unpacking archives that strangers made: nothing is written outside the folder, and no disk is filled.

One rule for zip and tar: only plain files and folders come out, below the folder, each name once, and not more
than an archive of pictures can hold. It is stricter than the filter "data" of the standard library, which lets
links in, strips the slash of an absolute name, and has no counterpart for zip.
"""

import bz2
import gzip
import io
import lzma
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

from fag_utils.datasets._common import DownloadError

# Pictures hardly shrink when they are packed: what grows tenfold is no archive of pictures but a bomb.
MOST_GROWTH = 10
SPARE = 64 * 2**20  # bytes that a small archive may grow by nevertheless: lists of labels do shrink
MOST_FILES = 2_000_000  # IMDB, the largest set, has 460,723
DEEPEST = 32  # folders within folders
LONGEST_NAME = 2**20  # bytes of the headers before a file in a tar: they are read into memory, names of any length
BLOCK = 4096  # bytes that a file takes on a disk are a multiple of this
_CHUNK = 2**20
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # devices, for Windows
_OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
# What the readers of damaged archives raise; OSError comes from gzip and bz2, without a number.
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, struct.error,
           NotImplementedError, RuntimeError, ValueError, OverflowError)


def safe_parts(name):
    """The name of an archive's member as a tuple of plain names of folders and, last, the file.

    Raises DownloadError for a name that could lead anywhere else or means another file on another system: with
    `..`, absolute, with a backslash, a colon, a control character, a device of Windows, a dot or space at its end.
    The folder itself (".", and "/" in the archives of Dropbox) is the empty tuple.
    """
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if parts and name.startswith("/"):
        raise DownloadError(f"it has an absolute name, {name!r}")
    for part in parts:
        if part == ".." or "\\" in part or ":" in part or re.search(r"[\x00-\x1f\x7f]", part):
            raise DownloadError(f"it has a name that leads out of the folder, {name!r}")
        if part != part.rstrip(". ") or _RESERVED.fullmatch(part):
            raise DownloadError(f"it has a name that isn't the same on every system, {name!r}")
    if len(parts) > DEEPEST:
        raise DownloadError(f"it has {len(parts)} folders within folders")
    return parts


def is_archive(head):
    """Do the first 512 bytes of a file look like an archive that `unpack` can open?"""
    return head.startswith((*_ZIP, *_OPENERS)) or head[257:262] == b"ustar"


def need_space(folder, needed, what, variable="FAG_DATA"):
    """DownloadError unless `needed` bytes are free on the disk of `folder`, which needn't exist yet, and which an
    environment variable chooses."""
    there = next(path for path in [Path(folder), *Path(folder).absolute().parents] if path.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise DownloadError(
            f"{what} needs {needed / 1e9:,.1f} GB on the disk of {folder}, and {free / 1e9:,.1f} GB are free: make "
            f"room, or choose a folder on a larger disk with the environment variable {variable}")


def unpack(paths, folder, tick=lambda done: None):
    """Unpack an archive (zip, or tar as it is or with gzip, bzip2, xz) into a folder that is there and ours.

    paths : the file, or the pieces of a split one in their order; they are read as one, and not joined on disk
    tick : called now and then with the number of bytes that were read so far

    Raises DownloadError where the archive is damaged, or holds what no set of pictures does; then the folder
    holds a part of it, for the caller to remove. OSError, such as of a full disk, passes.
    """
    with io.BufferedReader(Joined(paths), _CHUNK) as stream:
        packed = stream.raw.size
        writer = _Writer(Path(folder), packed * MOST_GROWTH + SPARE, lambda: tick(stream.raw.tell()))
        head = stream.read(512)
        stream.seek(0)
        try:
            if head.startswith(_ZIP):
                _unzip(stream, writer)
            else:
                _untar(stream, head, writer)
        except DownloadError:
            raise
        except _DAMAGE as error:
            raise DownloadError(f"it is damaged ({str(error) or type(error).__name__})") from error
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise DownloadError(f"it has one name twice, {Path(error.filename).name!r}, perhaps in two spellings "
                                "that are one on this system") from error
        except OSError as error:
            if error.errno is None:
                raise DownloadError(f"it is damaged ({error})") from error
            raise
        tick(packed)


def _unzip(stream, writer):
    with zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        total = sum(member.file_size for member in members)
        writer.ask(len(members), total)
        need_space(writer.folder, total + BLOCK * len(members), "unpacking")
        for member in members:
            kind = stat.S_IFMT(member.external_attr >> 16)
            if member.is_dir():
                writer.make_folder(member.orig_filename)
            elif kind not in (0, stat.S_IFREG):
                raise DownloadError(f"it has a link or a device, {member.filename!r}")
            elif member.flag_bits & 1:
                raise DownloadError("it is locked with a password")
            else:
                with archive.open(member) as source:
                    writer.make_file(member.orig_filename, source, member.file_size)


def _untar(stream, head, writer):
    opener = next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)
    plain = _Limited(opener(stream) if opener else stream, writer.most_bytes)
    with tarfile.open(fileobj=plain, mode="r|", tarinfo=_Header) as archive:
        for member in archive:
            plain.headers_left = plain.left
            archive.members = []  # else it keeps every one of half a million
            if member.isdir():
                writer.make_folder(member.name)
            elif member.isreg() and not member.issparse():
                writer.make_file(member.name, archive.extractfile(member), member.size)
            else:
                raise DownloadError(f"it has a link, a device or a file with holes, {member.name!r}")
            plain.headers_left = LONGEST_NAME
    plain.headers_left = plain.left
    while plain.read(_CHUNK):  # to the end, where a checksum shows whether it came whole
        pass


class _Header(tarfile.TarInfo):
    """A header of a tar file. tarfile takes a broken one, or none, for the end of the archive: here it's damage."""

    @classmethod
    def fromtarfile(cls, archive):
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            raise  # the mark of the end
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


class _Limited:
    """A stream of which only so much is read, in all and for the headers before a file: what a header claims, or
    a bomb holds, ends there."""

    def __init__(self, stream, most_bytes):
        self.stream, self.left, self.headers_left = stream, most_bytes + SPARE, LONGEST_NAME

    def read(self, size):
        data = self.stream.read(size)
        self.left -= len(data)
        self.headers_left -= len(data)
        if min(self.left, self.headers_left) < 0:
            raise DownloadError("it grows without end, as no archive of pictures does")
        return data


class _Writer:
    """Writes members below a folder, and stops at the limits."""

    def __init__(self, folder, most_bytes, tick):
        self.folder, self.most_bytes, self.tick = folder, most_bytes, tick
        self.files = self.bytes = 0
        self.made = None  # the folder that the last file went to

    def ask(self, files, size):
        """DownloadError when so many files, so many bytes in all, are more than the archive may hold."""
        if size > self.most_bytes:
            raise DownloadError(f"it would grow to more than {self.most_bytes / 1e6:,.0f} MB, as no archive of "
                                "pictures does")
        if files > MOST_FILES:
            raise DownloadError(f"it has more than {MOST_FILES:,} files")

    def make_folder(self, name):
        self.files += 1
        self.ask(self.files, self.bytes)
        self.folder.joinpath(*safe_parts(name)).mkdir(parents=True, exist_ok=True)

    def make_file(self, name, source, size):
        self.files += 1
        self.ask(self.files, self.bytes + size)
        parts = safe_parts(name)
        if not parts:
            raise DownloadError(f"it has a file without a name, {name!r}")
        if "__MACOSX" in parts or parts[-1].startswith("._") or parts[-1] == ".DS_Store":
            while source.read(_CHUNK):  # what macOS puts beside the files: ._0001.jpg is no picture
                pass
            return
        path = self.folder.joinpath(*parts)
        if path.parent != self.made:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.made = path.parent
        written = 0
        with open(path, "xb") as file:  # x: a second file of this name is an error
            while chunk := source.read(_CHUNK):
                written += len(chunk)
                self.ask(self.files, self.bytes + written)
                file.write(chunk)
        if written != size:
            raise DownloadError(f"it is damaged ({name!r} has {written:,} of {size:,} bytes)")
        self.bytes += written
        self.tick()


class Joined(io.RawIOBase):
    """The pieces of a split file as one file to read from, of which one at a time is open."""

    def __init__(self, paths):
        self.paths = [Path(path) for path in paths]
        self.starts = [0]
        for path in self.paths:
            self.starts.append(self.starts[-1] + path.stat().st_size)
        self.size = self.starts[-1]
        self.position, self.number, self.file = 0, None, None

    def readable(self):
        return True

    def seekable(self):
        return True

    def tell(self):
        return self.position

    def seek(self, offset, whence=io.SEEK_SET):
        self.position = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence])
        return self.position

    def readinto(self, buffer):
        if self.position >= self.size:
            return 0
        number = next(i for i, end in enumerate(self.starts[1:]) if self.position < end)
        if number != self.number:
            self._shut()
            self.number, self.file = number, open(self.paths[number], "rb")
        self.file.seek(self.position - self.starts[number])
        read = self.file.readinto(buffer)
        self.position += read
        return read

    def close(self):
        self._shut()
        super().close()

    def _shut(self):
        if self.file:
            self.file.close()
        self.number = self.file = None
