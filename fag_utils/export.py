"""A shipped network as files for phones and browsers: LiteRT, ONNX and OpenVINO, in float and in 8-bit integers.

Each format has one call: `to_litert`, `to_onnx`, `to_openvino`; `runtimes.load` opens what they write, and `compare`
measures it against the Keras network. TensorFlow and the converters are imported when used (extra `export`).
All files take (n, size, size, 3) float32, RGB 0..255, and give float32 probabilities under the names that Keras has.
"""

import contextlib
import importlib
import io
import json
import logging
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np

from fag_utils import course, labels, predictor, runtimes

PRECISIONS = {"litert": ("float32", "float16", "int8"), "onnx": ("float32", "int8"), "openvino": ("float32", "int8")}
# How far a file may be from the Keras network on the validation fold: years of MAE, share of right genders.
LIMITS = {"float32": (0.05, 0.002), "float16": (0.05, 0.002), "int8": (0.15, 0.005)}
CONVOLUTIONS = ("Conv2D", "DepthwiseConv2D")


class ExportError(RuntimeError):
    """A network that can't be written in this form, or a converter that is not there; the text says what to do."""


def to_litert(model, path, precision="float32", pictures=None):
    """Write a LiteRT (TensorFlow Lite) file for one picture at a time. Returns its path.

    Parameters
    ----------
    model : Keras model as `models.age_gender` or `models.narrow` makes it, or the name of shipped weights
    path : of the file, by custom ending in .tflite
    precision : "float32"; "float16", weights in half as many bytes, in which a processor that has such arithmetic
        computes as well; "int8", weights and activations up to the embedding, see `Quantised`
    pictures : needed for "int8": crops (n, size, size, 3) uint8 RGB to measure activations on, a few hundred of
        people of all ages that it may learn from, see `calibration_pictures`

    Raises ValueError for a precision that there is not, or without pictures, and ExportError.
    """
    model, path = _asked(model, path, "litert", precision, pictures)
    tf = _import("tensorflow", "tensorflow")
    network = Quantised(model).fit(pictures) if precision == "int8" else folded(model)
    with tempfile.TemporaryDirectory() as folder, _silence():
        spec = tf.TensorSpec((1, *model.input_shape[1:]), tf.float32, name="picture")  # fixed: kernels are faster so
        _save_frozen(tf, lambda picture: dict(network(picture)), spec, folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
            # Says in the file that sums in float16 will do: else a processor that could is not asked to.
            converter.target_spec._experimental_supported_accumulation_type = tf.dtypes.float16
        content = converter.convert()
    path.write_bytes(_lean(content))
    return path


def to_onnx(model, path, precision="float32", pictures=None):
    """Write an ONNX file for any number of pictures at a time. Returns its path.

    Parameters and errors as in `to_litert`. "int8" has quantise and dequantise nodes, as ONNX Runtime and OpenVINO
    read them, with ranges and corrected biases by NNCF. PReLU stays as Keras writes it, relu(x) - slope * relu(-x):
    ONNX's own PRelu is one of ONNX Runtime's slowest nodes.
    """
    model, path = _asked(model, path, "onnx", precision, pictures)
    onnx = _import("onnx", "onnx")
    _import("tf2onnx", "tf2onnx")
    with tempfile.TemporaryDirectory() as folder, _silence():
        plain = folded(model)
        plain(np.zeros((1, *model.input_shape[1:]), "float32"))  # Keras exports what has been called once
        plain.export(Path(folder) / "plain.onnx", format="onnx", verbose=False)
        graph = onnx.load(Path(folder) / "plain.onnx")
    if precision == "int8":
        graph = _by_nncf(graph, graph.graph.input[0].name, pictures)
    _shorten(graph.graph)
    onnx.checker.check_model(graph)
    onnx.save(graph, path)
    return path


def to_openvino(model, path, precision="float32", pictures=None):
    """Write OpenVINO's files: `path`, ending in .xml, and the weights in the .bin beside it. Returns `path`.

    Parameters and errors as in `to_litert`; int8 as in `to_onnx`.
    """
    model, path = _asked(model, path, "openvino", precision, pictures)
    openvino = _import("openvino", "openvino")
    with tempfile.TemporaryDirectory() as folder, _silence():
        graph = openvino.convert_model(to_onnx(model, Path(folder) / "plain.onnx"))
        if precision == "int8":
            graph = _by_nncf(graph, 0, pictures)
        openvino.save_model(graph, path, compress_to_fp16=False)
    return path


def detector(folder, form="litert"):
    """Write the three networks that find faces and their landmarks (mtcnn's, MIT licence): mtcnn_pnet and so on.

    form : "litert" (.tflite with weights in float16, for `faces` where TensorFlow is not installed), or "onnx"
    """
    from fag_utils import faces

    tf, paths = _import("tensorflow", "tensorflow"), []
    for name in ("pnet", "rnet", "onet"):
        network, side = faces.mtcnn_network(name)
        spec = tf.TensorSpec((None, side, side, 3), tf.float32, name="picture")

        def call(picture, network=network):
            return {f"output_{number}": value for number, value in enumerate(network(picture))}

        path = Path(folder) / f"mtcnn_{name}.{'tflite' if form == 'litert' else 'onnx'}"
        with tempfile.TemporaryDirectory() as scratch, _silence():
            if form == "onnx":
                _import("tf2onnx", "tf2onnx").convert.from_function(
                    tf.function(call, autograph=False), input_signature=[spec], output_path=str(path))
            else:
                _save_frozen(tf, call, spec, scratch)
                converter = tf.lite.TFLiteConverter.from_saved_model(scratch)
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
                converter.target_spec.supported_types = [tf.float16]
                path.write_bytes(converter.convert())
        paths.append(path)
    return paths


WEB_RUNTIME = ["ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"]


def web_page(folder, name="mobilefacenet_075_62", runtime=None):
    """Write a page that tells age and gender of the faces in a photograph, in the browser. Returns its folder.

    Any server of static files shows it: nothing is computed elsewhere, and nothing fetched from other places.

    folder : is made, and filled: index.html, app.js, settings.json, the int8 network and those that find faces
    runtime : folder that holds ONNX Runtime Web (`WEB_RUNTIME`); None installs the npm package onnxruntime-web,
        a download of 33 MB of which 13 MB are kept

    Raises ExportError where npm is needed and is not there.
    """
    from fag_utils import faces

    folder = Path(folder)
    (folder / "ort").mkdir(parents=True, exist_ok=True)
    for file in (Path(__file__).parent / "web").iterdir():
        shutil.copy(file, folder)
    shutil.copy(predictor.WEIGHTS / f"{name}.int8.onnx", folder / "network.onnx")
    for path in detector(folder, "onnx"):
        path.replace(folder / path.name.removeprefix("mtcnn_"))
    card = predictor.available_weights()[name]
    temperatures = {f"{head}_temperature": 1.0 for head in ("age", "decoding", "gender")}
    (folder / "settings.json").write_text(json.dumps({
        "size": runtimes.load(folder / "network.onnx").size, "min_age": labels.MIN_AGE, "frame": faces.FRAME.tolist(),
        "found": faces.FOUND.tolist(), "smallest_face": faces.SMALLEST,
        "calibration": temperatures | card.get("calibration", {}),
    }, indent=1) + "\n", encoding="utf-8")
    if any(not (folder / "ort" / file).is_file() for file in WEB_RUNTIME):
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(runtime) if runtime else _onnxruntime_web(Path(scratch))
            for file in WEB_RUNTIME:
                shutil.copy(source / file, folder / "ort")
    return folder


def _onnxruntime_web(scratch):
    """The files of the npm package, unpacked in this folder."""
    if not shutil.which("npm"):
        raise ExportError("npm is needed to fetch onnxruntime-web: install Node, or name a folder with its files")
    done = subprocess.run(["npm", "pack", "--silent", "onnxruntime-web"], cwd=scratch, capture_output=True, text=True)
    packed = list(scratch.glob("*.tgz"))
    if done.returncode or not packed:
        raise ExportError(f"npm could not fetch onnxruntime-web: {done.stderr.strip()[-200:]}")
    with tarfile.open(packed[0]) as archive:
        archive.extractall(scratch, filter="data")
    return scratch / "package" / "dist"


def profile(model, path, runs=200):
    """Layer by layer, what one picture costs at least, and what OpenVINO takes for it on one thread.

    model : the Keras network, or the name of shipped weights
    path : what `to_openvino` wrote of it
    runs : pictures; times are medians

    Returns a DataFrame, a row for each convolution and dense layer (with all that is computed along with it:
    activation, addition, rounding): layer, kind, multiply_adds, kilobytes (weights, input and output, a byte each
    in int8), floor_us, took_us, kernel. The floor is the larger of the times that the multiply-adds and the bytes
    take at the rates of `machine_rates`.
    """
    import pandas as pd

    from fag_utils import models

    openvino = _import("openvino", "openvino")
    model = folded(predictor.load_predictor(model).model if isinstance(model, str) else model)
    core = openvino.Core()
    network = core.read_model(str(path))
    network.reshape([1, *model.input_shape[1:]])
    request = core.compile_model(network, "CPU", {
        "INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "PERF_COUNT": True}).create_infer_request()
    picture = np.random.default_rng(0).integers(0, 256, (1, *model.input_shape[1:])).astype("float32")
    times, kernels = {}, {}
    for _ in range(runs):
        request.infer([picture])
        for node in request.profiling_info:
            if node.node_type.startswith(("Convolution", "GroupConvolution", "FullyConnected")):
                times.setdefault(node.node_name, []).append(node.real_time.total_seconds() * 1e6)
                kernels[node.node_name] = node.exec_type
    layers = [layer for layer in model.layers if _kind(layer) in (*CONVOLUTIONS, "Dense")]
    if len(times) != len(layers):
        raise ExportError(f"OpenVINO computes {len(times)} layers, the network has {len(layers)}: is it the same?")
    each, rates, rows = 1 if "I8" in "".join(kernels.values()).upper() else 4, machine_rates(), []
    for layer, (name, taken) in zip(layers, times.items(), strict=True):
        work = models.multiply_adds(layer)
        size = each * sum(int(np.prod(shape)) for shape in (layer.kernel.shape, layer.input.shape[1:],
                                                           layer.output.shape[1:]))
        rate = rates["multiply_adds"] * (4 if each == 1 else 1)
        rows.append({"layer": layer.name, "kind": {"Conv2D": "convolution", "DepthwiseConv2D": "depthwise",
                                                   "Dense": "dense"}[_kind(layer)],
                     "multiply_adds": work, "kilobytes": size / 1000,
                     "floor_us": 1e6 * max(work / rate, size / rates["bytes"]),
                     "took_us": float(np.median(taken)), "kernel": kernels[name]})
    return pd.DataFrame(rows)


def machine_rates(seconds=0.2):
    """What one core does in a second, measured: multiply-adds in float32 (a product of matrices), and bytes copied
    within its cache. In int8 it does four times as many of the former, by the width of its registers."""
    import time

    from threadpoolctl import threadpool_limits

    a = np.ones((512, 512), "float32")
    block = np.ones(2**17, "uint8")
    best = {}
    with threadpool_limits(1):
        for name, amount, work in (("multiply_adds", 512**3, lambda: a @ a), ("bytes", 2 * len(block), block.copy)):
            fastest, end = np.inf, time.perf_counter() + seconds
            while time.perf_counter() < end:
                start = time.perf_counter()
                work()
                fastest = min(fastest, time.perf_counter() - start)
            best[name] = amount / fastest
    return best


def calibration_pictures(table, size=62, for_each_group=16):
    """Crops to measure activations on, as many of each of the 16 age groups: (n, size, size, 3) uint8 RGB.

    table : of `datasets.read`, with ages, of one aligned set; its training fold is used
    """
    from fag_utils import faces

    table = table[(table["fold"] == "train") & table["reason"].isna() & table["age"].notna()]
    group = labels.age_group(table["age"])
    rows = [table[group == number] for number in range(len(labels.AGE_GROUPS))]
    if not any(map(len, rows)):
        raise ValueError("calibration needs pictures of the training fold, with ages")
    crops = []
    for part in rows:
        for row in part.sample(min(for_each_group, len(part)), random_state=0).itertuples():
            layout = row.set if row.set in faces.FRAMES else "utkface"
            crops.append(faces.crop_framed(faces.read_picture(row.path), layout, size))
    return np.stack(crops)


def compare(told, exact, age, male):
    """How a network does beside the exact one: a dict.

    told, exact : `Predictor.answers` of the two for the same pictures
    age : (n,) years; male : (n,) 0 or 1

    Returns mae, mae_exact (years); gender, gender_exact (shares that are right); age_change, the mean difference of
    the two ages in years; fits, the precisions of `LIMITS` whose limits it keeps.
    """
    age, male = np.asarray(age, "float64"), np.asarray(male, "float64")
    (mae, gender), (mae_exact, gender_exact) = (
        (float(np.abs(found["age"] - age).mean()),
         float(((found["male_probability"] >= 0.5) == (male == labels.MALE)).mean())) for found in (told, exact))
    fits = [precision for precision, (years, share) in LIMITS.items()
            if abs(mae - mae_exact) <= years and abs(gender - gender_exact) <= share]
    return {"mae": mae, "mae_exact": mae_exact, "gender": gender, "gender_exact": gender_exact,
            "age_change": float(np.abs(told["age"] - exact["age"]).mean()), "fits": fits}


def with_errors(times):
    """The times of `make benchmark`, and beside each what was measured elsewhere of the same file: a copy.

    times : DataFrame with format ("keras" or a key of PRECISIONS), precision, and peer, the name that another's model
        has in data/results/peers.json, missing for ours

    Returns the same rows with mae (years; ours of picture and mirror image, from data/results/11_export.csv) and
    file_kb, missing where they are not known.
    """
    ours, peers = course.published("11_export"), course.published("peers")["utkface_test"]["models"]
    known = {model["name"]: (model["mae"], model["file_kb"]) for model in peers}
    if ours is not None:
        ours = ours[ours["weights"] == "mobilefacenet_075_62"]
        known |= {(row.format, row.precision): (row.mae, row.bytes / 1000) for row in ours.itertuples()}
        size = (predictor.WEIGHTS / "mobilefacenet_075_62.keras").stat().st_size
        known["keras", "float32"] = ours["mae_exact"].iloc[0], size / 1000
    keys = [row.peer if isinstance(row.peer, str) else (row.format, row.precision) for row in times.itertuples()]
    found = np.array([known.get(key, (np.nan, np.nan)) for key in keys], float).reshape(-1, 2)
    return times.assign(mae=found[:, 0], file_kb=found[:, 1])


def _asked(model, path, form, precision, pictures):
    if precision not in PRECISIONS[form]:
        raise ValueError(f"precision must be one of {PRECISIONS[form]} for {form}, got {precision!r}")
    if isinstance(model, str):
        model = predictor.load_predictor(model).model
    shape = tuple(model.input_shape[1:])
    if precision == "int8" and (pictures is None or np.shape(pictures)[1:] != shape or not len(pictures)):
        needed = "(n, " + ", ".join(map(str, shape)) + ")"
        raise ValueError(f"int8 needs pictures {needed} to measure on: see calibration_pictures")
    return model, Path(path)


def _import(module, package):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ExportError(f"{package} is needed for this ({error}): pip install {package}") from None


@contextlib.contextmanager
def _silence():
    """Converters tell a lot, on every channel: print, log and C++."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), runtimes.quiet():
            yield
    finally:
        logging.disable(before)


def _save_frozen(tf, call, spec, folder):
    """A SavedModel of a function of a picture that returns a dict, so that the outputs keep their names.

    Keras 3's variables are made constants first: LiteRT's converter loses them in a SavedModel.
    """
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    concrete = tf.function(call, autograph=False).get_concrete_function(spec)
    frozen, heads = convert_variables_to_constants_v2(concrete), sorted(concrete.structured_outputs)
    module = tf.Module()
    serve = tf.function(lambda picture: dict(zip(heads, frozen(picture), strict=True)), autograph=False)
    module.serve = serve.get_concrete_function(spec)
    tf.saved_model.save(module, folder, signatures=module.serve)


def _by_nncf(graph, entry, pictures):
    nncf = _import("nncf", "nncf")
    _import("rich", "rich").get_console().is_jupyter = False  # else NNCF draws its progress into the notebook
    data = nncf.Dataset([picture[None].astype("float32") for picture in np.asarray(pictures)], lambda x: {entry: x})
    with _silence():
        return nncf.quantize(graph, data, preset=nncf.QuantizationPreset.MIXED, subset_size=len(pictures))


def _shorten(graph):
    """Short names inside an ONNX graph: those that converters make up are a quarter of an int8 network's file."""
    kept = {value.name for value in [*graph.input, *graph.output]}
    short = {}

    def rename(name):
        return name if name in kept or not name else short.setdefault(name, f"t{len(short)}")

    for node in graph.node:
        node.input[:] = map(rename, node.input)
        node.output[:] = map(rename, node.output)
        node.ClearField("name")
        node.ClearField("doc_string")
    for tensor in graph.initializer:
        tensor.name = rename(tensor.name)
    graph.ClearField("value_info")


def _lean(content):
    """A LiteRT file whose equal vectors are stored once: the zero points of all channels are zero, 8 bytes each."""
    import flatbuffers
    from tensorflow.lite.python import schema_py_generated as schema

    class Sharing(flatbuffers.Builder):
        known = {}

        def CreateNumpyVector(self, vector):
            key = vector.dtype.str, vector.tobytes()
            if key not in self.known:
                self.known[key] = super().CreateNumpyVector(vector)
            return self.known[key]

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(bytearray(content), 0))
    builder = Sharing(len(content))
    builder.known = {}
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def folded(model):
    """The same network with batch norm melted into the convolutions before it, and without dropout: a Keras model.

    A batch norm that is done learning is x * s + t for each channel, with s = gamma / sqrt(variance + epsilon) and
    t = beta - mean * s: so the kernel times s, and t as bias, do both at once. Nothing is rounded.
    """
    import keras
    from keras import layers

    norms = {id(layer.input): layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)}
    weights, gone = {}, (layers.BatchNormalization, layers.Dropout)

    def clone(layer):
        config = layer.get_config()
        norm = norms.get(id(layer.output))
        if isinstance(layer, gone):
            return layers.Identity(name=layer.name)
        weights[layer.name] = layer.get_weights()
        if norm is not None:
            gamma, beta, mean, variance = (np.asarray(w, "float64") for w in norm.get_weights())
            scale = gamma / np.sqrt(variance + norm.epsilon)
            kernel, *bias = layer.get_weights()
            weights[layer.name] = [_scaled(layer, kernel, scale).astype("float32"),
                                   ((sum(bias) - mean) * scale + beta).astype("float32")]
            config["use_bias"] = True
        return type(layer).from_config(config)

    def call(layer, *inputs, **_):
        return inputs[0] if isinstance(layer, layers.Identity) else layer(*inputs)

    new = keras.models.clone_model(model, clone_function=clone, call_function=call)
    for layer in new.layers:
        layer.set_weights(weights.get(layer.name, []))
    return new


def _scaled(convolution, kernel, factors):
    """A kernel with each output channel times its factor, (channels,)."""
    return kernel * factors.reshape((-1, 1) if _kind(convolution) == "DepthwiseConv2D" else (-1,))


def turned(model):
    """A folded network without slopes of PReLU above 1, the same function: changed in place, and returned.

    A channel whose slope a is above 1 is turned around, for PReLU of x is minus the PReLU of -a x with slope 1 / a.
    The factor -a goes into the convolution before it, the sign into those after it. ExportError where a neighbour is
    none.
    """
    for layer in model.layers:
        slope = layer.get_weights()[0] if _kind(layer) == "PReLU" else np.zeros(1)
        steep = slope.reshape(-1) > 1
        if not steep.any():
            continue
        before = [other for other in model.layers if other.output is layer.input]
        beside, after = ([other for other in model.layers if any(x is tensor for x in _all(other.input))]
                         for tensor in (layer.input, layer.output))
        if len(beside) > 1 or not all(_kind(other) in CONVOLUTIONS for other in before + after):
            raise ExportError(f"{layer.name}: a slope above 1 that no convolutions before and after it can take over")
        (convolution,) = before
        kernel, bias = convolution.get_weights()
        factor = np.where(steep, -slope.reshape(-1), 1)
        convolution.set_weights([_scaled(convolution, kernel, factor), bias * factor])
        layer.set_weights([np.minimum(slope, 1 / np.maximum(slope, 1))])
        for other in after:
            kernel, *bias = other.get_weights()
            other.set_weights([kernel * np.where(steep, -1, 1)[:, None], *bias])
    return model


class Quantised:
    """A network as it computes in 8-bit integers, played through in float: to choose ranges and to see errors.

    Every activation up to the embedding is rounded to one of 256 values of its range, every kernel, for each output
    channel, to one of 255 (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference"). The heads stay in float: they are 0.04 % of the work, and probabilities in
    steps of 1/256 would spoil an expected age.

    PReLU is computed as max(x, alpha x), the same as long as no alpha is above 1 (see `turned`): LiteRT has fast
    integer kernels for a product and a maximum, and none for PReLU.

    model : Keras model; folded here
    """

    def __init__(self, model):
        self.model = turned(folded(model))
        self.layers = self.model.layers
        names = [layer.name for layer in self.layers]
        if "embedding" not in names:
            raise ExportError('the network has no layer "embedding", where integers end and heads begin')
        self.body = names[: names.index("embedding") + 1]
        self.ranges, self.kernels, self.biases, self.slopes, self.report = {}, {}, {}, {}, []
        for layer in self.layers:
            if layer.name not in self.body:
                continue
            if _kind(layer) == "PReLU":
                self.slopes[layer.name] = layer.get_weights()[0][None]
            if _kind(layer) in CONVOLUTIONS:
                self.kernels[layer.name], self.biases[layer.name] = (np.array(w) for w in layer.get_weights())
                if _kind(self._before(layer)) == "Rescaling":  # from RGB - 127.5 to RGB - 128, a whole number
                    scale, offset = self._before(layer).scale, self._before(layer).offset
                    self.biases[layer.name] = layer.get_weights()[1] + (
                        (128 * scale + offset) * layer.get_weights()[0].sum(axis=(0, 1, 2)))

    def _before(self, layer):
        return next(other for other in self.layers if other.output is layer.input)

    def fit(self, pictures):
        """Choose the ranges and correct the biases on crops (n, size, size, 3) uint8 RGB. Returns self.

        Layer by layer, the exact network beside the rounded one. A range is where the squared error is least, not
        where the largest value lies: one outlier would cost all others their digits. What rounding shifts a
        channel by on the average is taken from its bias (Nagel et al. 2019, "Data-Free Quantization Through
        Weight Equalization and Bias Correction").
        """
        import tensorflow as tf

        pictures = tf.cast(np.asarray(pictures), tf.float32)
        exact, rounded = {}, {}
        for layer in self.layers:
            if layer.name not in self.body:
                break
            before = _all(layer.input)
            exact_inputs = [exact[id(x)] for x in before]
            exact_output = pictures if not before or layer.output is before[0] else layer(
                exact_inputs if len(before) > 1 else exact_inputs[0])
            if _kind(layer) == "InputLayer":
                output = pictures - 128
            else:
                inputs = [rounded[id(x)] for x in before]
                if layer.name in self.kernels:
                    shift = tf.reduce_mean(exact_output - self._linear(layer, inputs[0]), axis=(0, 1, 2)).numpy()
                    self.biases[layer.name] = self.biases[layer.name] + shift
                if self._is_rounded(layer):
                    self.ranges[layer.name] = self._best_range(layer, inputs, exact_output)
                output = self._apply(layer, inputs)
            exact[id(layer.output)], rounded[id(layer.output)] = exact_output, output
            if self._is_rounded(layer):
                self._note(layer, exact_output, output)
            for x in before:  # a tensor is kept while a later layer needs it
                if not any(x is y for later in self._after(layer) for y in _all(later.input)):
                    exact.pop(id(x), None), rounded.pop(id(x), None)
        return self

    def _after(self, layer):
        return self.layers[self.layers.index(layer) + 1 :]

    def _is_rounded(self, layer):
        """Whether the output of a layer is stored: that of a convolution before a PReLU is part of the latter."""
        if layer.name in self.kernels:
            return not any(_kind(other) == "PReLU" and other.input is layer.output for other in self.layers)
        return _kind(layer) in ("PReLU", "Add")

    def _linear(self, layer, x):
        """A convolution with its kernel rounded for each channel, its bias exact (it has 32 bits)."""
        import tensorflow as tf

        depth = _kind(layer) == "DepthwiseConv2D"
        kernel = rounded_kernel(self.kernels[layer.name], depth)
        convolve = tf.nn.depthwise_conv2d if depth else tf.nn.conv2d
        y = convolve(x, kernel, (1, *layer.strides, 1), layer.padding.upper())
        return tf.nn.bias_add(y, np.asarray(self.biases[layer.name], "float32"))

    def _apply(self, layer, inputs):
        y = self._sum(layer, inputs)
        return self._round(layer, y, self.ranges[layer.name]) if layer.name in self.ranges else y

    def _sum(self, layer, inputs):
        """What a layer computes before its output is rounded."""
        import tensorflow as tf

        if layer.name in self.kernels:
            return self._linear(layer, inputs[0])
        if _kind(layer) == "PReLU":
            return inputs[0]
        if _kind(layer) == "Add":
            return inputs[0] + inputs[1]
        if _kind(layer) == "Rescaling":  # RGB - 128 in steps of one
            return tf.quantization.fake_quant_with_min_max_args(inputs[0] * layer.scale, -1.0, 127 / 128)
        if _kind(layer) == "Flatten":
            return tf.reshape(inputs[0], (-1, int(np.prod(inputs[0].shape[1:]))))
        raise ExportError(f"{layer.name}: integers for a {_kind(layer)} are not known here")

    def _round(self, layer, y, limits):
        import tensorflow as tf

        def rounding(x):
            return tf.quantization.fake_quant_with_min_max_args(x, *limits)

        if _kind(layer) != "PReLU":
            return rounding(y)
        y = rounding(y)
        return rounding(tf.maximum(y, rounding(y * self.slopes[layer.name])))

    def _best_range(self, layer, inputs, wanted):
        import tensorflow as tf

        y = self._sum(layer, inputs)
        low, high = float(tf.reduce_min(y)), float(tf.reduce_max(y))
        some = slice(None, None, max(1, len(y) // 32))
        y, wanted = y[some], wanted[some]
        best = None
        for a in (1.0, 0.85, 0.7, 0.55, 0.4):
            for b in (1.0, 0.9, 0.8, 0.7, 0.6):
                limits = _whole_steps(min(low * a, -1e-3), max(high * b, 1e-3))
                error = float(tf.reduce_mean(tf.math.squared_difference(self._round(layer, y, limits), wanted)))
                if best is None or error < best[0]:
                    best = error, limits
        return best[1]

    def _note(self, layer, exact, rounded):
        import tensorflow as tf

        noise = float(tf.reduce_mean((exact - rounded) ** 2))
        low, high = self.ranges[layer.name]
        self.report.append({
            "layer": layer.name, "smallest": float(tf.reduce_min(exact)), "largest": float(tf.reduce_max(exact)),
            "low": low, "high": high, "step": (high - low) / 255, "error": noise**0.5,
            "signal_to_noise_db": float(10 * np.log10(float(tf.math.reduce_variance(exact)) / max(noise, 1e-20))),
        })

    def __call__(self, pictures):
        """Outputs for crops (n, size, size, 3) of RGB 0..255, as the integers would compute them."""
        import tensorflow as tf

        values = {}
        for layer in self.layers:
            inputs = [values[id(x)] for x in _all(layer.input)]
            if _kind(layer) == "InputLayer":
                value = tf.cast(pictures, tf.float32) - 128
            elif layer.name in self.body:
                value = self._apply(layer, inputs)
            else:
                value = layer(inputs if len(inputs) > 1 else inputs[0])
            values[id(layer.output)] = value
        return {head: values[id(output)] for head, output in self.model.output.items()}


def rounded_kernel(kernel, depthwise=False):
    """A kernel (h, w, in, out), or depthwise (h, w, channels, 1), with 255 values for each output channel."""
    kernel = np.asarray(kernel, "float64")
    most = np.abs(kernel).max(axis=(0, 1, 3) if depthwise else (0, 1, 2), keepdims=True)
    step = np.maximum(most, 1e-6) / 127
    return (np.round(kernel / step) * step).astype("float32")


def _kind(layer):
    return type(layer).__name__


def _all(tensors):
    return list(tensors) if isinstance(tensors, (list, tuple)) else [tensors]


def _whole_steps(low, high):
    """A range moved so that 0 is one of its 256 values, as padding needs it."""
    step = (high - low) / 255
    zero = np.clip(np.round(-low / step), 0, 255)
    return float(-zero * step), float((255 - zero) * step)
