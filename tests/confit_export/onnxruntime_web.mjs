// node onnxruntime_web.mjs FOLDER MODEL PCM HOP OUT: runs a model file in onnxruntime-web (from FOLDER/node_modules), one
// hop a call with its state carried, and writes the scores and embeddings of all rows as JSON.
import { createRequire } from "node:module";
import { readFileSync, writeFileSync } from "node:fs";

const [folder, model, pcmFile, hopText, out] = process.argv.slice(2);
const ort = createRequire(`${folder}/package.json`)("onnxruntime-web");
ort.env.wasm.numThreads = 1;

const session = await ort.InferenceSession.create(readFileSync(model), { executionProviders: ["wasm"] });
const bytes = readFileSync(pcmFile);
const pcm = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
const hop = Number(hopText);
let state = {};
for (const input of session.inputMetadata.filter((entry) => entry.name !== "pcm")) {
  const shape = [1, ...input.shape.slice(1)];
  const Values = input.type === "uint8" ? Uint8Array : Float32Array;
  state[input.name] = new ort.Tensor(input.type, new Values(shape.reduce((a, b) => a * b)), shape);
}
const scores = [];
const embedding = [];
for (let at = 0; at + hop <= pcm.length; at += hop) {
  const chunk = new ort.Tensor("float32", pcm.slice(at, at + hop), [1, hop]);
  const found = await session.run({ pcm: chunk, ...state });
  scores.push(Array.from(found.scores.data));
  embedding.push(Array.from(found.embedding.data));
  state = Object.fromEntries(Object.keys(state).map((name) => [name, found[`${name}_out`]]));
}
writeFileSync(out, JSON.stringify({ scores, embedding }));
