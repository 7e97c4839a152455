"""Latency of a model on one thread, wherever it runs: torch, onnxruntime (fp32, int8), OpenVINO, a page in Chromium.

    python benchmarks/latency.py --checkpoint output/atis/checkpoints/best --data_path dataset/atis

Exports the checkpoint in fp32 and int8. Then the sides take turns, --rounds times, each with --texts single texts and
--batches batches of 32, all the same texts of the test part. Prints medians over all rounds in milliseconds of wall
time, so nothing else should run on the machine, and on how many texts the answers are those of torch. --openvino: the
Python of an environment that has onnxruntime-openvino, tokenizers and numpy. The page needs chromium and npm. What is
not there is left out, with a line.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from shipped import ROOT, in_onnxruntime, in_torch, run, test_rows

SIZE = 32  # texts in a batch
TIMED = """(async (model, rows) => {
  const times = [];
  const label = async (texts) => {
    const start = performance.now(), answers = await model.label(texts, texts.length);
    times.push(performance.now() - start);
    return answers;
  };
  for (const text of rows.singles.slice(0, 20)) await label([text]);
  times.length = 0;
  for (const text of rows.singles) await label([text]);
  for (const texts of rows.batches) await label(texts);
  return { times, answers: rows.all ? await model.label(rows.all) : [] };
})"""


def timed(answer, rows):
    """{"times": milliseconds of each single text, then of each batch, "answers": of all texts}"""
    times = []
    for texts in [*([text] for text in rows["singles"][:20]), *([text] for text in rows["singles"]), *rows["batches"]]:
        start = time.perf_counter()
        answer([{"text": text} for text in texts])
        times.append(1000 * (time.perf_counter() - start))
    batches = [rows["all"][i : i + SIZE] for i in range(0, len(rows["all"]), SIZE)]
    answers = [one for texts in batches for one in answer([{"text": text} for text in texts])]
    return {"times": times[min(20, len(rows["singles"])) :], "answers": answers}


def measure(options):
    """Prints as JSON what `timed` returns, of one side in a process of its own."""
    rows = json.loads(Path(options.rows).read_text(encoding="utf-8"))
    if options.side == "torch":
        answer = in_torch(options.checkpoint, [], 1)[0]
    else:
        answer = in_onnxruntime(options.checkpoint, [], 1, options.side)[0]
    print(json.dumps(timed(answer, rows), ensure_ascii=False))


def in_process(python, side, folder, rows):
    """A function that measures a side in a process."""
    words = ["--side", side, "--checkpoint", folder, "--rows", rows]
    return lambda: json.loads(run(python, __file__, *words, threads=1)[0].splitlines()[-1])


def in_page(stack, place, exports, rows):
    """{side: function that measures it} of a page in Chromium, for each of {name: exported folder}."""
    sys.path.append(str(ROOT / "tests/tools"))
    import pages
    from browser import Browser

    if isinstance(modules := pages.packages(), str):
        print(f"browser: left out; {modules}")
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
    """The columns of an answer, without probabilities, and without offsets, which in a page count UTF-16 units."""
    if isinstance(row, dict):
        kept = {name: value for name, value in row.items() if not name.endswith((ending, "start", "end"))}
        return {name: without(value, ending) for name, value in kept.items() if name not in ("id", "text_pair")}
    return [without(one, ending) for one in row] if isinstance(row, list) else row


def sides_of(stack, place, options, rows):
    """{side: function that measures it}"""
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
        print("openvino: left out; --openvino names the Python of its environment")
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
            rows = json.dumps(given | {"all": []}, ensure_ascii=False)  # answers are the same in each round
            (place / "rows.json").write_text(rows, encoding="utf-8")
        wanted = [without(row, "probability") for row in found["torch"][0]["answers"]]
        print(f"{'':<18}{'one text':>10}{'batch of 32':>13}{'texts/s':>9}  answers as in torch")
        for side, results in found.items():
            singles, in_batches = (
                statistics.median(time for result in results for time in result["times"][part])
                for part in (slice(options.texts), slice(options.texts, None))
            )
            same = sum(without(row, "probability") == one for row, one in zip(results[0]["answers"], wanted))
            figures = f"{singles:>7.2f} ms{in_batches:>10.1f} ms{1000 * SIZE / in_batches:>9.0f}"
            print(f"{side:<18}{figures}  {same} of {len(texts)}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="checkpoint folder, such as output/atis/checkpoints/best")
    parser.add_argument("--data_path", default="", help="processed folder with a dev and a test part")
    parser.add_argument("--openvino", default="", help="Python of an environment with onnxruntime-openvino")
    parser.add_argument("--texts", type=int, default=200, help="number of single texts to time in a round")
    parser.add_argument("--batches", type=int, default=20, help="number of batches to time in a round")
    parser.add_argument("--rounds", type=int, default=3, help="number of times each side is measured")
    for name in ("--side", "--rows"):  # for the processes that this one starts
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        return measure(options)
    if not (Path(options.data_path) / "labels.json").exists():
        parser.error("--data_path must be a processed folder")
    compare(options)


if __name__ == "__main__":
    main()
