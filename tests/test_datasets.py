import subprocess
import sys
import time
from pathlib import Path

import layouts
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fag_utils import datasets, labels, table
from fag_utils.datasets import adience, afad, celeba, imdb_wiki, lag, lfw, megaage_asian, utkface


@pytest.fixture
def folder(tmp_path):
    """A folder for a set; its name is not plain ASCII, as on many a student's laptop."""
    path = tmp_path / "Übungs daten" / "set"
    path.mkdir(parents=True)
    return path


def by_name(made):
    """The table with file names for its index."""
    return made.set_index(made["path"].map(lambda path: Path(path).name))


def reasons(made):
    return made["reason"].dropna().value_counts().to_dict()


def assert_people_stay_together(made):
    folds = table.usable(made).groupby("identity")["fold"].nunique()
    assert len(folds) and folds.max() == 1


# Every set

@pytest.mark.parametrize("name", datasets.NAMES)
def test_every_set_is_read_into_the_one_table(name, folder):
    layouts.MAKERS[name](folder)
    made = datasets.read(name, folder)
    assert list(made.columns) == table.COLUMNS
    assert (made["set"] == name).all()
    usable = table.usable(made)
    assert len(usable) and usable["path"].map(lambda path: Path(path).is_file()).all()
    assert usable["fold"].notna().all() and usable["region"].notna().all()
    assert not usable["path"].duplicated().any()
    pictures = {str(path) for path in folder.rglob("*") if path.suffix in (".jpg", ".png")}
    assert pictures <= set(made["path"]), "a picture was left out"


@pytest.mark.parametrize("name", datasets.NAMES)
def test_reading_twice_gives_the_same_table(name, folder):
    layouts.MAKERS[name](folder)
    assert datasets.read(name, folder).equals(datasets.read(name, str(folder)))


@pytest.mark.parametrize("name", datasets.NAMES)
def test_an_absent_set_says_how_to_get_it(name, tmp_path):
    with pytest.raises(datasets.MissingSetError) as error:
        datasets.read(name, tmp_path / "nowhere")
    message = str(error.value)
    assert "nowhere" in message and "http" in message and "Licence: " in message and f"{name}/" in message
    assert isinstance(error.value, FileNotFoundError)


@pytest.mark.parametrize("name", datasets.NAMES)
def test_an_empty_folder_counts_as_absent(name, folder):
    with pytest.raises(datasets.MissingSetError, match="http"):
        datasets.read(name, folder)


@pytest.mark.parametrize("name", ["celeba", "megaage_asian", "adience", "lfw"])
def test_without_its_lists_a_set_is_not_complete(name, folder):
    layouts.MAKERS[name](folder)
    for path in folder.rglob("*.txt"):
        path.unlink()
    with pytest.raises(datasets.MissingSetError, match="txt"):
        datasets.read(name, folder)


@pytest.mark.parametrize("name", ["celeba", "megaage_asian", "adience", "lfw"])
def test_an_empty_list_is_a_plain_error(name, folder):
    layouts.MAKERS[name](folder)
    for path in folder.rglob("*.txt"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="is empty: get the file again"):
        datasets.read(name, folder)


@pytest.mark.parametrize("name", ["celeba", "megaage_asian", "adience", "lfw", "imdb_wiki"])
def test_a_picture_that_is_listed_but_absent_is_a_row(name, folder):
    layouts.MAKERS[name](folder)
    before = datasets.read(name, folder)
    gone = table.usable(before)["path"].iloc[0]
    Path(gone).unlink()
    after = datasets.read(name, folder)
    assert len(after) == len(before)
    assert after.set_index("path").loc[gone, "reason"] == "picture file is missing"


@pytest.mark.parametrize("name", ["celeba", "megaage_asian", "adience", "lfw", "imdb_wiki"])
def test_a_picture_that_is_not_listed_is_a_row_with_a_reason(name, folder):
    layouts.MAKERS[name](folder)
    extra = Path(table.usable(datasets.read(name, folder))["path"].iloc[0]).with_name("999_x.jpg")
    layouts.picture(extra)
    assert datasets.read(name, folder).set_index("path").loc[str(extra), "reason"]


def test_find_tells_which_sets_are_there(tmp_path, monkeypatch):
    layouts.utkface(tmp_path / "utkface")
    layouts.lag(tmp_path / "LAG")
    layouts.imdb_wiki(tmp_path / "IMDB-WIKI", parts=["wiki"])
    found = datasets.find(tmp_path)
    assert list(found) == datasets.NAMES
    assert {name for name, place in found.items() if place} == {"utkface", "lag", "imdb_wiki"}
    monkeypatch.setenv("FAG_DATA", str(tmp_path))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "none"))
    assert datasets.data_dir() == tmp_path
    assert datasets.find() == found
    assert len(datasets.read("imdb_wiki")) == len(layouts.IMDB)
    assert datasets.overview()["found"].sum() == 3
    with pytest.raises(datasets.MissingSetError, match="CelebA"):
        datasets.read("celeba")


def test_find_in_a_folder_that_does_not_exist(tmp_path):
    assert not any(datasets.find(tmp_path / "nowhere").values())


def test_without_fag_data_the_sets_lie_in_data(monkeypatch):
    monkeypatch.delenv("FAG_DATA", raising=False)
    assert datasets.data_dir().name == "data"


def test_an_unknown_set_is_refused_with_the_names_of_those_there_are():
    with pytest.raises(ValueError, match="utkface"):
        datasets.read("mnist")
    with pytest.raises(AttributeError):
        datasets.mnist  # noqa: B018


def test_importing_the_readers_loads_no_heavy_library():
    code = (
        "import sys; from fag_utils import datasets; [getattr(datasets, name) for name in datasets.NAMES]; "
        "print([name for name in ('tensorflow', 'scipy', 'cv2', 'PIL') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_read_me_names_every_set_its_place_and_its_address():
    page = Path(__file__).parent.parent.joinpath("data", "README.md").read_text(encoding="utf-8")
    for name, row in datasets.overview().iterrows():
        address = next(word for word in row["how to get it"].split() if word.startswith("http"))
        assert f"`{name}/" in page and address.rstrip(".,;/") in page, name


# CelebA

def test_celeba_reads_genders_and_keeps_people_together(folder):
    layouts.celeba(folder)
    made = celeba.read(folder)
    assert len(made) == 60 and made["reason"].isna().all() and made["age"].isna().all()
    assert (made["male"] == (made["identity"].astype(int) % 2 == 0)).all()
    assert_people_stay_together(made)
    assert set(made["fold"]) > {"train"}


def test_celeba_takes_the_official_folds_and_the_folders_of_the_download(folder):
    layouts.celeba(folder)
    names = sorted(path.name for path in folder.glob("*/*.jpg"))
    layouts.text(folder / "Eval" / "list_eval_partition.txt", *(
        f"{name} {min(i // 20, 2)}" for i, name in enumerate(names)))
    for stem in ("list_attr_celeba.txt", "identity_CelebA.txt"):
        (folder / "Anno").mkdir(exist_ok=True)
        (folder / stem).rename(folder / "Anno" / stem)
    made = celeba.read(folder)
    assert made["fold"].tolist() == ["train"] * 20 + ["validation"] * 20 + ["test"] * 20
    # Pictures 20 and 21 show person 7, pictures 40 to 42 person 14: they lie across two of these folds.
    assert reasons(made) == {"person is in another fold, too": 3}
    assert_people_stay_together(made)


def test_celeba_reads_the_csv_files_of_kaggle(folder):
    nested = folder / "img_align_celeba" / "img_align_celeba"
    for i in (1, 2, 3):
        layouts.picture(nested / f"00000{i}.jpg")
    layouts.text(folder / "list_attr_celeba.csv", "image_id,Bald,Male,Young",
                 "000001.jpg,-1,1,1", "000002.jpg,-1,-1,1", "000003.jpg,1,1,1")
    layouts.text(folder / "list_eval_partition.csv", "image_id,partition",
                 "000001.jpg,0", "000002.jpg,1", "000003.jpg,2")
    made = celeba.read(folder)
    assert made["male"].tolist() == [1, 0, 1]
    assert made["fold"].tolist() == table.FOLDS and made["reason"].isna().all()


def test_celeba_without_people_or_folds_is_refused_as_folds_would_mix_people(folder):
    layouts.celeba(folder)
    (folder / "identity_CelebA.txt").unlink()
    with pytest.raises(datasets.MissingSetError, match="identity_CelebA.txt"):
        celeba.read(folder)


def test_celeba_broken_lines_become_rows(folder):
    layouts.celeba(folder)
    path = folder / "list_attr_celeba.txt"
    lines = path.read_text().splitlines()
    lines[2], lines[3], lines[4] = "000001.jpg -1", "000002.jpg -1 maybe 1", "�"
    layouts.text(path, *lines)
    made = celeba.read(folder)
    assert reasons(made) == {
        "broken line in list_attr_celeba.txt": 3, "not in the list of attributes": 3}
    assert f"{path}:4" in set(made["path"])


def test_celeba_without_the_column_male(folder):
    layouts.celeba(folder)
    layouts.text(folder / "list_attr_celeba.txt", "1", "Bald Young", "000001.jpg 1 1")
    with pytest.raises(ValueError, match="no column Male"):
        celeba.read(folder)


def test_celeba_on_the_real_set(fag_data):
    made = datasets.read("celeba", fag_data / "celeba")
    assert len(made) == 10_000 and made["reason"].isna().all()
    assert ((made["male"] == 1).sum(), (made["male"] == 0).sum()) == (4217, 5783)
    assert made["identity"].nunique() == 5429
    assert_people_stay_together(made)
    assert (made["fold"].value_counts(normalize=True) > 0.07).all() and made["fold"].nunique() == 3


# UTKFace

def test_utkface_reads_well_formed_and_malformed_names(folder):
    layouts.utkface(folder)
    made = by_name(utkface.read(folder))
    assert len(made) == len(layouts.UTKFACE)
    for name, (age, male, region, reason) in layouts.UTKFACE.items():
        row = made.loc[name]
        assert [None if np.isnan(v) else v for v in (row["age"], row["male"])] == [age, male], name
        assert row["region"] == region
        assert (row["reason"] is None) if reason is None else reason in row["reason"], name
        assert row["fold"] == table.hash_fold(name)
    assert made["identity"].isna().all()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has file names that are no text")
def test_a_file_name_that_is_no_valid_text_is_read_all_the_same(folder):
    layouts.picture(folder / "UTKFace" / "25_0_0_1.jpg")
    (folder / "UTKFace" / "25_0_0_1.jpg").rename(folder / "UTKFace" / "25_0_0_\udcff.jpg")
    assert utkface.read(folder)[["age", "reason"]].values.tolist() == [[25.0, None]]


def test_utkface_may_be_given_the_pictures_themselves(folder):
    layouts.utkface(folder)
    assert utkface.read(folder / "UTKFace").equals(utkface.read(folder))


@pytest.mark.parametrize("inside", [False, True])
def test_utkface_adults_that_are_not_in_val_txt_are_no_validation_pictures(folder, inside):
    names = [f"{age}_0_0_2017011617452{i:04d}.jpg" for age in (10, 30, 80) for i in range(60)]
    for name in names:
        layouts.picture(folder / "UTKFace" / name)
    validation = [name for name in names if table.hash_fold(name) == "validation"]
    listed = [name for name in validation if name.startswith("30_")]
    assert len(listed) > 2
    absent = "30_0_0_20160116174529999.jpg"
    layouts.text(folder / ("UTKFace/val.txt" if inside else "val.txt"), *listed[1:], absent)
    made = by_name(utkface.read(folder))
    assert made.loc[listed[0], "reason"] == "duplicate of a training picture"
    assert made.loc[absent, "reason"] == "picture file is missing"
    assert reasons(made) == {"duplicate of a training picture": 1, "picture file is missing": 1}
    assert set(validation) == set(made.index[made["fold"] == "validation"]) - {absent}


@given(st.text())
@example("")
@example("1_1_1_1")
@example("²_²_²_²")
@example("9" * 5000 + "_0_0_1.jpg")
@example("\udcff_0_0_1.jpg")
def test_no_name_whatever_makes_utkface_raise(name):
    said = utkface.parse(name)
    assert set(said) == {"age", "male", "region", "reason"}
    assert said["reason"] is not None or None not in (said["age"], said["male"], said["region"])
    assert utkface.race(name) in (None, *utkface.RACES)


@given(st.integers(0, 116), st.integers(0, 1), st.integers(0, 4), st.integers(0, 10**17 - 1))
def test_a_well_formed_name_is_read_back(age, gender, race, date):
    for end in (".jpg", ".jpg.chip.jpg"):
        name = f"{age}_{gender}_{race}_{date:017d}{end}"
        region = "asian" if race == 2 else "western"
        assert utkface.parse(name) == {"age": age, "male": 1 - gender, "region": region, "reason": None}
        assert utkface.race(f"some/folder_0_1_2/{name}") == utkface.RACES[race]


def test_utkface_race_is_none_where_the_name_does_not_tell():
    assert utkface.race("39_1_20170116174525125.jpg.chip.jpg") is None
    assert utkface.race(Path("a_0_2_b") / "25_0_7_2017.jpg") is None


def test_utkface_on_the_real_set(fag_data):
    start = time.perf_counter()
    made = datasets.read("utkface", fag_data / "utkface")
    assert time.perf_counter() - start < 2
    assert len(made) == 21_352
    assert reasons(made) == {"duplicate of a training picture": 46, "malformed name: no race": 3}
    usable = by_name(table.usable(made))
    adults = usable[(usable["fold"] == "validation") & usable["age"].between(labels.MIN_AGE, labels.MAX_AGE)]
    listed = (fag_data / "utkface" / "val.txt").read_text().split()
    assert len(listed) == 1724 and sorted(adults.index) == sorted(listed)
    assert "test" not in set(made["fold"])
    assert (usable["region"] == "asian").equals(usable["path"].map(utkface.race) == "asian")


# AFAD

def test_afad_reads_folders_and_reports_what_lies_in_the_wrong_place(folder):
    layouts.afad(folder)
    made = by_name(afad.read(folder))
    usable = table.usable(made)
    assert len(usable) == 13 and (usable["region"] == "asian").all()
    assert set(usable["age"]) == {18, 72}
    assert (usable["male"] == usable["path"].str.contains("/111/", regex=False)).all()
    assert reasons(made) == {"not in a folder AGE/111 or AGE/112": 2, "not a picture file": 1}
    assert made.loc["9-0.jpg", "age"] == 20, "what can be read is kept"


def test_afad_faces_from_one_source_are_in_one_fold(folder):
    for source in range(40):
        for i in (0, 1):
            layouts.picture(folder / "30" / "111" / f"{638600 + source}-{i}.jpg")
    made = afad.read(folder)
    sources = made["path"].map(lambda path: Path(path).stem.partition("-")[0])
    assert (made.groupby(sources)["fold"].nunique() == 1).all()
    assert made["fold"].nunique() == 3


def test_afad_lite_and_bare_folders(folder):
    layouts.afad(folder)
    full = afad.read(folder)
    (folder / "AFAD-Full").rename(folder / "AFAD-Lite")
    assert len(afad.read(folder)) == len(afad.read(folder / "AFAD-Lite")) == len(full)


# MegaAge-Asian

def test_megaage_joins_names_and_ages_and_keeps_the_official_test(folder):
    layouts.megaage_asian(folder)
    made = megaage_asian.read(folder)
    assert len(made) == 45 and made["reason"].isna().all() and made["male"].isna().all()
    stems = made["path"].map(lambda path: int(Path(path).stem))
    assert (made["age"] == stems).all() and (made["region"] == "asian").all()
    official = made["path"].map(lambda path: Path(path).parent.name)
    assert ((made["fold"] == "test") == (official == "test")).all()
    assert set(made["fold"]) == set(table.FOLDS)


def test_megaage_one_folder_deeper_as_the_archive_unpacks(folder):
    layouts.megaage_asian(folder / "megaage_asian")
    assert len(megaage_asian.read(folder)) == 45


def test_megaage_broken_age_is_a_row_and_a_lost_line_an_error(folder):
    layouts.megaage_asian(folder, train=3)
    layouts.text(folder / "list" / "train_age.txt", "1", "two", "300")
    assert reasons(megaage_asian.read(folder)) == {"broken line in train_age.txt": 2}
    layouts.text(folder / "list" / "train_age.txt", "1", "2")
    with pytest.raises(ValueError, match="has 3 lines, but train_age.txt has 2"):
        megaage_asian.read(folder)


# Adience

def test_adience_reads_the_published_labels(folder):
    layouts.adience(folder)
    made = adience.read(folder)
    assert len(made) == 15 * len(layouts.ADIENCE)
    one = made[made["identity"] == "000354155@N05"]
    expected = layouts.ADIENCE
    assert [None if np.isnan(age) else age for age in one["age"]] == [row[2] for row in expected]
    assert adience.groups(one).tolist() == [row[3] for row in expected]
    assert [None if np.isnan(male) else male for male in one["male"]] == [row[4] for row in expected]
    assert made["reason"].isna().all()
    nearest = adience.groups(one, nearest=True)
    assert nearest[7] in (4, 5) and nearest[9] == -1, "35 is near a group, no age is not"


def test_adience_five_fold_protocol(folder):
    layouts.adience(folder)
    tested = []
    for k in range(5):
        made = adience.read(folder, test_fold=k)
        assert_people_stay_together(made)
        test = made[made["fold"] == "test"]
        assert set(test["identity"].str[0]) == {str(k)}
        tested += test["path"].tolist()
    assert sorted(tested) == sorted(made["path"])
    with pytest.raises(ValueError, match="0..4"):
        adience.read(folder, test_fold=5)


def test_adience_takes_the_aligned_pictures_too(folder):
    layouts.adience(folder, "aligned", "landmark_aligned_face")
    assert adience.read(folder)["reason"].isna().all()


def test_adience_broken_lines_become_rows(folder):
    layouts.adience(folder)
    path = folder / "fold_2_data.txt"
    lines = path.read_text().splitlines()
    lines[1], lines[2] = lines[1][:20], lines[2].replace("(60, 100)", "old")
    lines[3] = lines[3].replace("\tm\t", "\tx\t")
    lines[10] = lines[10].replace("None\tf", "None\tu")
    layouts.text(path, *lines)
    assert reasons(adience.read(folder)) == {
        "broken line in fold_2_data.txt": 3, "not in the lists of folds": 3, "neither age nor gender": 1}


@given(st.text() | st.from_regex(r"\(\d{1,4}, ?\d{1,4}\)", fullmatch=True))
def test_an_age_label_of_adience_is_an_age_or_a_plain_error(text):
    try:
        age = adience.parse_age(text)
    except ValueError as error:
        assert "no age of Adience" in str(error)
    else:
        assert age is None or 0 <= age <= 120


# LFW

def test_lfw_takes_genders_from_the_lists(folder):
    layouts.lfw(folder)
    made = lfw.read(folder)
    assert len(made) == 8 and made["reason"].isna().all() and (made["fold"] == "test").all()
    assert dict(made.groupby("identity")["male"].mean()) == {
        "Ole_Hansen": 1, "Jiří_Novák": 1, "Anna_Berg": 0, "Zoë_Lund": 0}


def test_lfw_picture_in_no_list_or_in_both(folder):
    layouts.lfw(folder)
    layouts.picture(folder / "lfw" / "Kim_Doe" / "Kim_Doe_0001.jpg")
    with open(folder / "male_names.txt", "a", encoding="utf-8") as file:
        file.write("Anna_Berg_0001.jpg\nNo_Body_0001.jpg\n")
    made = by_name(lfw.read(folder))
    assert made.loc["Kim_Doe_0001.jpg", "reason"] == "gender is in no list"
    assert made.loc["Anna_Berg_0001.jpg", "reason"] == "gender is in both lists"
    assert made.loc[["Kim_Doe_0001.jpg", "Anna_Berg_0001.jpg"], "male"].isna().all()
    assert made.loc["No_Body_0001.jpg", "reason"] == "picture file is missing"


def test_lfw_on_the_real_set(fag_data):
    made = datasets.read("lfw", fag_data / "lfw")
    assert len(made) == 4009 and made["reason"].isna().all()
    assert ((made["male"] == 1).sum(), (made["male"] == 0).sum()) == (3016, 993)
    assert (made["fold"] == "test").all()


# IMDB-WIKI

def test_imdb_wiki_ages_and_reasons(folder):
    layouts.imdb_wiki(folder)
    made = imdb_wiki.read(folder)
    assert len(made) == 2 * len(layouts.IMDB)
    for (_, row), said in zip(made.iterrows(), layouts.IMDB * 2, strict=True):
        age, male, reason = said[6:]
        assert [None if np.isnan(v) else v for v in (row["age"], row["male"])] == [age, male], said
        assert (row["reason"] is None) if reason is None else reason in row["reason"], said
    assert made["identity"].iloc[10] == "nm0000010", "without a name, the file name tells who it is"
    assert_people_stay_together(made)


def test_imdb_wiki_face_score_is_the_users_choice(folder):
    layouts.imdb_wiki(folder, parts=["imdb"])
    assert "face score is low" not in reasons(imdb_wiki.read(folder, min_face_score=0.1))
    assert reasons(imdb_wiki.read(folder, min_face_score=4.0))["face score is low"] > 5


@given(st.dates(), st.integers(1850, 2030))
def test_age_is_counted_in_full_years_on_1_july(birth, year):
    day = layouts.matlab_day(birth.year, birth.month, birth.day)
    expected = year - birth.year - ((birth.month, birth.day) > (7, 1))
    assert imdb_wiki.age_in_years([day], [year]).tolist() == [expected]


def test_age_without_a_birth_date_is_missing():
    assert np.isnan(imdb_wiki.age_in_years([np.nan, np.inf, 7e5], [2000, 2000, np.nan])).all()


def test_imdb_wiki_damaged_file(folder):
    layouts.imdb_wiki(folder, parts=["wiki"])
    path = folder / "wiki_crop" / "wiki.mat"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="wiki.mat is not the Matlab file of the set"):
        imdb_wiki.read(folder)


# LAG

def test_lag_names_people_without_ages_and_genders(folder):
    layouts.lag(folder)
    made = lag.read(folder)
    assert len(made) == 9 and made["reason"].isna().all()
    assert made["age"].isna().all() and made["male"].isna().all() and (made["fold"] == "test").all()
    assert set(made["identity"]) == {"Ann_One", "Bo_Two", "Renée_Three"}


def test_lag_takes_genders_from_a_file_of_the_user(folder):
    layouts.lag(folder)
    layouts.text(folder / "gender.csv", "person,male", "Ann_One,0", "Renée_Three,0", "Bo_Two, 1", "Bo_Two;1")
    made = lag.read(folder)
    assert reasons(made) == {"broken line in gender.csv": 1}
    genders = table.usable(made).groupby("identity")["male"].mean().to_dict()
    assert genders == {"Ann_One": 0, "Bo_Two": 1, "Renée_Three": 0}
