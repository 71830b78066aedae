"""A photograph in, people out: the shipped networks, ready to use without a network connection."""

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fag_utils import faces, labels, runtimes

if TYPE_CHECKING:
    import pandas as pd

WEIGHTS = runtimes.WEIGHTS
PREDICTIONS = ["age", "age_low", "age_high", "male_probability"]
LIKELY_OUTSIDE = 0.3  # of these people, chosen on the tuning part: most of those outside are marked
PHOTOS_AT_ONCE = 16  # photographs whose faces are told in one go
MASK_DETECTOR = "mask_detector"
MASKED = 0.5  # from this probability of a mask on, the network for masked faces answers


def available_weights():
    """The networks for age and gender that are shipped: dict of name -> model card (dict)."""
    cards = sorted(card for card in WEIGHTS.glob("*.json") if card.stem != MASK_DETECTOR)
    return {card.stem: json.loads(card.read_text(encoding="utf-8")) for card in cards}


def load_predictor(name="mobilefacenet_075_62", runtime="keras", precision="int8", threads=None, folder=None,
                   masks=None):
    """A `Predictor` with shipped weights.

    name : of the weights, see `available_weights`
    runtime : what computes: "keras"; "litert", which needs no TensorFlow; "onnx" (ONNX Runtime) or "openvino"
    precision : of the file for a runtime other than Keras: "int8" is shipped for litert and onnx
    threads : how many a prediction may use; None leaves it to the runtime (Keras: always)
    folder : where other files lie that `export` wrote, named NAME.PRECISION.ENDING
    masks : whether photographs are looked at for face masks: then `predict_photo` says who wears one, and where
        there are weights named NAME_masked, these answer for them, and else, for a network that sees whole faces,
        the small network's. None: with Keras yes, with another runtime no, to spare the memory; on request litert
        has the files for it.

    Raises ValueError for a name that `available_weights` doesn't list or a runtime that there is not,
    FileNotFoundError for a precision that there is no file of, runtimes.RuntimeMissing (an ImportError).
    """
    cards = available_weights()
    if name not in cards:
        known = ", ".join(cards) or "none"
        raise ValueError(f"there are no weights named {name!r}; shipped are: {known}")
    if runtime != "keras" and runtime not in runtimes.FILES:
        raise ValueError(f"runtime must be 'keras' or one of {sorted(runtimes.FILES)}, got {runtime!r}")

    def load(name):
        if runtime == "keras":
            return runtimes.load(WEIGHTS / f"{name}.keras")
        return runtimes.load(Path(folder or WEIGHTS) / f"{name}.{precision}.{runtimes.FILES[runtime][0]}", threads)

    network = load(name)
    if masks is None:
        masks = runtime == "keras" and (WEIGHTS / f"{MASK_DETECTOR}.keras").is_file()
    if masks:
        others = [] if "eyes" in cards[name] else [f"{name}_masked", "mobilefacenet_075_62_masked"]
        other = next((other for other in others if other in cards and other != name), None)
        covered = (lambda: Predictor(load(other), cards[other])) if other else None
        masks = Masks(lambda: load(MASK_DETECTOR), covered)
    model = network.model if runtime == "keras" else network
    return Predictor(model, cards[name], masks=masks or None)


def save_weights(model, name, card, folder=WEIGHTS):
    """Ship a trained network: NAME.keras (weights and layers, no optimizer) and NAME.json, its card."""
    import keras

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    bare = keras.models.clone_model(model)  # without optimizer and losses
    bare.set_weights(model.get_weights())
    bare.save(folder / f"{name}.keras")
    text = json.dumps({"name": name, **card}, indent=2, ensure_ascii=False)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    return folder / f"{name}.keras"


def model_card(model, people, **said):
    """A model card, for `save_weights`: the same facts for every network of age and gender, and what is `said` of it.

    model : the network; people : `evaluation.predict_set`'s table of it on UTKFace's validation fold
    said : what, learned_from, calibration, training, validation, and whatever else there is to say
    """
    from fag_utils import datasets, evaluation, models

    def rounded(table):
        return evaluation.plain(table.round(4).to_dict("records"))

    height, width = model.input_shape[1:3]
    facts = {
        "input": f"RGB, 0..255, (n, {height}, {width}, 3), cut as a UTKFace picture is (fag_utils.faces)",
        "output": "age: probabilities of 18..65; gender: probabilities of female, male; outside: of an age under 18, "
                  "over 65",
        "parameters": model.count_params(), "multiply_adds": models.count(model)["multiply_adds"],
        "learned_from": None,  # these stand here to keep the order
        "licence": "non-commercial research, as UTKFace and CelebA demand",
        "not_for": "decisions about people; identity; anyone under 18 or over 65; medical or legal age",
        "calibration": None, "training": None, "validation": None,
        "by_ethnicity": rounded(evaluation.by(people.assign(race=people["path"].map(datasets.utkface.race)), "race")),
        "by_gender": rounded(evaluation.by(people, "male")),
        "near_65": "65 is the oldest class: an answer of 60 or more may be someone older, see may_be_outside",
    }
    return {"what": said.pop("what"), **facts, **said}


def may_be_outside(age_low, age_high, outside=None):
    """Which people may be younger than 18 or older than 65: bool array.

    age_low, age_high : ends of their 80 % intervals (arrays of years)
    outside : (n, 2), the network's own probabilities of the two, from which it is told where they are known; a
        network that knows no other ages gives such people its first or last, so whoever's interval comes close to an
        end may be one of them.

    Notebook 09 measures how many of them are marked, and how many others.
    """
    if outside is not None:
        return np.asarray(outside).max(axis=-1) > LIKELY_OUTSIDE
    return (np.asarray(age_low) < labels.MIN_AGE + 1) | (np.asarray(age_high) > labels.MAX_AGE - 2)


@dataclass
class Look:
    """A photograph with its faces, before anybody has said how old they are.

    picture : (height, width, 3) uint8 RGB, upright as far as the file tells
    faces : DataFrame, a row a face, as `faces.detect` returns it
    crops : (n, height, width, 3) uint8 RGB, what the network will see
    notes : list of sentences for people: what is special about this file
    masked : (n,) probabilities that the face wears a mask, or None: nobody looked
    """

    picture: np.ndarray
    faces: "pd.DataFrame"
    crops: np.ndarray
    notes: list
    masked: np.ndarray | None = None


class Masks:
    """What there is for faces in masks: a network that tells them, and one that answers for them.

    detector : function that loads a network with the head "masked", for crops of whole faces
    covered : function that loads a `Predictor` for masked faces, or None: then nobody answers in the other's stead

    Both are loaded when a photograph first needs them.
    """

    def __init__(self, detector, covered=None):
        self._detector, self._covered = detector, covered

    @functools.cached_property
    def detector(self):
        return runtimes.wrap(self._detector())

    @functools.cached_property
    def covered(self):
        return self._covered and self._covered()

    def probabilities(self, picture, found):
        """How sure it is that each of the faces of `faces.detect` wears a mask: (n,) of 0..1."""
        return self.detector(_cut(picture, found, self.detector.shape))["masked"][:, 1].astype("float64")


def _cut(picture, found, shape, eyes=None):
    """Crops of the faces that `faces.detect` found, of this (height, width): (n, height, width, 3) uint8 RGB."""
    size, points = shape[1], [faces.points_of(face) for _, face in found.iterrows()]
    crops = [faces.crop_eyes(picture, at, eyes, size) if eyes else faces.crop_points(picture, at, size)
             for at in points]
    return np.array(crops, "uint8").reshape(-1, *shape, 3)


class Predictor:
    """An age and gender network with all that belongs to its use: the crop, the mirror, the calibration.

    model : Keras model, (n, size, size, 3) RGB 0..255 -> {"age": (n, 48), "gender": (n, 2)}, and where it knows
        other ages too "outside": (n, 2), see `models.narrow`; or such a network in another runtime: `runtimes.load`
    card : its model card; "calibration" holds the temperatures fitted on pictures it did not learn from
    mirror : average the probabilities with those of the mirror image (twice the time, a little better)
    masks : a `Masks`, by which `predict_photo` treats people in face masks, or None: as anybody else

    A network whose card names `eyes` sees the region of the eyes alone (see `faces.crop_eyes`); what is given to
    `predict_crops` is the whole face all the same.
    """

    def __init__(self, model, card=None, mirror=True, masks=None):
        self.model = model
        self.card = card or {}
        self.mirror, self.masks = mirror, masks
        self.network = runtimes.wrap(model)
        self.size, self.eyes = self.network.size, self.card.get("eyes")

    def probabilities(self, crops):
        """Calibrated outputs of the model for crops of one face each (see predict_crops): dict of arrays."""
        pictures = [faces.read_picture(crop) for crop in crops]
        return self._probabilities(self.framed(pictures))

    def framed(self, pictures):
        """What the network sees of pictures that show one face each: (n, height, width, 3) uint8 RGB."""
        def cut(picture):
            if not self.eyes:
                return faces.crop_framed(picture, "utkface", self.size)
            return faces.crop_eyes(picture, faces.FOUND * picture.shape[1::-1], self.eyes, self.size)

        return np.array([cut(picture) for picture in pictures], "uint8").reshape(-1, *self.network.shape, 3)

    def _probabilities(self, pictures):
        seen = [self.network(pictures)] + ([self.network(pictures[:, :, ::-1])] if self.mirror else [])
        told = {head: np.mean([view[head] for view in seen], axis=0) for head in self.network.heads}
        calibration = self.card.get("calibration", {})
        told["gender"] = labels.temper(told["gender"], calibration.get("gender_temperature", 1.0))
        age, outside = labels.temper_ages(told["age"], told.get("outside"), calibration.get("age_temperature", 1.0))
        return told | {"age": age} | ({} if outside is None else {"outside": outside})

    def predict_crops(self, crops):
        """Age and gender of pictures that show one face each, filling the frame as in UTKFace.

        Parameters
        ----------
        crops : list, or array (n, h, w, 3), of pictures (h, w, 3) uint8 RGB of any size; anything else
            that `faces.read_picture` takes will do too

        Returns
        -------
        DataFrame, a row a picture: age (years, expected value over 18..65), age_low and age_high (80 %
        interval), male_probability (0..1), may_be_outside (bool: the person may be under 18 or over 65,
        see `may_be_outside`).

        Raises ValueError for something that is not a list of pictures.
        """
        if isinstance(crops, np.ndarray) and crops.ndim == 3:
            raise ValueError("predict_crops takes several pictures: for one, write predict_crops([crop])")
        return self.table(self.probabilities(crops))

    def ages(self, probabilities):
        """Ages in years, told from calibrated distributions (n, 48): the mean, sharpened as the card says."""
        calibration = self.card.get("calibration", {})
        sharpen = calibration.get("decoding_temperature", 1.0) / calibration.get("age_temperature", 1.0)
        return labels.expected_age(labels.temper(probabilities, sharpen))

    def answers(self, probabilities, share=0.8):
        """What `predict_crops` tells, as a dict of arrays: without pandas, which takes 40 MB of memory."""
        age, outside = probabilities["age"], probabilities.get("outside")
        low, high = labels.age_interval(age, share, outside)
        told, masked = self.ages(age), probabilities.get("masked")
        if masked is not None and (masked >= MASKED).any() and self.masks.covered:
            told = np.where(masked >= MASKED, self.masks.covered.ages(age), told)
        more = {} if masked is None else {"masked_probability": masked}
        # Of somebody who seems to be 12 the age lies above the interval: they end at the same place.
        return {
            "age": told, "age_low": np.minimum(low, told), "age_high": np.maximum(high, told),
            "male_probability": probabilities["gender"][:, labels.MALE],
            "may_be_outside": may_be_outside(*labels.age_interval(age), outside), **more,
        }

    def table(self, probabilities, share=0.8):
        """The DataFrame of `predict_crops` from `probabilities`, with intervals that hold this share of them."""
        import pandas as pd

        return pd.DataFrame(self.answers(probabilities, share))

    def predict_photo(self, photo, min_score=0.5):
        """Find the faces of a photograph and tell age and gender of each.

        photo : path, bytes, PIL image or array (h, w, 3) uint8 RGB
        min_score : faces the detector is less sure of are left out

        Returns a DataFrame, a row a face, the largest first: the columns of `predict_crops`, and x, y,
        width, height of the face's box in pixels and face_score (0..1); with `masks` also masked_probability
        (0..1: how sure it is that a mask covers nose or mouth; from 0.5 on the network for masked faces has
        answered). No face gives no rows.
        `.attrs["notes"]` is a list of sentences: that the file breaks off, lies on its side, and such.
        Raises faces.PictureError (a ValueError) when the photo can't be read.
        """
        return self.tell([self.look(photo, min_score)])[0]

    def look(self, photo, min_score=0.5):
        """The first half of `predict_photo`: read a photograph, find and crop its faces. Returns a Look."""
        picture, notes = faces.read_photo(photo)
        found = faces.detect(picture, min_score)
        if found.attrs["turns"]:
            notes.append("The picture lies on its side, or on its head: the faces were turned upright.")
        masked = self.masks.probabilities(picture, found) if self.masks else None
        return Look(picture, found, self.crops(picture, found), notes, masked)

    def crops(self, picture, found):
        """What the network sees of faces that `faces.detect` found: (n, height, width, 3) uint8 RGB."""
        return _cut(picture, found, self.network.shape, self.eyes)

    def tell(self, looks):
        """The second half, for the faces of many photographs at once: a list with a DataFrame for each Look."""
        looks = list(looks)
        if not looks:
            return []
        told = self._told(looks)
        ends = np.cumsum([len(look.crops) for look in looks])[:-1]
        parts = zip(*(np.split(probabilities, ends) for probabilities in told.values()), strict=True)
        answers = [dict(zip(told, part, strict=True)) for part in parts]
        return [self.people(look, answer) for look, answer in zip(looks, answers, strict=True)]

    def probabilities_of(self, look):
        """`probabilities` of the faces of one Look."""
        return self._told([look])

    def _told(self, looks):
        """`_probabilities`, those of masked faces from the network for them, and "masked" beside them."""
        told = self._probabilities(np.concatenate([look.crops for look in looks]))
        if not self.masks or any(look.masked is None for look in looks):
            return told
        masked = np.concatenate([look.masked for look in looks])
        covered = masked >= MASKED
        if covered.any() and self.masks.covered:
            # Cut from the photographs, in its own size: what was scaled twice would be another picture.
            seen = [self.masks.covered.crops(look.picture, look.faces[look.masked >= MASKED]) for look in looks]
            for head, answer in self.masks.covered._probabilities(np.concatenate(seen)).items():
                told[head][covered] = answer
        return told | {"masked": masked}

    def people(self, look, probabilities, share=0.8):
        """The DataFrame of `predict_photo` from a Look and its probabilities, with intervals that hold this share."""
        import pandas as pd

        people = pd.concat([self.table(probabilities, share), look.faces[faces.BOX_COLUMNS]], axis=1)
        people.attrs = {"notes": look.notes}
        return people


def predict_folder(folder, csv=None, predictor=None, min_score=0.5, progress=True):
    """Find the faces of all photographs in a folder and tell age and gender of each; write a csv file.

    Parameters
    ----------
    folder : every file in it is tried, those in folders below it too; hidden files and csv files are left out
    csv : where to write; None is `people.csv` in the folder itself
    predictor : a `Predictor`; None loads the one that `load_predictor` loads by default
    min_score : faces the detector is less sure of are left out
    progress : show a bar

    Returns
    -------
    DataFrame, what the csv file holds, a row a face: file (below the folder, with /), face (1, 2, ... the
    largest first), the columns of `predict_photo`, note (what is special about the file). A file that can't be
    used, or shows no face, has one row without a face, and a `reason`: "no face", "not_a_picture", "too_large",
    "truncated", "unreadable".

    Raises FileNotFoundError where there is no such folder.
    """
    import pandas as pd
    from tqdm.auto import tqdm

    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}")
    csv = Path(csv) if csv else folder / "people.csv"
    predictor = predictor or load_predictor()
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() != ".csv"
                   and not any(part.startswith(".") for part in path.relative_to(folder).parts))
    tables = []
    with tqdm(total=len(paths), unit="photo", disable=not progress) as bar:
        for start in range(0, len(paths), PHOTOS_AT_ONCE):
            part = paths[start : start + PHOTOS_AT_ONCE]
            tables += _predict_files(part, folder, predictor, min_score, bar)
    rows = [row for table in tables for row in table.to_dict("records")]
    table = pd.DataFrame(rows, columns=_columns(rows)).astype({"face": "Int64", "may_be_outside": "boolean"})
    partial = csv.with_name(f".{csv.name}.partial")
    table.to_csv(partial, index=False, float_format="%.4g", encoding="utf-8")
    os.replace(partial, csv)  # whole or not at all
    return table


def _columns(rows):
    """The columns of predict_folder, with those in their middle that this predictor may give beyond the usual."""
    usual = ["file", "face", *PREDICTIONS, "may_be_outside", *faces.BOX_COLUMNS, "reason", "note"]
    more = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in usual]
    return usual[:-2] + more + usual[-2:]


def _predict_files(paths, folder, predictor, min_score, bar):
    """A table for each of these files, in their order."""
    import pandas as pd

    looks, reasons = {}, {}
    for path in paths:
        try:
            look = predictor.look(path, min_score)
            look.picture = None  # only its faces have to wait for the others
            looks[path] = look
        except faces.PictureError as error:
            reasons[path] = error.reason, str(error).replace(os.fspath(path), path.name)  # where it lies is private
        bar.update()
    told = dict(zip(looks, predictor.tell(looks.values()), strict=True))
    tables = []
    for path in paths:
        name = path.relative_to(folder).as_posix()
        if path in reasons:
            reason, note = reasons[path]
            tables.append(pd.DataFrame([{"file": name, "reason": reason, "note": note}]))
        else:
            tables.append(_rows(told[path], name))
    return tables


def _rows(people, name):
    import pandas as pd

    notes = " ".join(people.attrs.get("notes", []))
    if not len(people):
        return pd.DataFrame([{"file": name, "reason": "no face", "note": notes}])
    return people.assign(file=name, face=range(1, len(people) + 1), note=notes)
