// A photograph in, people out, in the browser: what predictor.py and faces.py do, with the same networks. All numbers
// that belong to the network (its frame, temperatures, ages) come from settings.json, written by fag_utils.export.

const ort = globalThis.ort;
ort.env.wasm.wasmPaths = new URL("ort/", document.baseURI).href;
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";

const MAX_SIDE = 1600; // pixels: larger photographs are made smaller first
const $ = (id) => document.getElementById(id);
const fetched = async (name) => new Uint8Array(await (await fetch(name)).arrayBuffer());

async function load() {
  const settings = await (await fetch("settings.json")).json();
  const nets = {};
  for (const name of ["network", "pnet", "rnet", "onet"]) {
    nets[name] = await ort.InferenceSession.create(await fetched(`${name}.onnx`));
  }
  return { settings, nets };
}

async function run(net, data, dims) {
  const answer = await net.run({ [net.inputNames[0]]: new ort.Tensor("float32", data, dims) });
  return net.outputNames.map((name) => ({ name, data: answer[name].data, dims: answer[name].dims }));
}

// --- Pictures: {width, height, data}, data as of a canvas (RGBA)

// The picture under z -> a z + b, complex numbers as [re, im], as width x height RGB floats. Samples are no further
// apart than pixels of the picture, and averaged: nothing is skipped.
function warp({ width, height, data }, a, b, outWidth, outHeight = outWidth) {
  const norm = a[0] ** 2 + a[1] ** 2;
  const back = [a[0] / norm, -a[1] / norm];
  const fine = Math.max(1, Math.ceil(1 / Math.sqrt(norm) - 0.05));
  const out = new Float32Array(outWidth * outHeight * 3);
  for (let v = 0; v < outHeight * fine; v++) {
    for (let u = 0; u < outWidth * fine; u++) {
      const [du, dv] = [(u + 0.5) / fine - b[0], (v + 0.5) / fine - b[1]];
      const x = Math.min(Math.max(du * back[0] - dv * back[1] - 0.5, 0), width - 1);
      const y = Math.min(Math.max(du * back[1] + dv * back[0] - 0.5, 0), height - 1);
      const [x0, y0] = [Math.floor(x), Math.floor(y)];
      const [fx, fy] = [x - x0, y - y0];
      const right = x0 + 1 < width ? 4 : 0, down = y0 + 1 < height ? 4 * width : 0;
      const at = 4 * (y0 * width + x0), to = 3 * (Math.floor(v / fine) * outWidth + Math.floor(u / fine));
      for (let c = 0; c < 3; c++) {
        const upper = data[at + c] * (1 - fx) + data[at + right + c] * fx;
        const lower = data[at + down + c] * (1 - fx) + data[at + down + right + c] * fx;
        out[to + c] += (upper * (1 - fy) + lower * fy) / (fine * fine);
      }
    }
  }
  return out;
}

const centred = (pixels) => pixels.map((value) => (value - 127.5) / 128);

function patches(picture, boxes, size) {
  const all = new Float32Array(boxes.length * size * size * 3);
  boxes.forEach(([x1, y1, x2], i) => {
    const a = size / Math.max(x2 - x1, 1e-3);
    all.set(centred(warp(picture, [a, 0], [-x1 * a, -y1 * a], size)), i * size * size * 3);
  });
  return all;
}

// --- Faces: mtcnn's three networks (Zhang et al. 2016)

function square([x1, y1, x2, y2]) {
  const [x, y, half] = [(x1 + x2) / 2, (y1 + y2) / 2, Math.max(x2 - x1, y2 - y1) / 2];
  return [x - half, y - half, x + half, y + half];
}

function surest(boxes, limit, share) { // boxes [x1, y1, x2, y2, score]
  const kept = [];
  const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
  for (const box of [...boxes].sort((p, q) => q[4] - p[4])) {
    const clear = kept.every((other) => {
      const common = Math.max(Math.min(box[2], other[2]) - Math.max(box[0], other[0]), 0)
        * Math.max(Math.min(box[3], other[3]) - Math.max(box[1], other[1]), 0);
      const whole = share === "smaller" ? Math.min(area(box), area(other)) : area(box) + area(other) - common;
      return common <= limit * whole;
    });
    if (clear && kept.length < 300) kept.push(box);
  }
  return kept;
}

async function refined(net, picture, boxes, size, least) {
  const found = [];
  for (let start = 0; start < boxes.length; start += 64) {
    const part = boxes.slice(start, start + 64).map(square);
    const outputs = await run(net, patches(picture, part, size), [part.length, size, size, 3]);
    const [offsets, scores] = [outputs[0].data, outputs.at(-1).data];
    part.forEach((box, i) => {
      const side = box[2] - box[0];
      if (scores[2 * i + 1] > least) {
        found.push([...box.map((edge, k) => edge + offsets[4 * i + k] * side), scores[2 * i + 1]]);
      }
    });
  }
  return found;
}

async function detect({ nets, settings }, picture) {
  const { width, height } = picture;
  let boxes = [];
  for (let scale = 12 / settings.smallest_face; Math.min(width, height) * scale >= 12; scale *= 0.709) {
    const [w, h] = [Math.round(width * scale), Math.round(height * scale)];
    const level = centred(warp(picture, [scale, 0], [0, 0], w, h));
    const [offsets, scores] = await run(nets.pnet, level, [1, h, w, 3]);
    const [, rows, columns] = scores.dims;
    const found = [];
    for (let i = 0; i < rows * columns; i++) {
      const score = scores.data[2 * i + 1];
      if (score <= 0.6) continue;
      const [x, y] = [2 * (i % columns), 2 * Math.floor(i / columns)];
      const box = [x, y, x + 12, y + 12].map((edge, k) => (edge + 12 * offsets.data[4 * i + k]) / scale);
      found.push([...box, score]);
    }
    boxes.push(...surest(found, 0.5));
  }
  boxes = surest(await refined(nets.rnet, picture, boxes, 24, 0.7), 0.7);
  boxes = surest(await refined(nets.onet, picture, boxes, 48, 0.95), 0.5, "smaller");
  return boxes.sort((p, q) => (q[2] - q[0]) * (q[3] - q[1]) - (p[2] - p[0]) * (p[3] - p[1]));
}

async function landmarks({ nets }, picture, box) {
  const [x1, y1, x2, y2] = square(box);
  const [, points] = await run(nets.onet, patches(picture, [[x1, y1, x2, y2]], 48), [1, 48, 48, 3]);
  return [0, 1, 2, 3, 4].map((i) => [x1 + points.data[i] * (x2 - x1), y1 + points.data[i + 5] * (x2 - x1)]);
}

// The similarity z -> a z + b that brings points closest to a target (Umeyama 1991, without reflection).
function similarity(points, target) {
  const mean = (list) => [0, 1].map((k) => list.reduce((sum, point) => sum + point[k], 0) / list.length);
  const [p, t] = [mean(points), mean(target)];
  let [re, im, norm] = [0, 0, 0];
  points.forEach((point, i) => {
    const [x, y, u, v] = [point[0] - p[0], point[1] - p[1], target[i][0] - t[0], target[i][1] - t[1]];
    re += x * u + y * v;
    im += x * v - y * u;
    norm += x * x + y * y;
  });
  const a = [re / norm, im / norm];
  return [a, [t[0] - a[0] * p[0] + a[1] * p[1], t[1] - a[0] * p[1] - a[1] * p[0]]];
}

async function crop(tools, picture, box) {
  const { size, frame, found } = tools.settings;
  let points = await landmarks(tools, picture, box);
  const [a] = similarity(points, frame); // a second look, where the first one put the face
  const half = 0.55 / Math.hypot(...a);
  const [x, y] = [0, 1].map((k) => points.reduce((sum, point) => sum + point[k], 0) / 5);
  points = await landmarks(tools, picture, [x - half, y - half, x + half, y + half]);
  const target = found.map(([u, v]) => [u * size, v * size]);
  return warp(picture, ...similarity(points, target), size).map(Math.round);
}

// --- Answers: as labels.py has them

function temper(probabilities, temperature) {
  const logits = Array.from(probabilities, (p) => Math.log(p + 1e-12) / temperature);
  const most = Math.max(...logits);
  const raised = logits.map((logit) => Math.exp(logit - most));
  const sum = raised.reduce((total, value) => total + value, 0);
  return raised.map((value) => value / sum);
}

function quantile(cells, low, q) { // cells of a year each, the first one begins at `low`
  let before = 0;
  for (let i = 0; i < cells.length; i++) {
    if (before + cells[i] >= q) return low + i + (q - before) / Math.max(cells[i], 1e-12);
    before += cells[i];
  }
  return low + cells.length;
}

async function tell({ nets, settings }, pixels) {
  const { size, min_age: first, calibration } = settings;
  const both = new Float32Array(2 * pixels.length); // the face and its mirror image
  both.set(pixels);
  for (let i = 0; i < size * size; i++) {
    const mirrored = i - (i % size) + size - 1 - (i % size);
    both.set(pixels.subarray(3 * mirrored, 3 * mirrored + 3), pixels.length + 3 * i);
  }
  const heads = {};
  for (const { name, data, dims } of await run(nets.network, both, [2, size, size, 3])) {
    heads[name] = Array.from({ length: dims[1] }, (_, i) => (data[i] + data[dims[1] + i]) / 2);
  }
  const male = temper(heads.gender, calibration.gender_temperature)[1];
  const outside = heads.outside ?? [0, 0];
  const inside = Math.max(1 - outside[0] - outside[1], 0);
  let cells = heads.age;
  let [under, over] = [0, 0];
  if (heads.outside) {
    const every = temper([outside[0], ...heads.age.map((p) => p * inside), outside[1]], calibration.age_temperature);
    [under, over] = [every[0], every.at(-1)];
    const sum = every.slice(1, -1).reduce((total, p) => total + p, 0);
    cells = every.slice(1, -1).map((p) => p / sum);
  } else {
    cells = temper(heads.age, calibration.age_temperature);
  }
  const sharp = temper(cells, calibration.decoding_temperature / calibration.age_temperature);
  const age = sharp.reduce((sum, p, i) => sum + p * (first + i), 0);
  const share = cells.map((p) => p * (1 - under - over));
  const limit = (q) => (q < under ? first - 0.5 : quantile(share, first - 0.5, q - under));
  return { age, low: Math.min(limit(0.1), age), high: Math.max(limit(0.9), age), male };
}

// --- The page

function show(picture, boxes) {
  const canvas = $("photo");
  [canvas.width, canvas.height, canvas.hidden] = [picture.width, picture.height, false];
  const context = canvas.getContext("2d");
  context.putImageData(picture, 0, 0);
  context.lineWidth = Math.max(2, picture.width / 300);
  context.strokeStyle = "#ffb000";
  boxes.forEach(([x1, y1, x2, y2]) => context.strokeRect(x1, y1, x2 - x1, y2 - y1));
}

function card(pixels, size, { age, low, high, male }) {
  const item = document.createElement("li");
  const face = document.createElement("canvas");
  [face.width, face.height] = [size, size];
  const image = new ImageData(size, size);
  for (let i = 0; i < size * size; i++) image.data.set([...pixels.subarray(3 * i, 3 * i + 3), 255], 4 * i);
  face.getContext("2d").putImageData(image, 0, 0);
  const text = document.createElement("span");
  const gender = male >= 0.5 ? "male" : "female";
  text.textContent = `${Math.round(age)} years (80 %: ${Math.round(low)} to ${Math.round(high)}), ${gender}, `
    + `${Math.round(100 * Math.max(male, 1 - male))} % sure`;
  Object.assign(item.dataset, { age, low, high, male });
  item.append(face, text);
  return item;
}

async function look(tools, file) {
  $("people").replaceChildren();
  $("photo").hidden = true;
  $("status").textContent = "Looking for faces …";
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    $("status").textContent = "This file is not a picture that the browser can read. Choose a JPEG or PNG.";
    return;
  }
  const scale = Math.min(1, MAX_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = new OffscreenCanvas(Math.round(bitmap.width * scale), Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const picture = context.getImageData(0, 0, canvas.width, canvas.height);
  const boxes = await detect(tools, picture);
  show(picture, boxes);
  for (const box of boxes) {
    const pixels = await crop(tools, picture, box);
    const start = performance.now();
    const person = await tell(tools, pixels);
    const item = card(pixels, tools.settings.size, person);
    item.dataset.milliseconds = performance.now() - start;
    $("people").append(item);
  }
  const count = boxes.length === 1 ? "One face" : `${boxes.length || "No"} ${boxes.length ? "faces" : "face"}`;
  $("status").textContent = `${count} found.`;
  document.body.dataset.done = Number(document.body.dataset.done ?? 0) + 1;
}

try {
  const tools = await load();
  $("status").textContent = "";
  document.body.dataset.ready = "yes";
  let last = Promise.resolve(); // one photograph after the other
  const next = (file) => { last = last.then(() => look(tools, file)).catch((error) => { $("status").textContent = `That went wrong: ${error.message}`; }); };
  $("file").addEventListener("change", ({ target }) => { if (target.files.length) next(target.files[0]); });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    $("drop").addEventListener(kind, (event) => {
      event.preventDefault();
      $("drop").classList.toggle("over", kind === "dragover");
      if (kind === "drop" && event.dataTransfer.files.length) next(event.dataTransfer.files[0]);
    });
  }
} catch (error) {
  $("status").textContent = `The network could not be loaded (${error.message}). Open this page through a web server: `
    + "python -m http.server in its folder will do.";
}
