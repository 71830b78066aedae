"""Write the shipped networks for LiteRT, ONNX and OpenVINO, and compare each with Keras on the validation fold.

    python tools/export.py FOLDER [NAME ...]     FOLDER holds the data sets: UTKFace is needed

NAME : of the weights, by default mobilefacenet_075_62; "masks" writes what LiteRT needs for faces in masks, the
network for them and the mask detector, in int8.

The int8 files of LiteRT and ONNX go to fag_utils/weights/, beside the weights, the others to build/export/. What was
measured goes to data/results/11_export.csv, of the files for masks to 05_export.csv; a file outside the limits of
`export.LIMITS` ends this with an error.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from fag_utils import course, datasets, evaluation, export, faces, occlusion, predictor, runtimes

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "export"
FORMATS = {"litert": export.to_litert, "onnx": export.to_onnx, "openvino": export.to_openvino}
SUFFIX = {"litert": "tflite", "onnx": "onnx", "openvino": "xml"}
SHIPPED = [("litert", "int8"), ("onnx", "int8")]
NAME = "mobilefacenet_075_62"
RESULTS = ROOT / "data" / "results"


def main(data, names):
    if not data or not Path(data).is_dir():
        sys.exit("make export DATA=folder: name the folder that holds the data sets (see data/README.md)")
    course.quiet()
    OUT.mkdir(parents=True, exist_ok=True)
    table = datasets.read("utkface", Path(data) / "utkface")
    held = evaluation.held_out(table)
    if names == ["masks"]:
        for_masks(table, held)
        return
    export.detector(predictor.WEIGHTS)
    rows = []
    for name in names or [NAME]:
        exact = predictor.load_predictor(name)
        pictures = export.calibration_pictures(table, exact.size)
        crops = [faces.crop_framed(faces.read_picture(path), size=exact.size) for path in held["path"]]
        right = exact.answers(exact.probabilities(crops))
        alone = by_litert_alone(exact.model, OUT / f"{name}.alone.tflite", pictures)
        told = predictor.Predictor(runtimes.load(alone), exact.card)
        found = export.compare(told.answers(told.probabilities(crops)), right, held["age"], held["male"])
        print(f"{alone.name}, LiteRT's converter by itself: MAE {found['mae']:.3f}", flush=True)
        fits = "int8" in found.pop("fits")
        size = alone.stat().st_size
        rows.append({"weights": name, "format": "litert", "precision": "alone", "bytes": size, **found,
                     "pictures": len(crops), "fits": fits})
        for form, precisions in export.PRECISIONS.items():
            for precision in precisions:
                start = time.perf_counter()
                folder = predictor.WEIGHTS if (form, precision) in SHIPPED else OUT
                path = FORMATS[form](exact.model, folder / f"{name}.{precision}.{SUFFIX[form]}", precision,
                                     pictures if precision == "int8" else None)
                told = predictor.Predictor(runtimes.load(path), exact.card)
                found = export.compare(told.answers(told.probabilities(crops)), right, held["age"], held["male"])
                fits = precision in found.pop("fits")
                size = sum(file.stat().st_size for file in path.parent.glob(f"{path.stem}.*")
                           if file.suffix in (path.suffix, ".bin" if form == "openvino" else path.suffix))
                rows.append({"weights": name, "format": form, "precision": precision, "bytes": size, **found,
                             "pictures": len(crops), "fits": fits})
                print(f"{path.name}: {size / 1000:.0f} kB, MAE {found['mae']:.3f} (Keras {found['mae_exact']:.3f}), "
                      f"gender {found['gender']:.2%} ({found['gender_exact']:.2%}), "
                      f"{'ok' if fits else 'TOO FAR'}, {time.perf_counter() - start:.0f} s", flush=True)
    pd.DataFrame(rows).to_csv(RESULTS / "11_export.csv", index=False, float_format="%.6g")
    if not all(row["fits"] for row in rows if row["precision"] != "alone"):
        sys.exit("some files are too far from Keras: see above")


def for_masks(table, held):
    """LiteRT's files for faces in masks, each beside Keras on the validation fold, bare and in drawn masks."""
    exact = predictor.load_predictor(f"{NAME}_masked")
    pictures = export.calibration_pictures(table, exact.size)
    pictures = np.concatenate([pictures, occlusion.wear_crops(pictures, seed=1)])
    crops = np.array([faces.crop_framed(faces.read_picture(path), size=exact.size) for path in held["path"]])
    views = {"bare": crops, "masked": occlusion.wear_crops(crops, seed=5, points=faces.crop_landmarks(crops)[0])}
    path = export.to_litert(exact.model, predictor.WEIGHTS / f"{NAME}_masked.int8.tflite", "int8", pictures)
    told, rows = predictor.Predictor(runtimes.load(path), exact.card), []
    for face, seen in views.items():
        one, other = (network.answers(network.probabilities(list(seen))) for network in (told, exact))
        found = export.compare(one, other, held["age"], held["male"])
        rows.append({"weights": f"{NAME}_masked", "face": face, "bytes": path.stat().st_size, **found,
                     "fits": "int8" in found["fits"]})
    model = runtimes.load(predictor.WEIGHTS / f"{predictor.MASK_DETECTOR}.keras").model
    path = export.to_litert(model, predictor.WEIGHTS / f"{predictor.MASK_DETECTOR}.int8.tflite", "int8", pictures)
    for face, seen in views.items():
        one, other = (network(seen)["masked"][:, 1] for network in (runtimes.load(path), runtimes.wrap(model)))
        same = (one >= predictor.MASKED) == (other >= predictor.MASKED)
        rows.append({"weights": predictor.MASK_DETECTOR, "face": face, "bytes": path.stat().st_size,
                     "masked": (one >= predictor.MASKED).mean(), "masked_exact": (other >= predictor.MASKED).mean(),
                     "fits": same.mean() > 1 - export.LIMITS["int8"][1]})
    result = pd.DataFrame(rows)
    result.to_csv(RESULTS / "05_export.csv", index=False, float_format="%.6g")
    print(result.drop(columns="age_change").to_string())
    if not result["fits"].all():
        sys.exit("some files are too far from Keras: see above")


def by_litert_alone(model, path, pictures):
    """The int8 file that LiteRT's converter makes by itself: largest values as ranges, PReLU as it is, integer heads.

    Not for use: what `export.to_litert` does better is measured beside it.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    plain = export.folded(model)
    spec = tf.TensorSpec((1, *model.input_shape[1:]), tf.float32, name="picture")
    frozen = convert_variables_to_constants_v2(
        tf.function(lambda picture: dict(plain(picture)), autograph=False).get_concrete_function(spec))
    module = tf.Module()
    module.serve = tf.function(lambda picture: dict(zip(sorted(model.output), frozen(picture), strict=True)),
                               autograph=False).get_concrete_function(spec)
    with tempfile.TemporaryDirectory() as folder, runtimes.quiet():
        tf.saved_model.save(module, folder, signatures=module.serve)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([picture[None].astype("float32")] for picture in pictures)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        path.write_bytes(converter.convert())
    return path


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("FAG_DATA"), sys.argv[2:])
