// Times a public network in Node, on TensorFlow.js's WebAssembly backend, one thread: see benchmark.py.
import { createRequire } from "node:module";
import fs from "node:fs";
import path from "node:path";
import process from "node:process";

const [task, folder] = [JSON.parse(process.argv[2]), path.resolve(process.argv[3])];
const require = createRequire(path.join(folder, "package.json"));
console.warn = console.info = () => {};
const tf = require("@tensorflow/tfjs");
const wasm = require("@tensorflow/tfjs-backend-wasm");
const packages = path.join(folder, "node_modules");
wasm.setWasmPaths(path.join(packages, "@tensorflow/tfjs-backend-wasm/dist") + path.sep);
wasm.setThreadsCount(1);
await tf.setBackend("wasm");
await tf.ready();

async function graph(file) {
  const model = JSON.parse(fs.readFileSync(file));
  const specs = model.weightsManifest.flatMap((group) => group.weights);
  const bytes = Buffer.concat(model.weightsManifest.flatMap((group) => group.paths)
    .map((name) => fs.readFileSync(path.join(path.dirname(file), name))));
  const data = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
  return tf.loadGraphModel(tf.io.fromMemory({ modelTopology: model.modelTopology, weightSpecs: specs, weightData: data }));
}

let run;
if (task.peer === "human") {
  const net = await graph(path.join(packages, "@vladmandic/human/models/faceres.json"));
  const side = net.inputs[0].shape[1] > 0 ? net.inputs[0].shape[1] : 224;
  const picture = tf.randomUniform([1, side, side, 3], 0, 255);
  run = () => { for (const out of [net.execute(picture)].flat()) { out.dataSync(); out.dispose(); } };
} else {
  const faceapi = require("@vladmandic/face-api/dist/face-api.node-wasm.js");
  await faceapi.tf.setBackend("wasm");
  await faceapi.tf.ready();
  const net = faceapi.nets.ageGenderNet;
  await net.loadFromDisk(path.join(packages, "@vladmandic/face-api/model"));
  const picture = faceapi.tf.randomUniform([112, 112, 3], 0, 255);
  run = async () => {
    const out = await net.forward(picture);
    for (const part of [out.age, out.gender]) { part.dataSync(); part.dispose(); }
  };
}

for (let i = 0; i < 3; i++) await run();
const times = [], end = performance.now() + 1000 * task.seconds;
while (performance.now() < end || times.length < 5) {
  const start = performance.now();
  await run();
  times.push(performance.now() - start);
}
times.sort((a, b) => a - b);
const at = (share) => times[Math.floor(share * (times.length - 1))];
console.log(JSON.stringify({ network_ms: at(0.5), network_p10: at(0.1), network_p90: at(0.9) }));
