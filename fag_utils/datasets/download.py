"""Getting the sets: download, check, unpack, and put in place only what is whole. Call it as `datasets.get`.

Where each set is published, and what is known of its files, is in `SOURCES`.

In the folder of the sets, `downloads/NAME/` is for archives: those that were got by hand lie there, those that are
downloaded come into its folder `fetched`. `downloads/NAME.json` remembers size and SHA-256 of all that came. A set
is unpacked into the hidden folder `.NAME-unpacking-...` beside its place, and renamed at the end.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import string
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from fag_utils import datasets
from fag_utils import table as tables
from fag_utils.datasets import _fetch
from fag_utils.datasets._common import DownloadError, MissingSetError
from fag_utils.datasets._unpack import is_archive, need_space, unpack

# Where Colab mounts a Google Drive: sets, or archives of them, may lie in its folder fag_data.
DRIVE = Path("/content/drive/MyDrive/fag_data")
KAGGLE_INPUT = Path("/kaggle/input")  # where the notebooks of Kaggle and of Colab mount sets of Kaggle
GROWTH = 1.2  # unpacked pictures take a little more than their archive: each file ends in a part of a block
_ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2"}
_CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}


@dataclass(frozen=True)
class File:
    """One file of a set.

    name : what it is called in the folder of downloads, and where it is no archive, in the set's folder
    address : http(s)://..., or drive:ID for Google Drive; "" where it must be got by hand
    size : bytes, where they are known exactly, else 0
    checksum : as published, "sha256:...", "md5:..." or "git:..." (the name of a blob in git), else ""
    pieces : for a split archive, whose `address` lacks the ends aa, ab, ...: where GitHub lists them
    holds : files that may lie in its place, unpacked
    """

    name: str
    address: str = ""
    size: int = 0
    checksum: str = ""
    pieces: str = ""
    holds: tuple = ()


@dataclass(frozen=True)
class Source:
    """Where a set comes from: its files, or else, where they can't be had, a set of Kaggle.

    about : bytes of the download, roughly where no exact sizes are known; 0 where only the server knows them
    form : what has to be asked for first, and where
    """

    files: tuple = ()
    kaggle: str = ""
    about: int = 0
    form: str = ""


_ETH = "https://data.vision.ee.ethz.ch/cvl/rrothe/imdb-wiki/static"
_OPENU = ("http://www.cslab.openu.ac.il/download/adiencedb/"
          "AdienceBenchmarkOfUnfilteredFacesForGenderAndAgeClassification")

SOURCES = {
    # Addresses and MD5 of torchvision (datasets/celeba.py), sizes and SHA-256 of TensorFlow Datasets
    # (url_checksums/celeb_a.txt). Google stops a file for a day when many have asked for it: hence Kaggle, too.
    "celeba": Source(
        files=(
            File("list_attr_celeba.txt", "drive:0B7EVK8r0v71pblRyaVFSWGxPY0U", 26_721_026,
                 "sha256:f0e5da289d5ccf75ffe8811132694922b60f2af59256ed362afa03fefba324d0"),
            File("list_eval_partition.txt", "drive:0B7EVK8r0v71pY0NSMzRuSXJEVkk", 2_836_386,
                 "sha256:fc955bcb3ef8fbdf7d5640d9a8693a8431b5f2ee291a5c1449a1549e7e073fe7"),
            File("identity_CelebA.txt", "drive:1_ee_0u7vcNLOfNLegJRHmolfH5ICW-XS",
                 checksum="md5:32bd1bd63d3c78cd57e08160ec5ed1e2"),
            File("img_align_celeba.zip", "drive:0B7EVK8r0v71pZjFTYXZWM3FlRnM", 1_443_490_838,
                 "sha256:46fb89443c578308acf364d7d379fe1b9efb793042c0af734b6112e4fd3a8c74"),
        ),
        kaggle="jessicali9530/celeba-dataset",
        about=1_480_000_000,
    ),
    # The authors' Google Drive (susanqq.github.io/UTKFace) has refused programs for years: GrigoriiTarasov/
    # Face-Age-Detection-app#1, ZZUTK/Face-Aging-CAAE#54. Its archive may be got by hand.
    "utkface": Source(files=(File("UTKFace.tar.gz"),), kaggle="jangedoo/utkface-new", about=400_000_000),
    # Some 45 pieces, which the authors' restore.sh joins (afad-dataset.github.io links to afad-dataset/tarball,
    # which GitHub has under its owner's new name). GitHub lists their sizes and checksums.
    "afad": Source(
        files=(File("AFAD-Full.tar.xz", "https://github.com/John-niu-07/tarball/raw/master/AFAD-Full.tar.xz",
                    pieces="https://api.github.com/repos/John-niu-07/tarball/contents/"),),
        about=1_500_000_000,
    ),
    # The link of the authors' README, github.com/zyx2012/Age_estimation_BMVC2017.
    "megaage_asian": Source(
        files=(File("megaage_asian.zip", "https://www.dropbox.com/s/x0gyfp12tozivjh/megaage_asian.zip?dl=1"),),
        about=290_000_000,
    ),
    # The links of the set's page; the MD5 is the same in four public loaders, the size in a log of wget.
    "imdb_wiki": Source(
        files=(
            File("wiki_crop.tar", f"{_ETH}/wiki_crop.tar", checksum="md5:f536eb7f5eae229ae8f286184364b42b"),
            File("imdb_crop.tar", f"{_ETH}/imdb_crop.tar", 7_012_157_440, "md5:44b7548f288c14397cb7a7bab35ebe14"),
        ),
        about=7_830_000_000,
    ),
    # No checksum is published. The server has no https: the password goes over the net as it is.
    "adience": Source(
        files=(*(File(f"fold_{k}_data.txt", f"{_OPENU}/fold_{k}_data.txt") for k in range(5)),
               File("aligned.tar.gz", f"{_OPENU}/aligned.tar.gz")),
        form="Fill in the form at https://talhassner.github.io/home/projects/Adience/Adience-data.html, which tells "
             "you a user name and a password. Hand them over as auth=(user, password), or in the environment "
             "variables FAG_ADIENCE_USER and FAG_ADIENCE_PASSWORD, or in ~/.netrc.",
    ),
    # vis-www.cs.umass.edu, where it was published, is gone (pytorch/vision#8888). The archive is the one of
    # scikit-learn (datasets/_lfw.py), with the SHA-256 of it and of TensorFlow Datasets. The genders are a shared
    # folder of Dropbox, which comes as a zip.
    "lfw": Source(
        files=(
            File("lfw.tgz", "https://ndownloader.figshare.com/files/5976018", 180_566_744,
                 "sha256:055f7d9c632d7370e6fb4afc7468d40f970c34a80d4c6f50ffec63f5a8d536c0"),
            File("lfw_genders.zip", "https://www.dropbox.com/sh/l3ezp9qyy5hid80/AAAjK6HdDScd_1rXASlsmELla?dl=1",
                 holds=("male_names.txt", "female_names.txt")),
        ),
        about=181_000_000,
    ),
    # No address of the archive could be found in a source that can be trusted.
    "lag": Source(files=(File("LAGdataset_200.zip"),)),
}


def get(name, root=None, auth=None, keep=False, quiet=False):
    """See `datasets.get`."""
    if name not in SOURCES:
        raise ValueError(f"there is no set {name!r}: use one of {', '.join(SOURCES)}")
    return _Errand(name, Path(root) if root else datasets.data_dir(), auth, keep, quiet).run()


def elsewhere():
    """Dict of set -> folder for the sets outside of the data folder: in fag_data on a mounted Google Drive, in
    kagglehub's cache where they came whole, or mounted by a notebook of Kaggle or Colab."""
    folders = {}
    with contextlib.suppress(OSError, RuntimeError):  # a place that can't be read, or no home
        folders.update(_in_kaggle())
    with contextlib.suppress(OSError):
        folders.update(datasets.folders(DRIVE))
    return folders


def _in_kaggle():
    for name, source in SOURCES.items():
        if not source.kaggle:
            continue
        owner, slug = source.kaggle.split("/")
        cache = kaggle_cache() / "datasets" / owner / slug
        ends = cache.glob("*.complete")  # by N.complete kagglehub marks that version N came whole
        versions = sorted((int(end.stem) for end in ends if end.stem.isdigit()), reverse=True)
        places = [cache / "versions" / str(version) for version in versions]
        places += [KAGGLE_INPUT / slug, KAGGLE_INPUT / "datasets" / owner / slug]
        if place := next((place for place in places if place.is_dir()), None):
            yield name, place


def kaggle_cache():
    """The folder where kagglehub keeps what it downloads."""
    return Path(os.environ.get("KAGGLEHUB_CACHE") or Path.home() / ".cache" / "kagglehub")


class _Errand:
    """One call of `get`."""

    def __init__(self, name, root, auth, keep, quiet):
        self.name, self.root, self.auth, self.keep, self.quiet = name, root, auth, keep, quiet
        self.source, self.reader = SOURCES[name], getattr(datasets, name)
        self.downloads = root / "downloads" / name
        self.fetched = self.downloads / "fetched"
        self.record_file = root / "downloads" / f"{name}.json"

    def say(self, text):
        if not self.quiet:
            print(text, flush=True)

    def bar(self, what, total):
        return tqdm(desc=what, total=total, unit="B", unit_scale=True, disable=self.quiet)

    def run(self):
        with self.plain_errors():
            if (there := self.there()) is not None:
                return there
            with _fetch.extra():
                import filelock
            self.fetched.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.root / "downloads" / f"{self.name}.lock")
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                self.say(f"Another process is getting {self.reader.TITLE}: waiting for it.")
                lock.acquire()
            try:
                for left in self.root.glob(f".{self.name}-unpacking-*"):  # by a call that was killed
                    shutil.rmtree(left)
                there = self.there()  # the process waited for may have got it
                return self.bring() if there is None else there
            finally:
                lock.release()

    def there(self):
        """The set's folder, where it is whole; None where there is none. DownloadError for a part of one."""
        folder = datasets.find(self.root)[self.name]
        if folder is None or (folder.parent == self.root and not any(folder.iterdir())):
            return None
        flaw = self.flaw(folder)
        if flaw is None:
            self.say(f"{self.reader.TITLE} is there: {folder}")
            return folder
        if folder.parent != self.root:  # on a Drive or in a cache: get it anew
            return None
        raise DownloadError(f"{folder} is there, but it is not the whole set. {flaw}\nComplete it by hand, or move "
                            "it away and call again.")

    def flaw(self, folder):
        """What its reader has against a folder; None where all is well."""
        try:
            table = datasets.read(self.name, folder)
        except (MissingSetError, ValueError) as error:
            return str(error)
        usable = len(tables.usable(table))
        return None if usable else f"None of the {len(table):,} pictures in {folder} can be used."

    def bring(self):
        """Get the set: its files, or else the set of Kaggle."""
        self.say(f"{self.reader.TITLE}. Licence: {self.reader.LICENCE}. You agree to it with its authors.")
        reasons = []
        for way in self.ways():
            if reasons:
                self.say(f"{reasons[-1]}\nTrying another way.")
            try:
                folder = way()
                break
            except DownloadError as error:
                reasons.append(str(error))
        else:
            raise DownloadError("\n".join([f"{self.reader.TITLE} could not be got.", *reasons, self.by_hand()]))
        self.tidy()
        return folder

    def by_hand(self):
        names = ", ".join(" or ".join([file.name, *filter(None, [" and ".join(file.holds)])])
                          for file in self.source.files)
        return (f"By hand: {self.reader.HOW_TO_GET} Or put {names}, as it comes, into {self.downloads}, and call "
                f"datasets.get({self.name!r}) again.")

    def ways(self):
        """The ways to the set, to be tried in turn."""
        by_hand_only = [file for file in self.source.files if not file.address and not self.lying(file.name)]
        if not (by_hand_only and self.source.kaggle):
            yield self.from_files
        if self.source.kaggle:
            yield self.from_kaggle

    def from_files(self):
        files = self.source.files
        here = {*self.fetched.iterdir(), *filter(None, (self.lying(file.name) for file in files))}
        lacking = max(0, self.source.about - sum(path.stat().st_size for path in here))
        need_space(self.root, lacking + self.source.about * GROWTH, self.reader.TITLE)
        return self.put_in_place([(file, self.obtain(file)) for file in files])

    def from_kaggle(self):
        need_space(kaggle_cache(), self.source.about * (1 + GROWTH), self.reader.TITLE, "KAGGLEHUB_CACHE")
        folder = _fetch.from_kaggle(self.source.kaggle)
        if flaw := self.flaw(folder):
            raise DownloadError(f"What came from Kaggle, in {folder}, is not the set as its reader knows it. {flaw}")
        self.say(f"{self.reader.TITLE} is where kagglehub keeps it: {folder}")
        return folder

    def lying(self, name):
        """Path of a file in one of the places where archives may lie; None where it is in none."""
        shelves = [self.downloads, self.fetched, self.downloads.parent,
                   DRIVE / "downloads" / self.name, DRIVE / self.name, DRIVE]
        return next((shelf / name for shelf in shelves if (shelf / name).is_file()), None)

    def obtain(self, file):
        """Paths of a file: itself, or the pieces of a split one, or what it holds."""
        if found := self.lying(file.name):
            self.verify(file, found)
            return [found]
        if file.holds and all(map(self.lying, file.holds)):
            return [self.lying(name) for name in file.holds]
        if not file.address:
            raise DownloadError(f"{file.name} must be got by hand. {self.source.form}")
        return self.pieces(file) if file.pieces else [self.fetch(file)]

    def pieces(self, file):
        """The pieces of a split file: those that GitHub lists; without the list, in the order of their names until
        there is none (whether these are all, the archive's own checksum tells)."""
        pattern = re.escape(file.name) + "[a-z]{2}"
        listed = [File(name, address, size, f"git:{sha}")
                  for name, address, size, sha in _fetch.github_files(file.pieces, pattern)]
        ends = map("".join, itertools.product(string.ascii_lowercase, repeat=2))
        paths = []
        for piece in listed or (File(file.name + end, file.address + end) for end in ends):
            try:
                paths += self.obtain(piece)
            except _fetch.NotThereError:
                if listed or not paths:
                    raise
                break
        return paths

    def fetch(self, file):
        """Download a file, or what is lacking of it, and check it. Returns its path."""
        target = self.fetched / file.name
        if file.address.startswith("drive:"):
            _fetch.from_drive(file.address.removeprefix("drive:"), target, self.quiet)
        else:
            _fetch.over_http(file.address, target, file.size, self.who(file), self.quiet)
        sums = self.checksums(target, file)
        self.remember(file, target, sums["sha256"])
        self.verify(file, target, sums)
        return target

    def who(self, file):
        """(user, password) for a set that is given on request, else None."""
        if not self.source.form:
            return None
        with _fetch.extra():
            import requests.utils
        known = [os.environ.get(f"FAG_{self.name}_{what}".upper()) for what in ("user", "password")]
        auth = self.auth or (tuple(known) if all(known) else requests.utils.get_netrc_auth(file.address))
        if not auth:
            raise DownloadError(f"{self.reader.TITLE} is given on request. {self.source.form}")
        return tuple(auth)

    def put_in_place(self, files):
        """Unpack into a hidden folder beside the set's place; rename it when its reader finds the set in it."""
        target = self.root / f".{self.name}-unpacking-{uuid.uuid4().hex[:8]}"
        target.mkdir()
        try:
            for file, paths in files:
                self.unpack(file, paths, target)
            if flaw := self.flaw(target):
                raise DownloadError(f"What came is not the set as its reader knows it. {flaw}")
            getattr(os, "sync", lambda: None)()  # else a power cut after the renaming could leave empty files
            place = datasets.find(self.root)[self.name]
            if place is not None and place.parent == self.root:
                place.rmdir()  # it is empty, see `there`
            target.rename(self.root / self.name)
        finally:
            shutil.rmtree(target, ignore_errors=True)
        self.say(f"{self.reader.TITLE} is unpacked: {self.root / self.name}")
        return self.root / self.name

    def unpack(self, file, paths, target):
        if not is_archive(_fetch.head(paths[0])):  # a list
            for path in paths:
                shutil.copyfile(path, target / path.name)
            return
        total = sum(path.stat().st_size for path in paths)
        need_space(self.root, total * GROWTH, f"unpacking {file.name}")
        with self.bar(f"unpacking {file.name}", total) as bar:
            try:
                unpack(paths, target, lambda done: bar.update(max(0, done - bar.n)))
            except DownloadError as error:
                raise DownloadError(f"{file.name} was not unpacked: {error}.{self.discard(paths)}") from error

    def verify(self, file, path, sums=None):
        """DownloadError unless a file is what its name says, and has the checksum that was published."""
        start = _fetch.head(path)
        title = _fetch.page_title(start)
        if title is not None or (Path(file.name).suffix in _ARCHIVES and not is_archive(start)):
            what = "no archive" if title is None else f"but the web page {title!r}"
            raise DownloadError(f"{path} is not what its name says, {what}.{self.discard([path])}")
        kind, _, wanted = file.checksum.partition(":")
        if wanted and (found := (sums or self.checksums(path, file))[kind]) != wanted:
            raise DownloadError(f"{path} has the checksum {found} ({kind}), and the published file {wanted}: it is "
                                f"damaged, or another one.{self.discard([path])}")

    def checksums(self, path, file):
        """Dict of hexadecimal checksums of a file: its SHA-256, and the kind that was published ("git" is the name
        that git gives to its content)."""
        size = path.stat().st_size
        hashers = {"sha256": hashlib.sha256()}
        if (kind := file.checksum.partition(":")[0]) not in ("", "sha256"):
            hashers[kind] = hashlib.sha1(b"blob %d\0" % size) if kind == "git" else hashlib.new(kind)
        with open(path, "rb") as content, self.bar(f"checking {path.name}", size) as bar:
            while chunk := content.read(2**20):
                for hasher in hashers.values():
                    hasher.update(chunk)
                bar.update(len(chunk))
        return {kind: hasher.hexdigest() for kind, hasher in hashers.items()}

    def remember(self, file, path, found):
        """Keep size and SHA-256 of what came; where no checksum is published, tell them, and whether they differ from
        an earlier time."""
        record = self.record()
        known = record.get(file.name)
        if not file.checksum and file in self.source.files:
            self.say(f"{file.name}: {path.stat().st_size:,} bytes, SHA-256 {found}.")
            if known and known["sha256"] != found:
                self.say(f"On {known['came']} another one came, with SHA-256 {known['sha256']}: was it changed?")
        record[file.name] = {"bytes": path.stat().st_size, "sha256": found, "from": file.address,
                             "came": time.strftime("%Y-%m-%d")}
        self.record_file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def record(self):
        """What came earlier: dict of file name -> dict of bytes, sha256, from, came."""
        try:
            return json.loads(self.record_file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}

    def discard(self, paths):
        """Delete useless files, if they were downloaded; returns a sentence that says so, or what to do."""
        ours = [path for path in paths if path.parent == self.fetched]
        for path in ours:
            path.unlink()
        return " It was deleted: call again to get it anew." if ours else f" Move {paths[0]} away, and call again."

    def tidy(self):
        """Delete what was downloaded, whole or in part; what was put in place by hand stays."""
        if not self.keep:
            shutil.rmtree(self.fetched)
            with contextlib.suppress(OSError):  # it is not empty
                self.downloads.rmdir()

    @contextlib.contextmanager
    def plain_errors(self):
        """Turn what the system says of a full disk or a read-only folder into a DownloadError that helps."""
        try:
            yield
        except OSError as error:
            if error.errno in _fetch.FULL:
                text = (f"The disk of {self.root} is full. Make room, or choose a folder on a larger disk with the "
                        f"environment variable FAG_DATA. What has come is kept in {self.downloads}: call again to go "
                        "on from there.")
            elif error.errno in _CLOSED:
                text = (f"{error.filename or self.root} can't be read and written ({error.strerror}). Choose a "
                        "folder of your own with the environment variable FAG_DATA, or "
                        f"datasets.get({self.name!r}, root=folder).")
            else:
                text = f"{self.reader.TITLE} could not be put into {self.root}: {error}"
            raise DownloadError(text) from error
