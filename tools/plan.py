"""What the reference recipe costs on one H100, eight, and sixty-four: the table in docs/teaching.md, and plan.csv.

    python tools/plan.py            # after data/results/04_throughput.csv or 04_input.json changed
    python tools/plan.py --check    # change nothing, exit 1 where the page is out of step

Nothing here was run on a GPU. From what is measured in this project and what others published follows an estimate
with two ends: the step is as fast as the arithmetic and the memory allow, or a network of many small layers
waits for its launches, as a published one of like depth does. What is assumed says so.
"""

import json
import re
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "data" / "results", ROOT / "docs" / "teaching.md"
BLOCK = re.compile(r"(<!-- plan: written by tools/plan.py -->\n).*?(<!-- end of plan -->)", re.S)

# Published. EfficientNet-B0 is a network of depthwise and 1x1 convolutions, as ours is.
# NVIDIA, DeepLearningExamples, PyTorch/Classification/ConvNets/efficientnet/README.md: training on DGX A100, mixed
# precision, pictures a second by number of GPUs; and the latency of one forward pass of one picture (TF32).
B0_TRAINING = {1: 2489, 8: 16652, 16: 29332}
B0_LATENCY = 9.33e-3  # seconds
B0_MULTIPLY_ADDS = 390e6  # Tan and Le (2019), "EfficientNet", table 2
# NVIDIA's data sheets, SXM, 80 GB: memory in bytes a second; links in bytes a second, one way.
A100_MEMORY, H100_MEMORY = 2.039e12, 3.35e12
NVLINK, NETWORK = 450e9, 50e9  # within a machine of 8; 400 Gbit/s for each GPU between machines
PRICE = 2.49, 3.99  # dollars an hour for an H100, from the cheaper clouds' lists of early 2026 (pricegpu.pages.dev)
# Assumed: how long a very small all-reduce takes, in seconds, within a machine and between machines.
LATENCY_WITHIN, LATENCY_BETWEEN = 20e-6, 60e-6
CORES = 12  # assumed, CPU cores beside each GPU
BACKWARD = 3  # forward and backward take three times the forward pass


def network():
    """(parameters, multiply-adds, layers of batch norm) of the network that is trained."""
    from fag_utils import models

    backbone = models.mobilefacenet(62, 0.75)
    model = models.age_gender(backbone)
    norms = sum(type(layer).__name__.endswith("BatchNormalization") for layer in model.layers)
    return model.count_params(), models.count(model)["multiply_adds"], norms


def input_seconds():
    """Core seconds to make a batch, as tools/input.py measured them; not a number before it was run.

    The fast engine has no batches made ahead, so its whole making of a batch is seen as waiting.
    """
    path = RESULTS / "04_input.json"
    engines = json.loads(path.read_text())["engines"] if path.exists() else {}
    if "fast" not in engines:
        return float("nan")
    return engines["fast"]["input_ms"] / 1e3 * json.loads(path.read_text())["cores"]


def plan():
    """DataFrame, a row a number of devices and an end of the estimate."""
    from fag_utils import batches

    parameters, multiply_adds, norms = network()
    pictures = batches.STEPS * batches.BATCH_SIZE
    speeds = pd.read_csv(RESULTS / "04_throughput.csv").set_index("way")["pictures_per_second"]
    rows = [{"devices": "two CPU cores", "estimate": f"measured, {way}", "hours": pictures / rate / 3600}
            for way, rate in speeds.items() if way.startswith("fag_utils")]
    speed = B0_TRAINING[1] * B0_MULTIPLY_ADDS / multiply_adds * H100_MEMORY / A100_MEMORY
    reading = input_seconds()
    for devices in (1, 8, 64):
        bandwidth, latency = (NVLINK, LATENCY_WITHIN) if devices <= 8 else (NETWORK, LATENCY_BETWEEN)
        gradients = 2 * (devices - 1) / devices * 4 * parameters / bandwidth
        statistics = (2 * norms + 1) * latency if devices > 1 else 0.0  # forward and backward, and the gradients' own
        compute = batches.BATCH_SIZE / devices / speed
        prepare = reading / (CORES * min(devices, 8))  # each machine makes the whole batch
        for name, step in (("best case", compute), ("waiting for launches", max(compute, BACKWARD * B0_LATENCY))):
            whole = max(step + gradients + statistics, 0.0 if pd.isna(prepare) else prepare)
            hours = batches.STEPS * whole / 3600
            parts = {"compute": step, "gradients": gradients, "batch_norm": statistics, "input": prepare,
                     "step": whole}
            rows.append({"devices": f"{devices} x H100", "estimate": name, "hours": hours,
                         **{f"{part}_ms": 1e3 * seconds for part, seconds in parts.items()},
                         "dollars_low": hours * devices * PRICE[0], "dollars_high": hours * devices * PRICE[1]})
    return pd.DataFrame(rows)


def section(table):
    """The part of the page that holds figures, as Markdown."""
    times = ["compute", "gradients", "batch norm", "input", "step"]
    lines = ["| on | estimate | " + " | ".join(f"{name}, ms" for name in times) + " | hours | dollars |",
             "| --- | --- |" + " --: |" * (len(times) + 2)]
    for row in table.to_dict("records"):
        values = [row[f"{name.replace(' ', '_')}_ms"] for name in times]
        cells = [row["devices"], row["estimate"], *(f"{value:.2f}" if pd.notna(value) else "" for value in values),
                 f"{row['hours']:,.1f}",
                 f"{row['dollars_low']:,.0f} to {row['dollars_high']:,.0f}" if pd.notna(row["dollars_low"]) else ""]
        lines.append("| " + " | ".join(cells) + " |")
    (one, eight, many), (one_slow, eight_slow, many_slow) = (
        table.loc[table["estimate"] == name, "hours"] for name in ("best case", "waiting for launches"))
    words = (f"Eight are {one / eight:.2f} times as fast as one in the best case, and {one_slow / eight_slow:.2f} "
             f"times when waiting for launches; sixty-four {one / many:.2f} and {one_slow / many_slow:.2f} times. "
             f"(EfficientNet-B0, with a much larger batch on each, is {B0_TRAINING[8] / B0_TRAINING[1]:.1f} times as "
             f"fast on eight A100 as on one, and {B0_TRAINING[16] / B0_TRAINING[1]:.1f} times on sixteen.)")
    return "\n".join([*lines, "", words]) + "\n"


def main(check):
    table = plan()
    text = PAGE.read_text(encoding="utf-8")
    new = BLOCK.sub(lambda found: found[1] + "\n" + section(table) + "\n" + found[2], text)
    if check:
        return text != new
    PAGE.write_text(new, encoding="utf-8")
    table.to_csv(RESULTS / "plan.csv", index=False, float_format="%.4g")
    print(section(table))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main("--check" in sys.argv))
