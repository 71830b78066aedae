"""What computes a network: Keras, LiteRT, ONNX Runtime or OpenVINO, all called in one way.

A network is called with pictures (n, height, width, 3) uint8 RGB and returns {head: (n, classes) float32}, the bare
probabilities. What they mean (mirror image, temperatures, expected age, intervals) is `Predictor`'s matter, the same
for all. A runtime is imported when it is used: with LiteRT alone, TensorFlow need not be installed.
"""

import os
import time
from pathlib import Path

import numpy as np

WEIGHTS = Path(__file__).parent / "weights"
BATCH = 64
# Where `export` writes the network for a runtime, and what to install for it.
FILES = {"litert": ("tflite", "ai-edge-litert"), "onnx": ("onnx", "onnxruntime"), "openvino": ("xml", "openvino")}


class RuntimeMissing(ImportError):
    """A runtime that is not installed; the text names the package."""


def load(path, threads=None):
    """A network from its file: .keras (Keras), .tflite (LiteRT), .onnx (ONNX Runtime) or .xml (OpenVINO).

    threads : how many a prediction may use; None leaves it to the runtime

    Raises FileNotFoundError, ValueError for another ending, and RuntimeMissing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path.name!r} in {str(path.parent)!r}: see fag_utils.export")
    if path.suffix == ".keras":
        try:
            import keras
        except ImportError:
            raise RuntimeMissing("Keras or TensorFlow is not installed: load_predictor(runtime='litert') does "
                                 "without them, or pip install keras tensorflow") from None
        return Keras(keras.saving.load_model(path, compile=False))
    kinds = {".tflite": Litert, ".onnx": Onnx, ".xml": OpenVino}
    if path.suffix not in kinds:
        raise ValueError(f"a network's file ends in .keras, {', '.join(kinds)}, not as {path.name!r} does")
    if path.suffix == ".tflite" and LitertFloat16.ALLOWED in path.read_bytes():
        try:
            return LitertFloat16(path, threads)
        except (ImportError, TypeError):  # an older LiteRT: then in float32
            pass
    return kinds[path.suffix](path, threads)


def wrap(model):
    """A network as it is, or one around a Keras model."""
    return model if isinstance(model, Network) else Keras(model)


class Network:
    """What all runtimes have in common.

    shape : (height, width) of the pictures in pixels
    size : their width
    heads : {name: number of classes}
    """

    shape: tuple
    heads: dict

    @property
    def size(self):
        return self.shape[1]

    def __call__(self, pictures):
        """{head: (n, classes) float32} of pictures (n, height, width, 3) uint8 RGB."""
        pictures = np.asarray(pictures, "float32")
        parts = [self.run(pictures[start : start + BATCH]) for start in range(0, len(pictures), BATCH)]
        return {head: np.concatenate([np.zeros((0, classes), "float32"), *(part[head] for part in parts)])
                for head, classes in self.heads.items()}

    def run(self, batch):
        """{head: probabilities} of 1 to BATCH pictures, float32, 0..255."""
        raise NotImplementedError

    def milliseconds(self, times=100):
        """How long one picture takes: the shortest of so many, for what else the machine does only adds to it."""
        picture, taken = np.full((1, *self.shape, 3), 127, "float32"), []
        for _ in range(times):
            start = time.perf_counter()
            self.run(picture)
            taken.append(1000 * (time.perf_counter() - start))
        return min(taken)


class Keras(Network):
    def __init__(self, model):
        self.model = model
        self.shape = tuple(model.input_shape[1:3])
        self.heads = {head: output.shape[1] for head, output in model.output.items()}
        self._function = None

    def run(self, batch):
        import tensorflow as tf

        if self._function is None:
            spec = tf.TensorSpec((None, *self.shape, 3), tf.float32)
            self._function = tf.function(lambda x: self.model(x, training=False), input_signature=[spec])
        return {head: value.numpy() for head, value in self._function(tf.constant(batch)).items()}


class Litert(Network):
    """A picture at a time: the shapes in the file are fixed, as the fast kernels want them."""

    def __init__(self, path, threads=None):
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:
            raise _missing("litert") from None
        with quiet():
            self._interpreter = Interpreter(str(path), num_threads=threads or os.cpu_count())
            self._interpreter.allocate_tensors()
        signature = self._interpreter.get_signature_runner()
        (entry,) = signature.get_input_details().values()
        outputs = signature.get_output_details()
        self.shape = tuple(int(side) for side in entry["shape"][1:3])
        self.heads = {head: int(detail["shape"][1]) for head, detail in sorted(outputs.items())}
        self._entry, self._outputs = entry["index"], {head: outputs[head]["index"] for head in self.heads}

    def run(self, batch):
        answers = {head: [] for head in self.heads}
        for start in range(len(batch)):
            self._interpreter.set_tensor(self._entry, batch[start : start + 1])
            self._interpreter.invoke()
            for head, index in self._outputs.items():
                answers[head].append(self._interpreter.get_tensor(index))
        return {head: np.concatenate(parts) for head, parts in answers.items()}


class LitertFloat16(Network):
    """A file that allows for sums in float16, computed so: half the time, where the processor has such arithmetic.

    LiteRT's older interface, the one above, doesn't ask the processor for it.
    """

    ALLOWED = b"reduced_precision_support"  # what such a file says of itself
    FORCED = 4  # XNNPACK's flag

    def __init__(self, path, threads=None):
        from ai_edge_litert.compiled_model import CompiledModel
        from ai_edge_litert.cpu_options import CpuOptions
        from ai_edge_litert.hardware_accelerator import HardwareAccelerator
        from ai_edge_litert.options import Options

        settings = CpuOptions(num_threads=threads or os.cpu_count(), xnnpack_flags=self.FORCED)
        with quiet():  # of the accelerators that are not there
            self._model = CompiledModel.from_file(str(path), options=Options(
                hardware_accelerators=HardwareAccelerator.CPU, cpu_options=settings))
            self._entry, self._exits = self._model.create_input_buffers(0), self._model.create_output_buffers(0)
        ((name, signature),) = self._model.get_signature_list().items()
        details = self._model.get_output_tensor_details(name)
        (entry,) = self._model.get_input_tensor_details(name).values()
        self.shape = tuple(int(side) for side in entry["shape"][1:3])
        self.heads = {head: int(details[head]["shape"][1]) for head in signature["outputs"]}
        with quiet():  # the rest of what it has to say comes with the first picture
            self.run(np.zeros((1, *self.shape, 3), "float32"))

    def run(self, batch):
        answers = {head: np.empty((len(batch), classes), "float32") for head, classes in self.heads.items()}
        for row in range(len(batch)):
            self._entry[0].write(np.ascontiguousarray(batch[row : row + 1]))
            self._model.run_by_index(0, self._entry, self._exits)
            for buffer, (head, classes) in zip(self._exits, self.heads.items(), strict=True):
                answers[head][row] = buffer.read(classes, np.float32)
        return answers


def function(path):
    """Any other network of a LiteRT file: pictures (n, height, width, 3) -> list of arrays, in the file's order."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise _missing("litert") from None
    with quiet():
        interpreter = Interpreter(str(path), num_threads=os.cpu_count())
    entry = interpreter.get_input_details()[0]["index"]
    outputs = interpreter.get_signature_runner().get_output_details()
    shapes = []

    def call(pictures):
        pictures = np.asarray(pictures, "float32")
        if shapes != [pictures.shape]:
            shapes[:] = [pictures.shape]
            interpreter.resize_tensor_input(entry, pictures.shape)
            with quiet():
                interpreter.allocate_tensors()
        interpreter.set_tensor(entry, pictures)
        interpreter.invoke()
        return [interpreter.get_tensor(outputs[name]["index"]) for name in sorted(outputs)]

    return call


class Onnx(Network):
    def __init__(self, path, threads=None):
        try:
            import onnxruntime
        except ImportError:
            raise _missing("onnx") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads or 0, 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        (entry,) = self._session.get_inputs()
        self._entry, self.shape = entry.name, tuple(entry.shape[1:3])
        self.heads = {output.name: output.shape[1] for output in self._session.get_outputs()}

    def run(self, batch):
        return dict(zip(self.heads, self._session.run(list(self.heads), {self._entry: batch}), strict=True))


class OpenVino(Network):
    def __init__(self, path, threads=None):
        try:
            import openvino
        except ImportError:
            raise _missing("openvino") from None
        core = openvino.Core()
        model = core.read_model(str(path))
        settings = {"PERFORMANCE_HINT": "LATENCY"} | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
        self.shape = tuple(model.input().partial_shape[axis].get_length() for axis in (1, 2))
        self.heads = {output.get_any_name(): output.partial_shape[1].get_length() for output in model.outputs}
        self._order = [output.get_any_name() for output in model.outputs]
        self._compiled, self._core, self._model, self._settings = {}, core, model, settings

    def request(self, n):
        """A request for n pictures: compiled for this number, which makes it faster."""
        if n not in self._compiled:
            self._model.reshape([n, *self.shape, 3])
            compiled = self._core.compile_model(self._model, "CPU", self._settings)
            self._compiled = {n: compiled.create_infer_request()}  # one at a time: each takes memory
        return self._compiled[n]

    def run(self, batch):
        outputs = self.request(len(batch)).infer([np.ascontiguousarray(batch)])
        return {head: np.array(outputs[number]) for number, head in enumerate(self._order)}


def _missing(runtime):
    package = FILES[runtime][1]
    return RuntimeMissing(f"the runtime {runtime!r} is not installed: pip install {package}")


class quiet:
    """Nothing on the error channel meanwhile: what libraries written in C++ say of themselves."""

    def __enter__(self):
        self.kept = os.dup(2)
        self.closed = os.open(os.devnull, os.O_WRONLY)
        os.dup2(self.closed, 2)

    def __exit__(self, *_):
        os.dup2(self.kept, 2)
        os.close(self.kept)
        os.close(self.closed)
