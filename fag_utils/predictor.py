"""A photograph in, people out: the shipped networks, ready to use without a network connection."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from fag_utils import faces, labels

WEIGHTS = Path(__file__).parent / "weights"
PREDICTIONS = ["age", "age_low", "age_high", "male_probability"]
BATCH = 64


def available_weights():
    """The networks that are shipped: dict of name -> model card (dict)."""
    cards = sorted(WEIGHTS.glob("*.json"))
    return {card.stem: json.loads(card.read_text(encoding="utf-8")) for card in cards}


def load_predictor(name="mobilefacenet_075_62"):
    """A `Predictor` with shipped weights. ValueError for a name that `available_weights` doesn't list."""
    cards = available_weights()
    if name not in cards:
        known = ", ".join(cards) or "none"
        raise ValueError(f"there are no weights named {name!r}; shipped are: {known}")
    import keras

    return Predictor(keras.saving.load_model(WEIGHTS / f"{name}.keras", compile=False), cards[name])


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


class Predictor:
    """An age and gender network with all that belongs to its use: the crop, the mirror, the calibration.

    model : Keras model, (n, size, size, 3) RGB 0..255 -> {"age": (n, 48), "gender": (n, 2)}
    card : its model card; "calibration" holds the temperatures fitted on pictures it did not learn from
    mirror : average the probabilities with those of the mirror image (twice the time, a little better)
    """

    def __init__(self, model, card=None, mirror=True):
        self.model = model
        self.card = card or {}
        self.mirror = mirror
        self.size = model.input_shape[1]

    def probabilities(self, crops):
        """Calibrated {"age": (n, 48), "gender": (n, 2)} of crops of one face each (see predict_crops)."""
        pictures = [faces.read_picture(crop) for crop in crops]
        ready = [faces.crop_framed(picture, "utkface", self.size) for picture in pictures]
        return self._probabilities(np.array(ready, "uint8").reshape(-1, self.size, self.size, 3))

    def _probabilities(self, pictures):
        import tensorflow as tf

        outputs = {"age": [np.zeros((0, labels.N_AGES))], "gender": [np.zeros((0, 2))]}
        for start in range(0, len(pictures), BATCH):
            batch = tf.cast(pictures[start : start + BATCH], tf.float32)
            seen = [self._run(batch)] + ([self._run(batch[:, :, ::-1])] if self.mirror else [])
            for head in outputs:
                outputs[head].append(np.mean([view[head].numpy() for view in seen], axis=0))
        calibration = self.card.get("calibration", {})
        return {
            head: labels.temper(np.concatenate(parts), calibration.get(f"{head}_temperature", 1.0))
            for head, parts in outputs.items()
        }

    def _run(self, batch):
        if not hasattr(self, "_function"):
            import tensorflow as tf

            spec = tf.TensorSpec((None, self.size, self.size, 3), tf.float32)
            self._function = tf.function(lambda x: self.model(x, training=False), input_signature=[spec])
        return self._function(batch)

    def predict_crops(self, crops):
        """Age and gender of pictures that show one face each, filling the frame as in UTKFace.

        Parameters
        ----------
        crops : list, or array (n, h, w, 3), of pictures (h, w, 3) uint8 RGB of any size; anything else
            that `faces.read_picture` takes will do too

        Returns
        -------
        DataFrame, a row a picture: age (years, expected value over 18..65), age_low and age_high (80 %
        interval), male_probability (0..1).

        Raises ValueError for something that is not a list of pictures.
        """
        if isinstance(crops, np.ndarray) and crops.ndim == 3:
            raise ValueError("predict_crops takes several pictures: for one, write predict_crops([crop])")
        return self._table(self.probabilities(crops))

    def ages(self, probabilities):
        """Ages in years, told from calibrated distributions (n, 48): the mean, sharpened as the card says."""
        calibration = self.card.get("calibration", {})
        sharpen = calibration.get("decoding_temperature", 1.0) / calibration.get("age_temperature", 1.0)
        return labels.expected_age(labels.temper(probabilities, sharpen))

    def _table(self, probabilities):
        low, high = labels.age_interval(probabilities["age"])
        return pd.DataFrame({
            "age": self.ages(probabilities["age"]), "age_low": low, "age_high": high,
            "male_probability": probabilities["gender"][:, labels.MALE],
        })

    def predict_photo(self, photo, min_score=0.5):
        """Find the faces of a photograph and tell age and gender of each.

        photo : path, bytes, PIL image or array (h, w, 3) uint8 RGB
        min_score : faces the detector is less sure of are left out

        Returns a DataFrame, a row a face, the largest first: the columns of `predict_crops`, and x, y,
        width, height of the face's box in pixels and face_score (0..1). No face gives no rows.
        Raises faces.PictureError (a ValueError) when the photo can't be read.
        """
        picture = faces.read_picture(photo)
        found = faces.detect(picture, min_score)
        crops = [faces.crop_face(picture, face, self.size) for _, face in found.iterrows()]
        people = self._table(self._probabilities(np.array(crops, "uint8").reshape(-1, self.size, self.size, 3)))
        return pd.concat([people, found[faces.BOX_COLUMNS]], axis=1)
