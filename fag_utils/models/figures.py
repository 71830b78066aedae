"""Drawings of the networks. Widths and numbers are read from built layers, so they can't be wrong."""

import keras

from fag_utils.models.mobilefacenet import bottleneck, multiply_adds

WIDE, NARROW, ARROW = "#56B4E9", "#E69F00", "#333333"


def draw_bottleneck(size=14, channels=128, expanded_channels=256, strides=1, ax=None):
    """Draw one bottleneck: each tensor as a bar as long as it has channels, each operation as an arrow.

    Returns the Matplotlib Axes.
    """
    import matplotlib.pyplot as plt

    ax = plt.subplots(figsize=(9, 4.2), layout="constrained")[1] if ax is None else ax
    x = keras.Input((size, size, channels))
    model = keras.Model(x, bottleneck(x, expanded_channels, channels, strides, "b"))
    labels = {"b_expand": "1x1 convolution\nnorm, PReLU", "b_depthwise": "depthwise 3x3\nnorm, PReLU",
              "b_project": "1x1 convolution\nnorm"}
    tensors = [x] + [model.get_layer(name).output for name in labels]
    for place, tensor in enumerate(tensors):
        height, width, depth = tensor.shape[1:]
        length = depth / expanded_channels
        ax.add_patch(plt.Rectangle((place - 0.06, -length / 2), 0.12, length, color=NARROW if length < 1 else WIDE))
        ax.text(place, -0.56, f"{height} x {width}\n{depth} channels", ha="center", va="top")
    arrow = {"arrowprops": {"arrowstyle": "->", "color": ARROW}, "va": "center", "ha": "center"}
    for place, (name, label) in enumerate(labels.items()):
        cost = multiply_adds(model.get_layer(name)) / 1e6
        ax.annotate("", (place + 0.93, 0), (place + 0.07, 0), **arrow)
        ax.text(place + 0.5, 0.05, label, ha="center", va="bottom")
        ax.text(place + 0.5, -0.06, f"{cost:.2f} M\nmultiply-adds", ha="center", va="top", color="#666666", size=9)
    if any(isinstance(layer, keras.layers.Add) for layer in model.layers):
        end = len(labels) + 0.4
        ax.annotate("", (end, 0), (len(labels) + 0.07, 0), **arrow)
        ax.plot([0, 0, end, end], [channels / expanded_channels / 2 + 0.03, 0.68, 0.68, 0.06], color=ARROW, lw=1.2)
        ax.text(end, 0, "+", ha="center", va="center", bbox={"boxstyle": "circle", "fc": "white", "ec": ARROW})
        ax.text(end / 2, 0.7, "the input is added: the shapes are the same", ha="center", va="bottom")
    ax.set(xlim=(-0.4, len(labels) + 0.6), ylim=(-0.85, 0.85))
    ax.axis("off")
    return ax
