"""Latency of a model on one thread, wherever it runs: torch, onnxruntime (fp32, int8), OpenVINO, a page in Chromium.

    python benchmarks/latency.py --checkpoint output/atis/checkpoints/best --data_path dataset/atis

Exports the checkpoint in fp32 and int8. Then the runtimes take turns for --rounds rounds. Each labels the same --texts
single texts and --batches batches of 32, taken from the test split. Prints medians in milliseconds of wall-clock time,
so nothing else should run on the machine, and the number of texts whose predictions equal torch's. --openvino: the
Python of an environment that has onnxruntime-openvino, tokenizers and numpy. The page needs chromium and npm. Runtimes
that are not installed are skipped, with a message.
"""

import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from shipped import ROOT, in_onnxruntime, in_torch, run, start, test_rows

SIZE = 32  # texts in a batch
TIMED = """(async (model, rows) => {
  const times = [];
  const label = async (texts) => {
    const start = performance.now();
    await model.label(texts, texts.length);
    times.push(performance.now() - start);
  };
  for (const text of rows.singles.slice(0, 20)) await label([text]);
  times.length = 0;
  for (const text of rows.singles) await label([text]);
  for (const texts of rows.batches) await label(texts);
  return { times, predictions: rows.all ? await model.label(rows.all) : [] };
})"""


def timed(predict, rows):
    """Returns {"times": [milliseconds of each single text, then of each batch], "predictions": those for all texts}."""
    times = []
    for texts in [*([text] for text in rows["singles"][:20]), *([text] for text in rows["singles"]), *rows["batches"]]:
        start = time.perf_counter()
        predict([{"text": text} for text in texts])
        times.append(1000 * (time.perf_counter() - start))
    batches = [rows["all"][i : i + SIZE] for i in range(0, len(rows["all"]), SIZE)]
    predictions = [row for texts in batches for row in predict([{"text": text} for text in texts])]
    return {"times": times[min(20, len(rows["singles"])) :], "predictions": predictions}


def measure(options):
    """Prints the result of `timed` for one runtime as JSON. Runs in a separate process."""
    rows = json.loads(Path(options.rows).read_text(encoding="utf-8"))
    if options.side == "torch":
        predict = in_torch(options.checkpoint, [], 1)[0]
    else:
        predict = in_onnxruntime(options.checkpoint, [], 1, options.side)[0]
    print(json.dumps(timed(predict, rows), ensure_ascii=False))


def in_process(python, side, folder, rows):
    """Returns a function that measures a runtime in a separate process."""
    words = ["--side", side, "--checkpoint", folder, "--rows", rows]
    return lambda: json.loads(run(python, __file__, *words, threads=1)[0].splitlines()[-1])


def in_page(stack, place, exports, rows):
    """Returns {runtime: function that measures it} for a page in Chromium. exports: {name: exported folder}"""
    sys.path.append(str(ROOT / "tests/tools"))
    import pages
    from browser import Browser

    if isinstance(modules := pages.packages(), str):
        print(f"browser: skipped; {modules}")
        return {}
    (place / "site").mkdir()
    url = stack.enter_context(pages.served(place / "site", modules, **exports))

    def measured(name):
        with tempfile.TemporaryDirectory() as profile, Browser(profile) as page:
            page.open(f"{url}/index.html")
            load = f"import('./predictor.js').then((module) => module.load('{name}'))"
            return page.run(f"{load}.then((model) => {TIMED}(model, {rows.read_text(encoding='utf-8')}))")

    return {f"browser {name}": lambda name=name: measured(name) for name in exports}


def without(row, ending):
    """Removes the columns that end in `ending`, and the offsets, which count UTF-16 units in a browser."""
    if isinstance(row, dict):
        kept = {name: value for name, value in row.items() if not name.endswith((ending, "start", "end"))}
        return {name: without(value, ending) for name, value in kept.items() if name not in ("id", "text_pair")}
    return [without(one, ending) for one in row] if isinstance(row, list) else row


def sides_of(stack, place, options, rows):
    """Exports the checkpoint. Returns {runtime: function that measures it}."""
    exports = {}
    for kind in ("fp32", "int8"):
        words = ["--checkpoint", options.checkpoint, "--output_dir", place / kind, "--data_path", options.data_path]
        run(sys.executable, "-m", "tools.export", *words, *(["--int8", "--max_drop", 1] if kind == "int8" else []))
        exports[kind] = place / kind
    sides = {"torch": in_process(sys.executable, "torch", options.checkpoint, rows)}
    for kind, folder in exports.items():
        sides[f"onnxruntime {kind}"] = in_process(sys.executable, "cpu", folder, rows)
    if options.openvino:
        sides["openvino fp32"] = in_process(options.openvino, "openvino", exports["fp32"], rows)
    else:
        print("openvino: skipped; --openvino sets the Python of its environment")
    return sides | in_page(stack, place, exports, rows)


def compare(options):
    from engine.task.text import text_of

    texts = [text_of(row) for row in test_rows(Path(options.data_path))[0]]
    several = texts * (1 + max(options.texts, SIZE * options.batches) // len(texts))
    batches = [several[SIZE * i : SIZE * (i + 1)] for i in range(options.batches)]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        place = Path(folder)
        given = {"singles": several[: options.texts], "batches": batches, "all": texts}
        (place / "rows.json").write_text(json.dumps(given, ensure_ascii=False), encoding="utf-8")
        sides = sides_of(stack, place, options, place / "rows.json")
        found = {side: [] for side in sides}
        for _ in range(options.rounds):
            for side, measured in sides.items():
                found[side].append(measured())
            rows = json.dumps(given | {"all": []}, ensure_ascii=False)  # predictions are the same in each round
            (place / "rows.json").write_text(rows, encoding="utf-8")
        expected = [without(row, "probability") for row in found["torch"][0]["predictions"]]
        print(f"{'':<18}{'one text':>10}{'batch of 32':>13}{'texts/s':>9}  same predictions as torch")
        for side, results in found.items():
            singles, in_batches = (
                statistics.median(time for result in results for time in result["times"][part])
                for part in (slice(options.texts), slice(options.texts, None))
            )
            same = sum(without(row, "probability") == one for row, one in zip(results[0]["predictions"], expected))
            times = f"{singles:>7.2f} ms{in_batches:>10.1f} ms{1000 * SIZE / in_batches:>9.0f}"
            print(f"{side:<18}{times}  {same} of {len(texts)}", flush=True)


OWN_FLAGS = {
    "--texts": (200, "number of single texts to time in a round"),
    "--batches": (20, "number of batches to time in a round"),
    "--openvino": ("", "Python of an environment with onnxruntime-openvino"),
}

if __name__ == "__main__":
    start(__doc__, OWN_FLAGS, measure, compare)
