"""A faster training step for long runs on a CPU: the layers of a Keras model, computed by PyTorch.

The network, its weights, the batches and the recipe are the same; only what computes a step differs. Three
things make it several times as fast as TensorFlow's: 1x1 convolutions in bfloat16, for which newer processors
have matrix units; batch norm, activation and residual in two passes over memory instead of a dozen
(`fast.cpp`); and a depthwise gradient without the slow path that stride 2 takes elsewhere.
Weights, sums, heads and losses stay in float32, as in mixed-precision training (Micikevicius et al. 2018).

Needs PyTorch and a C++ compiler: `available()` tells. All else in the course does without.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ["-O3", "-march=native", "-ffast-math", "-fno-finite-math-only", "-fPIC", "-fopenmp", "-Wno-psabi"]
KINDS = {"PReLU": 1, "ReLU": 2, "open ReLU": 3}  # what follows batch norm; ReLU is the one that ends at 6


def available():
    """True where PyTorch and a C++ compiler are installed."""
    import importlib.util

    return importlib.util.find_spec("torch") is not None and shutil.which("c++") is not None


@functools.cache
def kernels():
    """The compiled `fast.cpp`; compiled once for each version of it. RuntimeError when that fails."""
    import torch  # noqa: F401  its OpenMP is the one the kernels use: hence no -fopenmp when linking

    key = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fag_utils"
    library = folder / f"fast-{key}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            parts = [f"{scratch}/fast.o", f"{scratch}/fast.so"]
            for command in (["c++", *FLAGS, "-c", str(SOURCE), "-o", parts[0]],
                            ["c++", "-shared", parts[0], "-o", parts[1]]):
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
            os.replace(parts[1], library)
    return ctypes.CDLL(str(library))


def _pointer(tensor):
    return ctypes.c_void_p(tensor.data_ptr() if tensor is not None else None)


def _last(x):
    """The tensor (n, c, h, w) with its channels last in memory."""
    import torch

    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x.contiguous()


def _kernel(name, x):
    return getattr(kernels(), f"{name}_{str(x.dtype).removeprefix('torch.')}")


@functools.cache
def _functions():
    """The two differentiable operations, made when PyTorch is first needed."""
    import torch

    class Norm(torch.autograd.Function):
        """Batch norm, activation, and a residual added: -> output, mean, variance.

        moments : (mean, variance) to use; None: those of the batch
        """

        @staticmethod
        def forward(ctx, x, residual, gamma, beta, alpha, kind, epsilon, moments=None):
            x = _last(x)
            residual = None if residual is None else _last(residual.to(x.dtype))
            c = x.shape[1]
            y, (mean, inverse, variance) = torch.empty_like(x), torch.empty(3, c)
            if moments is not None:
                mean.copy_(moments[0])
                variance.copy_(moments[1])
            slope = None if alpha is None else alpha.reshape(-1)
            _kernel("norm_forward", x)(
                _pointer(x), _pointer(residual), _pointer(y), ctypes.c_long(x.numel() // c), ctypes.c_long(c),
                _pointer(gamma), _pointer(beta), _pointer(slope), kind, ctypes.c_float(epsilon), int(moments is None),
                _pointer(mean), _pointer(inverse), _pointer(variance))
            ctx.save_for_backward(x, gamma, beta, alpha, mean, inverse)
            ctx.kind, ctx.residual = kind, residual is not None
            ctx.mark_non_differentiable(mean, variance)
            return y, mean, variance

        @staticmethod
        def backward(ctx, dy, *_):
            x, gamma, beta, alpha, mean, inverse = ctx.saved_tensors
            dy, c = _last(dy.to(x.dtype)), x.shape[1]
            dx, dgamma, dbeta = torch.empty_like(x), torch.empty_like(gamma), torch.empty_like(beta)
            slope = None if alpha is None else alpha.reshape(-1)
            dalpha = None if alpha is None else torch.empty_like(slope)
            _kernel("norm_backward", x)(
                _pointer(x), _pointer(dy), _pointer(dx), ctypes.c_long(x.numel() // c), ctypes.c_long(c),
                _pointer(gamma), _pointer(beta), _pointer(slope), ctx.kind, _pointer(mean), _pointer(inverse),
                _pointer(dgamma), _pointer(dbeta), _pointer(dalpha))
            if alpha is not None:
                dalpha = dalpha.reshape(alpha.shape)
            return dx, dy if ctx.residual else None, dgamma, dbeta, dalpha, None, None, None

    class Depthwise(torch.autograd.Function):
        """Depthwise convolution: x (n, c, h, w), kernel (k, k, c, 1) float32, pads ((top, bottom), ...)."""

        @staticmethod
        def forward(ctx, x, kernel, stride, pads):
            x = _last(x)
            n, c, h, w = x.shape
            k = kernel.shape[0]
            out = [(side + sum(pad) - k) // stride + 1 for side, pad in zip((h, w), pads, strict=True)]
            y = torch.empty((n, c, *out), dtype=x.dtype, memory_format=torch.channels_last)
            ctx.numbers = (ctypes.c_long * 10)(n, h, w, *out, c, k, stride, pads[0][0], pads[1][0])
            _kernel("depthwise", x)(_pointer(x), _pointer(kernel), _pointer(y), ctx.numbers)
            ctx.save_for_backward(x, kernel)
            return y

        @staticmethod
        def backward(ctx, dy):
            x, kernel = ctx.saved_tensors
            dy, dx, dkernel = _last(dy), torch.empty_like(x), torch.empty_like(kernel)
            _kernel("depthwise_input", dy)(_pointer(dy), _pointer(kernel), _pointer(dx), ctx.numbers)
            _kernel("depthwise_kernel", dy)(_pointer(x), _pointer(dy), _pointer(dkernel), ctx.numbers)
            return dx, dkernel, None, None

    return Norm.apply, Depthwise.apply


def same_padding(size, kernel, stride):
    """Keras' padding "same" of one side: (before, after). An odd pixel is put after."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class FastModel:
    """A Keras model whose layers PyTorch computes, with its own copy of the weights.

    Understands the layers of the course's networks: Rescaling, Conv2D (plain or with ReLU), DepthwiseConv2D (square
    kernels, no dilation), BatchNormalization, PReLU, ReLU or ReLU(6) right after it, ReLU elsewhere, sigmoid, Add,
    Multiply, Concatenate of channels, Flatten, GlobalAveragePooling2D, Dropout, Dense, Cosine, Softmax of one,
    Resizing, ZeroPadding2D, pooling (of averages without padding), and GilNet's LocalResponseNormalization.
    ValueError for any other.

    mixed : bfloat16 between the layers; None: where the processor is fast at it
    """

    def __init__(self, model, mixed=None):
        import keras
        import torch

        if mixed is None:
            mixed = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        self.dtype = torch.bfloat16 if mixed else torch.float32
        self.model = model
        self.outputs = {name: self._logits(output) for name, output in model.output.items()}
        self.values = {v.path: torch.tensor(keras.ops.convert_to_numpy(v)) for v in model.weights}
        self.trainable = [self.values[v.path].requires_grad_() for v in model.trainable_weights]
        self.decayed = [self.values[v.path] for v in model.trainable_weights
                        if not any(word in v.path for word in ("bias", "gamma", "beta", "alpha"))]
        self.program = list(self._read())
        self.unread = self._unread()
        self.momentum = None  # of the running statistics; None: each layer's own

    # --- weights ---

    def set_weights(self, arrays):
        """Take the weights of `model.get_weights()`."""
        import torch

        with torch.no_grad():
            for tensor, array in zip(self.values.values(), arrays, strict=True):
                tensor.copy_(torch.tensor(np.asarray(array)))

    def get_weights(self):
        """Weights as `model.set_weights` takes them."""
        return [tensor.detach().numpy().copy() for tensor in self.values.values()]

    def _weights(self, layer):
        return {v.name: self.values[v.path] for v in layer.weights}

    @staticmethod
    def _logits(output):
        """A head's tensor before its softmax: a layer of its own, or the activation of Dense, which we leave away."""
        layer = output._keras_history.operation
        return layer.input if type(layer).__name__ == "Softmax" else output

    # --- layers ---

    def _read(self):
        """What to compute in which order: (step, layers, inputs, output), with batch norm's followers joined."""
        layers = self.model.layers
        users = {}
        for layer in layers:
            for x in self._inputs(layer):
                users.setdefault(id(x), []).append(layer)
        joined, known = set(), {id(self.model.input)}
        for layer in layers:
            name, inputs, output = type(layer).__name__, [id(x) for x in self._inputs(layer)], layer.output
            if layer in joined or name == "InputLayer":
                continue
            step = getattr(self, f"_{name.lower()}", None)
            if step is None or ("AveragePooling" in name and getattr(layer, "padding", "valid") != "valid") or (
                    name == "Activation" and layer.activation.__name__ != "sigmoid"):
                raise ValueError(f"the fast step doesn't know the layer {layer.name} ({name}): train it with Keras")
            if name.endswith("BatchNormalization") and output.shape[-1] % 8:
                channels = output.shape[-1]
                raise ValueError(f"the fast step computes 8 channels at once, and {layer.name} has {channels}")
            together = [layer]
            if name.endswith("BatchNormalization"):
                follower = users.get(id(output), [])
                if len(follower) == 1 and self._joins(follower[0]):
                    together += follower
                    output = follower[0].output
                elif len(follower) == 1 and type(follower[0]).__name__ == "Add":
                    others = [id(x) for x in self._inputs(follower[0]) if x is not output]
                    if known.issuperset(others):  # of two batch norms that are added, the second does it
                        inputs += others
                        together += follower
                        output = follower[0].output
                joined.update(together)
            known.add(id(output))
            yield step, together, inputs, id(output)

    def _unread(self):
        """For each step, the tensors that no later one reads: all layers together fill many times the memory."""
        read, unread = {id(output) for output in self.outputs.values()}, []
        for *_, inputs, _ in reversed(self.program):
            unread.append(set(inputs) - read)
            read.update(inputs)
        return unread[::-1]

    @staticmethod
    def _joins(layer):
        kind = type(layer).__name__
        return kind == "PReLU" or (kind == "ReLU" and layer.max_value in (None, 6))

    @staticmethod
    def _inputs(layer):
        inputs = getattr(layer, "input", []) if type(layer).__name__ != "InputLayer" else []
        return inputs if isinstance(inputs, list) else [inputs]

    def __call__(self, pictures, training=False):
        """Logits of each head, float32, for pictures (n, h, w, 3) float32 0..255."""
        import torch

        self.training = training
        x = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2)
        # Not the model's own `input`: where a model was made around another one, it is a second name for the same.
        tensors = {id(layer.output): x for layer in self.model.layers if type(layer).__name__ == "InputLayer"}
        for (step, layers, inputs, output), unread in zip(self.program, self.unread, strict=True):
            tensors[output] = step(layers, *(tensors[i] for i in inputs))
            for i in unread:
                del tensors[i]
        return {name: tensors[id(output)] for name, output in self.outputs.items()}

    def probabilities(self, pictures):
        """Answers of a trained network, as arrays: dict head -> (n, classes)."""
        import torch

        with torch.no_grad():
            logits = self(pictures)
            return {name: torch.softmax(value, dim=1).numpy() for name, value in logits.items()}

    def features(self, pictures):
        """Outputs as they are, for a network without a softmax at its end: dict of float32 arrays."""
        import torch

        with torch.no_grad():
            return {name: value.float().numpy() for name, value in self(pictures).items()}

    def _rescaling(self, layers, x):
        import torch

        scale, offset = (torch.as_tensor(v, dtype=torch.float32).reshape(-1, 1, 1)
                         for v in (layers[0].scale, layers[0].offset))
        return (x * scale + offset).to(self.dtype)

    def _resizing(self, layers, x):
        from torch.nn import functional as F

        return F.interpolate(x, (layers[0].height, layers[0].width), mode="bilinear", align_corners=False)

    def _relu(self, layers, x):
        from torch.nn import functional as F

        most = layers[0].max_value  # at the ends themselves the gradient is nothing, as in TensorFlow; clamp's is one
        return F.relu(x) if most is None else F.hardtanh(x, 0.0, float(most))

    def _localresponsenormalization(self, layers, x):
        from torch.nn import functional as F

        return F.local_response_norm(x.float(), layers[0].depth, layers[0].alpha, layers[0].beta).to(x.dtype)

    def _maxpooling2d(self, layers, x):
        from torch.nn import functional as F

        layer = layers[0]
        if layer.padding == "same":  # what lies beside the map must never be the largest
            sides = zip(x.shape[2:], layer.pool_size, layer.strides, strict=True)
            rows, columns = (same_padding(*side) for side in sides)
            x = F.pad(x, (*columns, *rows), value=float("-inf"))
        return F.max_pool2d(x, layer.pool_size, layer.strides)

    def _averagepooling2d(self, layers, x):
        from torch.nn import functional as F

        return F.avg_pool2d(x, layers[0].pool_size, layers[0].strides)

    def _zeropadding2d(self, layers, x):
        from torch.nn import functional as F

        rows, columns = layers[0].padding
        return F.pad(x, (*columns, *rows))

    def _conv2d(self, layers, x):
        from torch.nn import functional as F

        layer, kernel = layers[0], self._weights(layers[0])["kernel"]
        stride, (h, w), k = layer.strides[0], x.shape[2:], kernel.shape[0]
        bias = self._weights(layer).get("bias")
        relu = F.relu if layer.activation.__name__ == "relu" else lambda y: y
        if (h, w, k) == (1, 1, 1):  # of one pixel: a matrix product, small enough for float32
            return relu(F.linear(x.flatten(1).float(), kernel[0, 0].T, bias)[:, :, None, None])
        pads = [same_padding(side, k, stride) if layer.padding == "same" else (0, 0) for side in (h, w)]
        even = [before for before, after in pads if before == after]
        if len(even) < 2:
            x, even = F.pad(x, (*pads[1], *pads[0])), 0
        bias = None if bias is None else bias.to(x.dtype)
        return relu(F.conv2d(x, kernel.permute(3, 2, 0, 1).to(x.dtype), bias, stride, even, groups=layer.groups))

    def _depthwiseconv2d(self, layers, x):
        layer, kernel = layers[0], self._weights(layers[0])["kernel"]
        (h, w), k, stride = x.shape[2:], kernel.shape[0], layer.strides[0]
        whole = layer.padding == "valid" and (h, w) == tuple(kernel.shape[:2])
        if whole and not layer.use_bias:  # GDConv: one output
            return (x.float() * kernel.permute(3, 2, 0, 1)).sum((2, 3), keepdim=True)
        pads = tuple(same_padding(side, k, stride) if layer.padding == "same" else (0, 0) for side in (h, w))
        y, bias = _functions()[1](x, kernel, stride, pads), self._weights(layer).get("bias")
        return y if bias is None else y + bias.to(y.dtype).reshape(-1, 1, 1)

    def _batchnormalization(self, layers, x, residual=None):
        layer, w = layers[0], self._weights(layers[0])
        follower = type(layers[-1]).__name__ if len(layers) > 1 else "linear"
        open_end = follower == "ReLU" and layers[-1].max_value is None
        kind = KINDS.get("open ReLU" if open_end else follower, 0)
        alpha = self._weights(layers[-1])["alpha"] if follower == "PReLU" else None
        learning = self.training and layer.trainable  # a frozen one keeps to its statistics
        if self.training and not learning and x.requires_grad:
            raise ValueError(f"the fast step can't learn through the frozen {layer.name}: train it with Keras")
        moments = None if learning else (w["moving_mean"], w["moving_variance"])
        y, mean, variance = _functions()[0](
            x, residual, w["gamma"], w["beta"], alpha, kind, layer.epsilon, moments)
        if learning:
            momentum = layer.momentum if self.momentum is None else self.momentum
            w["moving_mean"].lerp_(mean, 1 - momentum)
            w["moving_variance"].lerp_(variance, 1 - momentum)
        return y

    _fusedbatchnormalization = _batchnormalization

    def _activation(self, layers, x):
        return x.sigmoid()

    def _add(self, layers, x, y):
        return x + y

    def _multiply(self, layers, x, y):
        return x * y

    def _concatenate(self, layers, *parts):
        import torch

        return torch.cat(parts, dim=1)

    def _softmax(self, layers, x):
        return x.float().softmax(dim=1)

    def _flatten(self, layers, x):
        return x.permute(0, 2, 3, 1).flatten(1)

    def _globalaveragepooling2d(self, layers, x):
        return x.float().mean((2, 3))

    def _dropout(self, layers, x):
        from torch.nn import functional as F

        return F.dropout(x, layers[0].rate, self.training)

    def _dense(self, layers, x):
        from torch.nn import functional as F

        w = self._weights(layers[0])
        return F.linear(x.float(), w["kernel"].T, w.get("bias"))

    def _cosine(self, layers, x):
        from torch.nn import functional as F

        return F.normalize(x.float(), dim=1) @ F.normalize(self._weights(layers[0])["kernel"], dim=0)


class FastEngine:
    """Trains as `training.KerasEngine` does, with the layers of a `FastModel`."""

    # No batches ahead: a step shares its work evenly between the cores, and waits for the one that is disturbed.
    suffix, ahead = ".pt", 0

    def __init__(self, model, recipe, steps, steps_per_epoch):
        import torch

        from fag_utils import training

        self.net, self.recipe, self.step = FastModel(model), recipe, 0
        # Long runs can afford a long memory: with 0.9, as short runs need, the statistics are noisy.
        self.net.momentum = max(0.9, 1 - 10 / max(1, steps))
        rate = training.learning_rate(recipe, steps, steps_per_epoch)
        self.rate = (lambda step: float(rate(step))) if callable(rate) else lambda step: rate
        if recipe.optimizer == "adamw":
            decayed = {id(v) for v in self.net.decayed}
            groups = [{"params": self.net.decayed, "weight_decay": training.WEIGHT_DECAY},
                      {"params": [v for v in self.net.trainable if id(v) not in decayed], "weight_decay": 0.0}]
            self.optimizer = torch.optim.AdamW(groups, lr=0.0, eps=1e-7, fused=True)
        else:
            self.optimizer = torch.optim.Adam(self.net.trainable, lr=0.0, eps=1e-7, fused=True)
        self.average = [v.detach().clone() for v in self.net.trainable] if recipe.average else None
        self.momentum = training.average_momentum(steps)
        self.clip = training.CLIP if recipe.optimizer == "adamw" else None

    def save(self, path):
        import torch

        torch.save({"values": self.net.values, "average": self.average, "step": self.step,
                    "optimizer": self.optimizer.state_dict()}, path)

    def load(self, path):
        import torch

        state = torch.load(path, weights_only=True)
        with torch.no_grad():
            for name, value in self.net.values.items():
                value.copy_(state["values"][name])
        self.average, self.step = state["average"], state["step"]
        self.optimizer.load_state_dict(state["optimizer"])

    def epoch(self, data, steps, seed, on_step):
        """Learn from the batches of one epoch, `steps` of them; -> dict of its loss and metrics."""
        import torch

        torch.manual_seed(1000 * seed[0] + seed[1])
        sums = {}
        for pictures, targets, weights in data:
            outputs = self.net(pictures, training=True)
            loss, measures = self._losses(outputs, targets, weights)
            self.optimizer.zero_grad()
            loss.backward()
            if self.clip:
                torch.nn.utils.clip_grad_norm_(self.net.trainable, self.clip)
            rate = self.rate(self.step)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self.step += 1
            if self.average:
                torch._foreach_lerp_(self.average, [v.detach() for v in self.net.trainable], 1 - self.momentum)
            for name, (value, weight) in {"loss": (loss.item(), 1.0), **measures}.items():
                old = sums.get(name, (0.0, 0.0))
                sums[name] = (old[0] + value * weight, old[1] + weight)
            on_step()
        return {name: total / max(weight, 1e-9) for name, (total, weight) in sums.items()}

    def _losses(self, outputs, targets, weights):
        """The losses of the recipe, as `training.compile_model` gives them to Keras, and the metrics."""
        import torch
        from torch.nn import functional as F

        total, measures = 0.0, {}
        for head, logits in outputs.items():
            target, weight = (torch.from_numpy(np.array(part[head])) for part in (targets, weights))
            if head in ("gender", "masked"):
                target = target.float()
                smoothing = self.recipe.gender_smoothing
                loss = F.cross_entropy(logits, target * (1 - smoothing) + smoothing / 2, reduction="none")
                right = (logits.argmax(1) == target.argmax(1)).float()
                measures["accuracy"] = self._mean(right, weight)
            elif head == "features":
                loss = ((logits - target) ** 2).mean(1)
            elif head != "age":
                loss = F.cross_entropy(self._class_logits(head, logits, target), target.long(), reduction="none")
                measures[f"{head}_accuracy"] = self._mean((logits.argmax(1) == target).float(), weight)
            else:
                loss, error, inside = self._age_loss(logits, target)
                measures["mae"] = self._mean(error, weight * inside)
            total = total + (loss * weight).mean()
        return total, measures

    def _class_logits(self, head, logits, target):
        """Logits of a head that tells classes apart; for cosines as `training.ArcFace` makes them."""
        import torch

        from fag_utils import training

        loss = training.class_loss(self.net.model.get_layer(head))
        if not isinstance(loss, training.ArcFace):
            return logits
        place = target.long()[:, None]
        cosine, margin = logits.gather(1, place), loss.margin
        sine = (1 - cosine**2).clamp(min=1e-6).sqrt()
        moved = torch.where(cosine > -np.cos(margin), cosine * np.cos(margin) - sine * np.sin(margin),
                            cosine - margin * np.sin(margin))
        return loss.scale * logits.scatter(1, place, moved)

    @staticmethod
    def _mean(value, weight):
        weights = float(weight.sum())
        return float((value.detach() * weight).sum()) / max(weights, 1e-9), weights

    def _age_loss(self, logits, target):
        """As `training.AgeDistribution`: -> losses, errors of the expected age, probability of 18..65."""
        import torch
        from torch.nn import functional as F

        from fag_utils import labels, training

        classes = torch.arange(logits.shape[1], dtype=torch.float32)
        sparse = target.ndim == 1
        one_hot = F.one_hot(target.long(), logits.shape[1]).float() if sparse else target
        settings = training.AgeDistribution()
        if sparse and self.recipe.age_loss == "distribution":
            target = torch.softmax(-0.5 * ((classes - target[:, None]) / settings.sigma) ** 2, dim=1)
        else:
            target = one_hot
        loss = -(target * torch.log_softmax(logits, dim=1)).sum(1)

        def expectation(p):
            if p.shape[1] != labels.N_AGES:
                p = p[:, labels.MIN_AGE : labels.MAX_AGE + 1]
            inside = p.sum(1)
            return (p * torch.arange(labels.N_AGES)).sum(1) / (inside + 1e-7), inside

        mean = expectation(torch.softmax(logits, dim=1))[0]
        wanted, inside = expectation(one_hot)
        error = (mean - wanted).abs()
        if self.recipe.age_loss == "distribution":
            loss = loss + settings.mean_weight * inside * error
        return loss, error, inside

    def averaged_weights(self):
        """Weights to evaluate: the moving average, where the recipe keeps one."""
        plain = [v.detach().clone() for v in self.net.trainable]
        self._put(self.average)
        weights = self.net.get_weights()
        self._put(plain)
        return weights

    def _put(self, trainable):
        import torch

        if trainable:
            with torch.no_grad():
                torch._foreach_copy_(self.net.trainable, trainable)

    def finish(self, data):
        """Weights of the trained network; `data`: batches to measure batch norm's statistics on."""
        import torch

        if self.average:
            self._put(self.average)
            with torch.no_grad():
                for number, (pictures, *_) in enumerate(data):
                    self.net.momentum = number / (number + 1)
                    self.net(pictures, training=True)
        return self.net.get_weights()
