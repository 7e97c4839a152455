/* Labels texts in a browser with an exported folder, like its predictor.py.

   import { load } from "./predictor.js";
   const predictor = await load("shipped");
   await predictor.label(["turn on the light", "play a song"]);  // returns the columns of predictions.jsonl

   Supports classification, and tagging with or without a CRF; throws an Error for other models.
   Offsets count UTF-16 code units: text.slice(start, end) is the entity. */
import * as ort from "onnxruntime-web";
import { Tokenizer } from "@huggingface/tokenizers";

const INVISIBLE = /^[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Zs}]*$/u;
const DIGITS = "\\p{Nd}²³¹፩-፱᧚⁰⁴-⁹₀-₉①-⑨⑴-⑼⒈-⒐⓪⓵-⓽⓿❶-❾➀-➈➊-➒🄀-🄊\u{10a40}-\u{10a43}\u{10e60}-\u{10e68}\u{11052}-\u{1105a}";
const DIGIT = new RegExp(`[${DIGITS}]`, "u"); // the characters that Python's str.isdigit accepts

function reject(reason) {
  throw new Error(`${reason}; use predictor.py or tools.serve`);
}

async function read(folder, name, sums) {
  const response = await fetch(`${folder}/${name}`, { cache: "no-cache" }); // revalidates cached files
  if (!response.ok) throw new Error(`${folder}/${name}: cannot be read (${response.status})`);
  const content = await response.arrayBuffer();
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  const sum = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (sums && sum !== sums[name]) throw new Error(`${folder}/${name}: has changed since the export; export the model again`);
  return content;
}

/** Loads an exported folder from a URL without trailing slash. Throws an Error if the folder cannot be used. */
export async function load(folder) {
  if (!globalThis.crypto?.subtle) throw new Error("files can only be verified on pages served over https or from localhost");
  const json = (content) => JSON.parse(new TextDecoder().decode(content));
  const sums = json(await read(folder, "manifest.json"));
  const settings = json(await read(folder, "predictor.json", sums));
  const heads = Object.values(settings.tasks).map((task) => task.head);
  const other = heads.find((head) => !["classification", "tagging", "crf"].includes(head));
  if (other) reject(`the page does not support ${other}`);
  if (settings.pairs || Object.keys(settings.markers).length) reject("the page supports neither text pairs nor markers");
  if (!settings.reads_text || Object.keys(settings.fields).length) reject("the page does not support custom inputs");
  if ("model.onnx.data" in sums) reject("the page does not support models above 1 GB");
  const tokenizer = new Tokenizer(json(await read(folder, "tokenizer.json", sums)), {});
  const arrays = heads.includes("crf") ? arraysOf(await read(folder, "arrays.npz", sums)) : {};
  ort.env.wasm.numThreads = 1; // more threads need a cross-origin isolated page
  const session = await ort.InferenceSession.create(await read(folder, "model.onnx", sums));
  return new Predictor(settings, tokenizer, arrays, session);
}

/** Parses a file written by numpy.savez with fp32 arrays. Returns {name: values}. */
function arraysOf(buffer) {
  const view = new DataView(buffer), arrays = {};
  const text = (from, size) => new TextDecoder("latin1").decode(new Uint8Array(buffer, from, size));
  for (let at = 0; view.getUint32(at, true) === 0x04034b50; ) {
    const name = view.getUint16(at + 26, true), body = at + 30 + name + view.getUint16(at + 28, true);
    let size = view.getUint32(at + 18, true);
    if (size === 0xffffffff) size = Number(view.getBigUint64(at + 30 + name + 12, true)); // zip64
    const begin = body + 10 + view.getUint16(body + 8, true);
    if (!text(body, begin - body).includes("'<f4', 'fortran_order': False")) reject("arrays.npz is not in fp32");
    arrays[text(at + 30, name - ".npy".length)] = new Float32Array(buffer.slice(begin, body + size));
    at = body + size;
  }
  return arrays;
}

class Predictor {
  constructor(settings, tokenizer, arrays, session) {
    const { han, patterns, unit, filler } = settings;
    const tasks = Object.entries(settings.tasks).map(([name, task]) => [name, { ...task, ...tablesOf(task, arrays) }]);
    const regex = (pattern, flags) =>
      new RegExp(pattern.replace(/\\U([0-9a-f]{8})/g, "\\u{$1}").replace("(?s:.)", "[^]"), flags);
    Object.assign(this, { settings, tokenizer, session, tasks: Object.fromEntries(tasks), han: regex(han, "u") });
    this.token = unit && regex(patterns[unit], "gu");
    this.filler = this.pieces(filler);
    const whole = tokenizer.encode(filler).ids;
    const at = whole.findIndex((_, i) => this.filler.every((id, k) => whole[i + k] === id));
    [this.before, this.after] = [whole.slice(0, at), whole.slice(at + this.filler.length)]; // special tokens
  }

  /** Labels texts in batches of similar length. Returns one object per text. */
  async label(texts, batchSize = 32) {
    const features = texts.map((text, number) => this.encode(text, `text ${number + 1}`));
    const order = [...features].sort((a, b) => b.ids.length - a.ids.length);
    for (let begin = 0; begin < order.length; begin += batchSize) {
      const batch = order.slice(begin, begin + batchSize);
      const outputs = await this.session.run(this.inputs(batch));
      for (const { data, dims } of this.session.outputNames.map((name) => outputs[name])) {
        if (!data.every(Number.isFinite)) throw new Error("the model's output is not finite");
        const width = dims.at(-1), size = data.length / batch.length;
        batch.forEach((feature, i) => {
          const rows = Array.from({ length: size / width }, (_, t) => i * size + t * width);
          feature.logits.push(rows.map((begin) => Array.from(data.subarray(begin, begin + width))));
        });
      }
    }
    return features.map((feature) => this.decode(feature));
  }

  encode(text, where) {
    if (typeof text !== "string" || !text.isWellFormed()) throw new Error(`${where}: is not a string of valid Unicode`);
    const found = this.token ? [...text.matchAll(this.token)] : [];
    const words = found.map((match) => ({ word: match[0], start: match.index }));
    if (this.token && !words.length) words.push({ word: "", start: 0 });
    const ids = [...this.before, ...(this.token ? [] : this.pieces(text))];
    words.forEach((one, number) => {
      const inner = this.pieces(this.withBlank(one.word, words[number - 1]?.word));
      one.first = ids.length;
      ids.push(...(inner.length ? inner : this.filler));
      one.last = ids.length - 1;
    });
    ids.push(...this.after);
    if (!ids.length) ids.push(...this.filler);
    const most = this.settings.max_length;
    if (ids.length > most) reject(`${where}: has ${ids.length} tokens, but the page supports at most ${most}`);
    return { text, words, ids, logits: [] };
  }

  /** Returns the token ids of a text, without special tokens. */
  pieces(text) {
    const lowers = this.tokenizer.normalizer?.("Σ") === "σ"; // JavaScript lower-cases a final Σ to ς
    return this.tokenizer.encode(lowers ? text.replaceAll("Σ", "σ") : text, { add_special_tokens: false }).ids;
  }

  withBlank(word, last) {
    const isApart = this.settings.blanks && this.settings.unit === "word" && last && word;
    return isApart && !this.han.test([...last].at(-1)) && !this.han.test([...word][0]) ? ` ${word}` : word;
  }

  /** Returns the inputs of the graph, padded to the longest text. */
  inputs(batch) {
    const { word_ends, word_shapes, pad_id, long_text } = this.settings;
    const padded = (part, of, pad = 0) => {
      const length = Math.max(...batch.map((feature) => feature[part].length));
      const dims = part === "ids" && long_text === "windows" ? [batch.length, 1, length] : [batch.length, length];
      const row = (items) => [...items.map(of), ...Array(length - items.length).fill(pad)];
      const all = batch.flatMap((feature) => row(feature[part]));
      return pad === false ? new ort.Tensor("bool", all, dims) : new ort.Tensor("int64", all.map(BigInt), dims);
    };
    const makers = {
      input_ids: () => padded("ids", (id) => id, pad_id),
      attention_mask: () => padded("ids", () => 1),
      token_type_ids: () => padded("ids", () => 0),
      word_starts: () => padded("words", ({ first }) => first),
      word_ends: () => padded("words", ({ last }) => (word_ends ? last : 0)),
      word_shapes: () => padded("words", ({ word }) => (word_shapes ? shapeOf(word) : 0)),
      word_mask: () => padded("words", () => true, false),
    };
    return Object.fromEntries(this.session.inputNames.map((name) => [name, makers[name]()]));
  }

  /** Returns the output columns of a text. */
  decode({ text, words, logits }) {
    const columns = { text };
    Object.entries(this.tasks).forEach(([name, task], number) => {
      const { head, labels, entities, temperature = 1 } = task, rows = logits[number].slice(0, words.length || 1);
      if (head === "classification") {
        const best = argmax(rows[0]), probability = round(scaled(powers(rows[0], temperature))[best]);
        return Object.assign(columns, { [name]: labels[best], [`${name}_probability`]: probability });
      }
      const tags = head === "crf" ? viterbi(rows, task) : rows.map(argmax);
      const named = INVISIBLE.test(text) ? [] : tags.map((tag) => labels[tag]);
      const chances = () => (head === "crf" ? onPath : onWords)(rows, tags, task, temperature);
      if (entities) columns[name] = entitiesOf(named, words, text, chances());
      columns[`${name}_tags`] = named;
    });
    return columns;
  }
}

// ---- decoding of one text, as in scoring.py; rows: the logits of each word ------------------------------------------

const round = (value) => Math.round(value * 1e6) / 1e6;
const clip = (value) => Math.min(1, Math.max(0, value));
const scaled = (values, sum = values.reduce((a, b) => a + b)) => values.map((value) => value / Math.max(sum, 1e-300));
const times = (values, others) => values.map((value, i) => value * others[i]);
const argmax = (values) => values.reduce((best, value, i) => (value > values[best] ? i : best), 0);

function dot(values, others) {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i] * others[i];
  return sum;
}

/** Returns the index at which the sum of two arrays is largest. */
function best(values, others) {
  let top = 0;
  for (let i = 1; i < values.length; i++) if (values[i] + others[i] > values[top] + others[top]) top = i;
  return top;
}

function powers(values, temperature) {
  const most = values[argmax(values)];
  return values.map((value) => Math.exp((value - most) / temperature));
}

/** Returns the shape of a word, see shape_of in engine/task/words.py. */
export function shapeOf(word) {
  const letters = word.match(/\p{L}/gu) ?? [], all = letters.join(""), rest = letters.slice(1).join("");
  if (DIGIT.test(word)) return 5;
  if (!all) return 6;
  if (!/[\p{Uppercase}\p{Lt}]/u.test(all)) return 1;
  if (rest === rest.toLowerCase()) return 2;
  return all === all.toUpperCase() ? 3 : 4;
}

/** Returns the tables for decoding a tagging task. goesOn[b][a] is 1 if tag b continues the entity of tag a. */
export function tablesOf({ head, labels, crf, temperature = 1 }, arrays) {
  const isOn = (a, b) => /^[BIM]-/.test(a) && /^[IEM]-/.test(b) && a.slice(2) === b.slice(2);
  const tables = { goesOn: head === "classification" ? [] : labels.map((b) => labels.map((a) => Number(isOn(a, b)))) };
  if (head !== "crf") return tables;
  const [start, scores, end] = ["start", "transitions", "end"].map((part) => Array.from(arrays[`${crf}.${part}`]));
  const rows = (table) => labels.map((_, i) => table.slice(i * labels.length, (i + 1) * labels.length));
  const columns = (table) => labels.map((_, j) => labels.map((_, i) => table[i * labels.length + j]));
  const factors = powers(scores, temperature);
  return { ...tables, start, end, into: columns(scores), factorsInto: columns(factors), factorsOut: rows(factors) };
}

export function viterbi(rows, { start, end, into }) {
  const scores = [rows[0].map((x, j) => x + start[j])];
  for (const row of rows.slice(1)) {
    const before = scores.at(-1), from = into.map((column) => best(before, column));
    scores.push(row.map((x, j) => x + before[from[j]] + into[j][from[j]]));
  }
  const tags = [best(scores.pop(), end)];
  for (const score of scores.reverse()) tags.unshift(best(score, into[tags[0]]));
  return tags;
}

/** Returns for each word the probabilities that an entity begins with its tag, continues with it, and ends after it. */
function onWords(rows, tags, { goesOn }, temperature) {
  const p = rows.map((row) => scaled(powers(row, temperature)));
  return tags.map((tag, t) => [
    clip(p[t][tag] * (t ? 1 - dot(p[t - 1], goesOn[tag]) : 1)),
    clip(p[t][tag]),
    clip(t + 1 < tags.length ? 1 - dot(p[t + 1], goesOn.map((from) => from[tag])) : 1),
  ]);
}

export function onPath(rows, tags, { start, end, factorsInto: into, factorsOut: out, goesOn }, temperature) {
  const last = rows.length - 1;
  const emissions = rows.map((row, t) => row.map((x, j) => x + (t ? 0 : start[j]) + (t < last ? 0 : end[j])));
  const words = emissions.map((row) => powers(row, temperature)), before = [words[0]], after = [words[0].map(() => 1)];
  for (const word of words.slice(1)) before.push(scaled(word.map((x, j) => x * dot(before.at(-1), into[j]))));
  for (const word of words.slice(1).reverse()) after.unshift(scaled(out.map((row) => dot(row, times(word, after[0])))));
  const next = words.slice(1).map((word, t) => scaled(times(times(word, after[t + 1]), out[tags[t]])));
  return tags.map((tag, t) => [
    clip(scaled(times(before[t], after[t]))[tag]),
    clip(t ? next[t - 1][tag] : 1),
    clip(t < last ? 1 - dot(next[t], goesOn.map((from) => from[tag])) : 1),
  ]);
}

/** Returns the entities in tags, by the rules of seqeval. */
function entitiesOf(tags, words, text, chances) {
  const found = [];
  let [before, kindBefore, begin] = ["O", "_", 0];
  [...tags, "O"].forEach((chunk, i) => {
    const tag = chunk[0], kind = chunk.slice(1).replace(/^[^-]*-/, "") || "_", other = kind !== kindBefore;
    const opens = "BS".includes(tag) || ("EI".includes(tag) && "ESO".includes(before));
    const closes = "ES".includes(before) || ("BI".includes(before) && "BSO".includes(tag));
    if (closes || (other && !"O.".includes(before))) found.push([kindBefore, begin, i - 1]);
    if (opens || (other && !"O.".includes(tag))) begin = i;
    [before, kindBefore] = [tag, kind];
  });
  return found.map(([label, first, last]) => {
    const [start, end] = [words[first].start, words[last].start + words[last].word.length];
    const inside = chances.slice(first + 1, last + 1).reduce((product, chance) => product * chance[1], 1);
    const probability = round(chances[first][0] * inside * chances[last][2]);
    return { label, text: text.slice(start, end), start, end, probability };
  });
}
