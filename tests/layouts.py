"""Tiny data sets in each published layout, made of noise: what the readers are tested on."""

import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def picture(path):
    """Write a small picture of noise, another one for each name."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(zlib.crc32("/".join(path.parts[-3:]).encode()))
    noise = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def text(path, *lines):
    """Write lines to a file, with the line ends of Windows, which half of the published lists have."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + "\r\n" for line in lines).encode("utf-8"))


def celeba(folder, people=20, pictures_each=3):
    """CelebA: women and men in turn, three pictures each; identities, no official folds."""
    names = [f"{i:06d}.jpg" for i in range(1, people * pictures_each + 1)]
    who = [i // pictures_each + 1 for i in range(len(names))]
    for name in names:
        picture(folder / "img_align_celeba" / name)
    pairs = list(zip(names, who, strict=True))
    text(folder / "identity_CelebA.txt", *(f"{name} {person}" for name, person in pairs))
    lines = (f"{name} -1  {1 if person % 2 == 0 else -1} 1" for name, person in pairs)
    text(folder / "list_attr_celeba.txt", str(len(names)), "Bald Male Young ", *lines)


UTKFACE = {  # file name -> age, male, region, part of its reason
    "25_0_0_20170116174525125.jpg.chip.jpg": (25, 1, "western", None),
    "40_1_2_20170116174525126.jpg": (40, 0, "asian", None),
    "116_1_4_20170116174525127.jpg.chip.jpg": (116, 0, "western", None),
    "24_0_1_20170116220224657 .jpg.chip.jpg": (24, 1, "western", None),
    "55_0_0_20170116232725357jpg.chip.jpg": (55, 1, "western", None),
    "39_1_20170116174525125.jpg.chip.jpg": (39, 0, None, "race"),
    "61_3_20170109150557335.jpg.chip.jpg": (61, None, None, "gender, race"),
    "44_1_3_.jpg": (44, 0, "western", None),
    "300_0_2_20170109150557335.jpg": (None, 1, "asian", "age"),
    "-5_0_2_20170109150557335.jpg": (None, 1, "asian", "age"),
    "²_0_²_20170109150557335.jpg": (None, 1, None, "age, race"),
    "Renée.jpg": (None, None, None, "age, gender, race"),
    "Thumbs.db": (None, None, None, "not a picture"),
}


def utkface(folder):
    """UTKFace with well-formed names, malformed ones and a stray file."""
    for name in UTKFACE:
        if name.endswith(".jpg"):
            picture(folder / "UTKFace" / name)
        else:
            text(folder / "UTKFace" / name, "no picture")


def afad(folder):
    """AFAD-Full: two ages, both genders, a list at the top, and what lies in the wrong place."""
    root = folder / "AFAD-Full"
    for age in (18, 72):
        for gender in (111, 112):
            for i in range(3):
                picture(root / str(age) / str(gender) / f"{age}{gender}0{i}-0.jpg")
    picture(root / "18" / "111" / "1811100-1.jpg")
    text(root / "18" / "112" / "Thumbs.db", "no picture")
    picture(root / "20" / "113" / "9-0.jpg")
    picture(root / "about twenty" / "111" / "10-0.jpg")
    text(root / "AFAD-Full.txt", "./18/111/1811100-0.jpg")


def megaage_asian(folder, train=40, test=5):
    """MegaAge-Asian: `train` and `test` pictures, aged 1, 2, 3 ..."""
    for part, n in (("train", train), ("test", test)):
        names = [f"{i}.jpg" for i in range(1, n + 1)]
        for name in names:
            picture(folder / part / name)
        text(folder / "list" / f"{part}_name.txt", *names)
        text(folder / "list" / f"{part}_age.txt", *map(str, range(1, n + 1)))


ADIENCE_HEADER = "\t".join([
    "user_id", "original_image", "face_id", "age", "gender", "x", "y", "dx", "dy", "tilt_ang",
    "fiducial_yaw_angle", "fiducial_score"])
ADIENCE = [  # age as published, gender as published -> age, group, male
    ("(25, 32)", "m", 28.5, 4, 1),
    ("(60, 100)", "f", 80, 7, 0),
    ("(8, 12)", "m", 10.5, 2, 1),
    ("(38, 42)", "f", 40.5, 5, 0),
    ("(27, 32)", "m", 28.5, 4, 1),
    ("(38, 48)", "f", 40.5, 5, 0),
    ("(8, 23)", "m", None, -1, 1),
    ("35", "f", 35, -1, 0),
    ("2", "u", 2, 0, None),
    ("None", "f", None, -1, 0),
    ("(0, 2)", "", 1, 0, None),
]


def adience(folder, pictures="faces", prefix="coarse_tilt_aligned_face"):
    """Adience: in each of the five folds three users, who have all of the ADIENCE labels."""
    for k in range(5):
        lines = []
        for u in range(3):
            user = f"{k}{u}0354155@N05"
            for i, (age, gender, *_) in enumerate(ADIENCE):
                image, face = f"1179{i}_147ae7c049_o.jpg", 100 * k + i
                picture(folder / pictures / user / f"{prefix}.{face}.{image}")
                box = "\t".join(["1", "2", "30", "40", "0", "0", "70"])
                lines.append("\t".join([user, image, str(face), age, gender, box]))
        text(folder / f"fold_{k}_data.txt", ADIENCE_HEADER, *lines)


def lfw(folder):
    """LFW: two men and two women with two pictures each, one of them with a name beyond ASCII."""
    lists = {"male": ["Ole_Hansen", "Jiří_Novák"], "female": ["Anna_Berg", "Zoë_Lund"]}
    for gender, people in lists.items():
        names = [(person, f"{person}_{i:04d}.jpg") for person in people for i in (1, 2)]
        for person, name in names:
            picture(folder / "lfw" / person / name)
        text(folder / f"{gender}_names.txt", *(name for _, name in names))


def matlab_day(year, month, day):
    """Matlab's number of a day: 1 for 1 January of the year 0."""
    import datetime

    return datetime.date(year, month, day).toordinal() + 366


IMDB = [  # birth, year taken, gender, name, face score, second score -> age, male, part of its reason
    ((1960, 7, 1), 2000, 1.0, "Ann One", 3.0, np.nan, 40, 1, None),
    ((1960, 7, 2), 2000, 0.0, "Ann One", 3.0, np.nan, 39, 0, None),
    ((1960, 2, 29), 2000, 0.0, "Bo Two", 3.0, np.nan, 40, 0, None),
    ((1960, 12, 31), 1961, 0.0, "Bo Two", 3.0, np.nan, 0, 0, None),
    ((1980, 1, 1), 1975, 1.0, "Cy Three", 3.0, np.nan, None, 1, "impossible age"),
    ((1, 1, 1), 2000, 1.0, "Cy Three", 3.0, np.nan, None, 1, "impossible age"),
    ((1960, 1, 1), 2000, np.nan, "Di Four", 3.0, np.nan, 40, None, "no gender"),
    ((1960, 1, 1), 2000, 1.0, "Ed Five", -np.inf, np.nan, 40, 1, "no face"),
    ((1960, 1, 1), 2000, 1.0, "Ed Five", 0.5, np.nan, 40, 1, "score"),
    ((1960, 1, 1), 2000, 1.0, "Ed Five", 3.0, 1.2, 40, 1, "second face"),
    ((1960, 1, 1), 2000, 1.0, "", 3.0, np.nan, 40, 1, None),
]


def imdb_wiki(folder, parts=("imdb", "wiki")):
    """IMDB-WIKI: the rows of IMDB in each of the two Matlab files."""
    from scipy.io import savemat

    for part in parts:
        root = folder / f"{part}_crop"
        paths = [f"{i % 3:02d}/nm{i:07d}_rm{i}_1960-1-1_2000.jpg" for i in range(len(IMDB))]
        for path in paths:
            picture(root / path)
        birth, year, gender, name, score, second, *_ = zip(*IMDB, strict=True)
        fields = {
            "dob": np.array([[matlab_day(*day) for day in birth]], dtype="int32"),
            "photo_taken": np.array([year], dtype="uint16"),
            "full_path": _cells(paths),
            "gender": np.array([gender]),
            "name": _cells(name),
            "face_location": np.empty((1, len(IMDB)), dtype=object),
            "face_score": np.array([score]),
            "second_face_score": np.array([second]),
        }
        for i in range(len(IMDB)):
            fields["face_location"][0, i] = np.array([[1.0, 1.0, 40.0, 40.0]])
        savemat(root / f"{part}.mat", {part: fields})


def _cells(texts):
    cells = np.empty((1, len(texts)), dtype=object)
    cells[0, :] = list(texts)
    return cells


def lag(folder):
    """LAG: three people, each with two pictures as an adult and one as a child."""
    for person in ("Ann_One", "Bo_Two", "Renée_Three"):
        for name in ("1.png", "2.png", "y/3.png"):
            picture(folder / "LAGdataset_200" / person / name)
    text(folder / "LAGdataset_200" / "README.txt", "About the dataset")


MAKERS = {maker.__name__: maker for maker in (
    celeba, utkface, afad, megaage_asian, imdb_wiki, adience, lfw, lag)}
