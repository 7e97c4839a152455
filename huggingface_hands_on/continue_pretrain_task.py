"""Masked-language-model training on your own texts: adapts an encoder to a domain, or makes a new one.

    python huggingface_hands_on/continue_pretrain_task.py --input TEXTS --pretrain_model_path DIR_OR_HUB \\
        --output_dir models/mine
    … --pretrain_model_path models/tokenizer --from_scratch --config mini      makes a new encoder for that tokenizer

The result is a folder for `main.py --pretrain_model_path models/mine`. A run that was killed goes on with the same
command. Edit here when another task than masked words should teach the encoder: `mask`, then
`MaskedTrainer.compute_loss`.
"""

import hashlib
import json
import os
import shutil
import sys
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, the repository is one folder up

from engine import files
from engine.command_line import UserError, first_line, option, require_range, require_seed, run_command
from engine.run_folder import changed_options, lock_folder
from engine.signals import StopSignals
from engine.tags import IGNORE
from huggingface_hands_on.corpus import CorpusConfig

# layers, width (Turc et al., 2019)
SIZES = {"tiny": (2, 128), "mini": (4, 256), "small": (4, 512), "medium": (8, 512), "base": (12, 768)}


@dataclass
class PretrainConfig(CorpusConfig):
    """Options of `huggingface_hands_on/continue_pretrain_task.py`."""

    pretrain_model_path: str = option(
        "", "encoder to go on from: folder or hub name; with --from_scratch only its tokenizer is taken"
    )
    from_scratch: bool = option(False, "pretrain a new encoder with the tokenizer of --pretrain_model_path")
    config: str = option("mini", "size of a new encoder: layers and width of Google's small BERTs", choices=list(SIZES))
    new_tokens: str = option(
        "", "words of your domain to add to the vocabulary: comma-separated, or a file with one a row"
    )
    max_length: int = option(128, "length of a block in sub-tokens; longer texts go on in the next block")
    packing: bool = option(True, "fill each block with as many texts as fit")
    whole_word: bool = option(True, "mask whole words; Chinese words as rjieba cuts them")
    mlm_probability: float = option(0.15, "share of the words that are masked, anew in each epoch")
    epochs: int = option(10, "passes over the texts", aliases=["num_train_epochs"])
    batch_size: int = option(32, "blocks in a micro-batch")
    gradient_accumulation_steps: int = option(1, "micro-batches in one optimizer step")
    lr: float | None = option(
        None, "peak learning rate (default: by the encoder's width; 1e-3 from scratch)", aliases=["learning_rate"]
    )
    weight_decay: float = option(0.01, "AdamW's decoupled decay")
    early_stop_patience: int = option(3, "stop after so many evaluations without a lower held-out loss; 0: never")
    eval_steps: int = option(0, "evaluate and save every N optimizer steps; 0: every epoch")
    device: str = option("auto", "auto takes a GPU if there is one", choices=["auto", "cpu", "cuda"])
    precision: str = option("fp32", "autocast to half precision", choices=["fp32", "bf16", "fp16"])
    random_seed: int = option(666, "seed of everything random", aliases=["seed"])

    def __post_init__(self):
        super().__post_init__()
        require_range(self, 1, "epochs batch_size gradient_accumulation_steps")
        require_range(self, 0, "weight_decay early_stop_patience eval_steps")
        require_range(self, 8, "max_length")
        require_seed(self.random_seed)
        if self.lr is not None and not 0 < self.lr < 1:
            raise UserError(f"--lr={self.lr} must lie between 0 and 1")
        if not 0 < self.mlm_probability < 1:
            raise UserError(f"--mlm_probability={self.mlm_probability} must lie between 0 and 1")
        if not self.pretrain_model_path:
            raise UserError(
                "--pretrain_model_path is needed: the encoder to go on from, or with --from_scratch the "
                "tokenizer's folder"
            )


MOST_HELD_OUT = 5000  # blocks to measure on


# ---- texts -> blocks -------------------------------------------------------------------------------------------------


def word_numbers(text):
    """For each character of a text the number of its word, so that the pieces of a word can be masked together.

    Chinese words are those that rjieba finds; each kana, mark of punctuation or other sign is a word.
    """
    import numpy as np
    import regex
    import rjieba

    from engine.text import split_text

    starts = np.zeros(len(text) + 1, int)
    for _, start, _ in split_text(text, "word"):
        starts[start] = 1
    for run in regex.finditer(r"\p{Han}{2,}", text):
        place = run.start()
        for word in rjieba.cut(run.group()):
            starts[place + 1 : place + len(word)] = 0
            place += len(word)
    return starts.cumsum()


def encode_texts(texts, tokenizer, whole_word):
    """Yields (token ids, word number of each) for each text, without special tokens. Words given apart stay apart."""
    from engine.text import join_tokens

    texts = iter(texts)
    while chunk := list(islice(texts, 1000)):
        for kind, same in groupby(chunk, type):
            same = list(same)
            encoded = tokenizer(same, is_split_into_words=kind is list, add_special_tokens=False, verbose=False)
            for text, encoding in zip(same, encoded.encodings):
                if not whole_word:
                    words = range(len(encoding.ids))
                elif kind is list:
                    joined, spans = join_tokens(text, "word")
                    numbers = word_numbers(joined)
                    words = [int(numbers[spans[word][0]]) for word in encoding.word_ids]
                else:
                    numbers = word_numbers(text)
                    words = [int(numbers[max(start, end - 1)]) for start, end in encoding.offsets]
                yield encoding.ids, words


def blocks(texts, tokenizer, max_length, packing=True, whole_word=True):
    """Yields {"input_ids", "words"}: as many of [CLS] text [SEP] as fit into max_length tokens; "words" is -1 at
    special tokens.

    Nothing is lost: of a text that is too long the rest is a text of its own.
    """
    room, ids, words = max_length - 2, [], []
    for text_ids, text_words in encode_texts(texts, tokenizer, whole_word):
        for start in range(0, len(text_ids), room):
            part = [tokenizer.cls_token_id, *text_ids[start : start + room], tokenizer.sep_token_id]
            if ids and (not packing or len(ids) + len(part) > max_length):
                yield {"input_ids": ids, "words": words}
                ids, words = [], []
            first = max(words, default=-1) + 1
            ids = ids + part
            words = [*words, -1, *(first + word for word in text_words[start : start + room]), -1]
    if ids:
        yield {"input_ids": ids, "words": words}


def batch_of(rows, tokenizer, first_position=0):
    """Rows of `blocks`, perhaps with "labels" -> tensors for the model. Texts of a block do not see each other, and
    each has its positions from the first on, so that packing changes nothing but the speed."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    fill = {"input_ids": tokenizer.pad_token_id, "words": -2, "labels": IGNORE}
    batch = {name: pad_sequence([torch.tensor(row[name]) for row in rows], True, fill[name]) for name in rows[0]}
    begins = (batch["words"] == -1) & (batch["input_ids"] == tokenizer.cls_token_id)
    text = begins.cumsum(1).masked_fill(batch["words"] == -2, 0)
    places = torch.arange(begins.shape[1]).expand_as(text)
    batch["position_ids"] = places - torch.where(begins, places, 0).cummax(1).values + first_position
    if text.max() == 1:
        batch["attention_mask"] = text
    else:
        batch["attention_mask"] = (text[:, :, None] == text[:, None, :]).unsqueeze(1)  # (B, 1, L, L)
    return batch


def mask(collator, batch):
    """Masks words of a batch of `batch_of` by Hugging Face's collator, and adds the labels.

    The collator tells words by gaps between the tokens' offsets: it gets offsets with a gap wherever the word number
    changes.
    """
    import torch

    words = batch["words"].clamp(min=-1)
    starts = torch.arange(words.shape[1]) + words.clamp(min=0)
    ids, labels = collator.torch_mask_tokens(
        batch["input_ids"].clone(), (words < 0).long(), torch.stack([starts, starts + 1], 2)
    )
    return batch | {"input_ids": ids, "labels": labels}


def check_model(model, tokenizer, max_length, packing):
    """UserError unless the model computes logits for chosen places alone and, if packing, keeps the texts of a block
    apart.

    Two texts that fill a block together must get the logits that each gets alone.
    """
    import torch

    from engine.encoders import first_position
    from huggingface_hands_on.masked_training import inputs_of, masked_logits

    generator = torch.Generator().manual_seed(0)
    half = max(1, max_length // 2 - 2)
    words = [number for number in range(len(tokenizer)) if number not in tokenizer.all_special_ids] or [
        tokenizer.mask_token_id
    ]
    texts = []
    for _ in range(2):
        chosen = [words[int(place)] for place in torch.randint(len(words), (half,), generator=generator)]
        texts.append([tokenizer.cls_token_id, *chosen, tokenizer.sep_token_id])
    row = {"input_ids": [*texts[0], *texts[1]], "words": 2 * [-1, *range(half), -1]}
    packed = batch_of([row], tokenizer, first_position(model))
    training, kind, right = model.training, model.config.model_type, False
    model.eval()
    with torch.no_grad():
        try:
            apart = torch.cat([model(input_ids=torch.tensor([ids])).logits[0] for ids in texts])
            chosen = torch.zeros(1, len(texts[0]), dtype=torch.bool)
            chosen[0, 1] = True
            few = masked_logits(
                model, {"input_ids": torch.tensor([texts[0]]), "attention_mask": torch.ones_like(chosen).long()}, chosen
            )
            right = torch.allclose(few, apart[1:2], atol=1e-3 * float(apart.std()))
        except Exception as error:  # whatever an unusual architecture raises
            raise UserError(
                f"{kind} cannot be trained on masked words here ({first_line(error)}); use a BERT-like model"
            ) from None
        if not right:
            raise UserError(f"{kind} computes its logits in another way than this command needs; use a BERT-like model")
        if packing:
            right = False
            with suppress(Exception):
                logits = model(**inputs_of(model, packed)).logits[0]
                right = torch.allclose(logits, apart, atol=1e-3 * float(apart.std()))
            if not right:
                raise UserError(f"{kind} cannot keep the texts of a block apart; add --no_packing")
    model.train(training)


def build_sets(config, tokenizer, collator, texts, key):
    """(train, held out) as memory-mapped datasets; the words of the held-out one are masked once, so that losses can be
    compared."""
    import torch
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    def rows(side):
        return blocks(texts[side](), tokenizer, config.max_length, config.packing, config.whole_word)

    def masked():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.random_seed)
            for row in islice(rows(1), MOST_HELD_OUT):
                batch = mask(collator, batch_of([row], tokenizer))
                yield {name: batch[name][0].tolist() for name in ("input_ids", "words", "labels")}

    cache = Path(config.output_dir) / ".cache"
    if cache.exists() and (reason := files.verify(cache)):  # without a manifest it is of a run that was killed early
        if (cache / "manifest.json").exists():
            print(f"{cache}: damaged ({reason}); the texts are cut into blocks anew")
        shutil.rmtree(cache)
    try:
        train = Dataset.from_generator(rows, gen_kwargs={"side": 0}, cache_dir=str(cache), fingerprint=f"train-{key}")
        held_out = Dataset.from_generator(masked, cache_dir=str(cache), fingerprint=f"held-out-{key}")
        files.seal(cache)
    except DatasetGenerationError as error:  # what was wrong in the texts, or with the disk, is inside
        cause = error
        while cause.__cause__ or cause.__context__:
            cause = cause.__cause__ or cause.__context__
            if isinstance(cause, UserError | OSError):
                raise cause from None
        raise UserError(f"{config.input}: no text leaves a token ({first_line(error)})") from None
    if not any(label != IGNORE for row in held_out for label in row["labels"]):
        raise UserError(
            f"{config.input}: too few texts to hold out: not one word of them is masked; raise --held_out_ratio"
        )
    return train, held_out


# ---- model -----------------------------------------------------------------------------------------------------------


def load_model(config):
    """(model with a head for masked words, tokenizer). UserError if they cannot be trained so."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    from engine.encoders import bert_config

    name = config.pretrain_model_path
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # a foreign folder can make transformers raise anything
        raise UserError(f"--pretrain_model_path {name}: no tokenizer loads from it ({first_line(error)})") from None
    needed = ("mask_token", "pad_token", "cls_token", "sep_token")
    missing = [kind for kind in needed if getattr(tokenizer, kind) is None]
    if missing or not tokenizer.is_fast:
        lacking = f"its tokenizer has no {', '.join(missing) or 'fast version'}"
        raise UserError(f"--pretrain_model_path {name}: {lacking}; use a BERT-like model")
    if config.from_scratch:
        shape = bert_config(tokenizer, *SIZES[config.config], config.max_length)
        return AutoModelForMaskedLM.from_config(shape, trust_remote_code=False), tokenizer
    return load_encoder(config, tokenizer), tokenizer


def load_encoder(config, tokenizer):
    """A pretrained model with a head for masked words, a new one if it came without."""
    from transformers import AutoConfig, AutoModelForMaskedLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

    from engine.encoders import num_positions

    name, named = config.pretrain_model_path, f"--pretrain_model_path {config.pretrain_model_path}"
    try:
        shape = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        raise UserError(f"{named}: no model in it ({first_line(error)}); --from_scratch makes a new one") from None
    if type(shape) not in MODEL_FOR_MASKED_LM_MAPPING:
        raise UserError(f"{named}: {shape.model_type} cannot fill in masked words; use an encoder such as BERT")
    try:
        options = dict(output_loading_info=True, dtype="float32")
        model, info = AutoModelForMaskedLM.from_pretrained(name, trust_remote_code=False, **options)
    except Exception as error:
        raise UserError(f"{named}: no encoder loads from it ({first_line(error)})") from None
    prefix = model.base_model_prefix
    missing = [key for key in info["missing_keys"] if key.startswith(prefix) and "pooler" not in key]
    if missing:
        raise UserError(f"{named}: has no weights for {len(missing)} tensors of its own config, such as {missing[0]}")
    if info["missing_keys"]:
        print(f"{name} has no head for masked words: it gets a new one, so its perplexity before training says little")
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise UserError(f"{named}: its tokenizer has more entries than its embedding; they do not belong together")
    if (longest := num_positions(model)) and config.max_length > longest:
        raise UserError(f"--max_length={config.max_length} is more than the {longest} positions of this encoder")
    return model


def add_words(words, model, tokenizer):
    """Adds domain words as tokens of their own; each begins as the mean of the sub-tokens that it was cut into. -> how
    many.

    Words of Chinese characters match anywhere in a text, other words only as whole words. A word of which nothing was
    known begins at random.
    """
    import regex
    import torch
    from tokenizers import AddedToken

    pieces, normalizer = {}, tokenizer.backend_tokenizer.normalizer
    for word in words:
        chinese = bool(regex.search(r"\p{Han}", word))
        word = word if chinese or normalizer is None else normalizer.normalize_str(word).strip()
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(ids) > 1 or ids == [tokenizer.unk_token_id]:  # else it is one token already
            pieces[AddedToken(word, single_word=not chinese, normalized=not chinese)] = ids
    tokenizer.add_tokens(list(pieces))
    numbers = {tokenizer.convert_tokens_to_ids(token.content): ids for token, ids in pieces.items()}
    if numbers:
        size = max(len(tokenizer), model.get_input_embeddings().num_embeddings)
        try:
            model.resize_token_embeddings(size, mean_resizing=False)
            output = model.get_output_embeddings()
            assert output.weight.shape[0] == size and (output.bias is None or len(output.bias) == size)
        except (TypeError, AssertionError):
            raise UserError(
                f"--new_tokens: the vocabulary of {model.config.model_type} cannot be made larger here"
            ) from None
        tables = [model.get_input_embeddings().weight, output.weight, *([] if output.bias is None else [output.bias])]
        with torch.no_grad():
            for table in {table.data_ptr(): table for table in tables}.values():
                for number, ids in numbers.items():
                    known = [item for item in ids if item != tokenizer.unk_token_id]
                    if known:
                        table[number] = table[known].mean(0)
    return len(numbers)


def read_words(source, encoding):
    """'a,b' or a file with a word a row -> [words]"""
    from preprocess.readers import read_rows

    words = [part.strip() for part in source.split(",")]
    with suppress(OSError):  # a long list is no path
        if Path(source).is_file():
            words = [row.strip() for _, row in read_rows(source, encoding)]
        elif len(words) == 1 and (os.sep in source or Path(source).suffix in (".txt", ".csv", ".tsv")):
            raise UserError(f"--new_tokens {source}: no such file")
    return list(dict.fromkeys(word for word in words if word))


def build_trainer(model, collator, sets, config, stop=None):
    """Hugging Face's Trainer for masked words. stop: an engine.signals.StopSignals."""
    from transformers import EarlyStoppingCallback

    from engine.encoders import first_position
    from huggingface_hands_on.masked_training import MaskedTrainer, SealCheckpoints, held_out_scores, training_arguments

    first = first_position(model)

    def collate(rows):
        batch = batch_of(rows, collator.tokenizer, first)
        return batch if "labels" in batch else mask(collator, batch)

    patience = config.early_stop_patience
    trainer = MaskedTrainer(
        model=model,
        args=training_arguments(config, model.config.hidden_size),
        data_collator=collate,
        train_dataset=sets[0],
        eval_dataset=sets[1],
        compute_metrics=held_out_scores,
        callbacks=[SealCheckpoints(stop), *([EarlyStoppingCallback(patience)] if patience else [])],
    )
    trainer.model_accepts_loss_kwargs = True  # compute_loss divides by the labels of the whole optimizer step
    return trainer


# ---- the run ---------------------------------------------------------------------------------------------------------


RESUME_SAFE = ("device", "output_dir")  # options that may change when a run goes on


@contextmanager
def claim(config, fingerprint):
    """Makes the output folder this run's own. UserError if it holds anything but the same run, unfinished."""
    from huggingface_hands_on.corpus import require_free_folder

    folder, now = Path(config.output_dir), asdict(config) | {"texts, tokenizer and first weights": fingerprint}
    if (folder / "args.json").exists():
        refuse_finished(folder)
    else:
        require_free_folder(folder)
    with lock_folder(folder, "choose another --output_dir"):
        if newest_checkpoint(folder / "checkpoints"):
            before = json.loads((folder / "args.json").read_text(encoding="utf-8"))
            if changes := changed_options(before, now, RESUME_SAFE):
                raise UserError(
                    f"{folder} holds an unfinished run, but {'; '.join(changes)}: choose another --output_dir"
                )
        else:
            for leftover in ("before.json", ".cache", "checkpoints"):
                shutil.rmtree(folder / leftover, ignore_errors=True)
                (folder / leftover).unlink(missing_ok=True)
            files.write_json(folder / "args.json", now)
        yield


def refuse_finished(folder):
    if (folder / "pretraining.json").exists():
        for leftover in ("checkpoints", ".cache"):  # of a run that was killed while it cleaned up
            shutil.rmtree(folder / leftover, ignore_errors=True)
        raise UserError(f"{folder} already holds a finished model; choose another --output_dir")


def newest_checkpoint(root):
    """The newest checkpoint that is whole, or None; those that a kill or a fault left damaged are removed."""

    for folder in sorted(root.glob("checkpoint-*"), key=lambda path: -int(path.name.rpartition("-")[2])):
        if files.verify(folder) is None:
            return str(folder)
        shutil.rmtree(folder)
    return None


def digest_of(model, tokenizer, texts):
    """Changes with whatever a resumed run must have in common with the one that was stopped."""
    digest = hashlib.sha256(f"{texts}{tokenizer.backend_tokenizer.to_str()}".encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:20]


def main(config):
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one GPU; more would be used as one big one
    import torch
    from transformers import logging, set_seed

    from huggingface_hands_on.corpus import read_corpus

    refuse_finished(Path(config.output_dir))
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device here; use --device cpu or auto")
    words = read_words(config.new_tokens, config.encoding)
    train, held_out, texts = read_corpus(config)
    logging.set_verbosity_error()  # what it would log about missing heads is checked in load_model
    set_seed(config.random_seed)
    model, tokenizer = load_model(config)
    added = add_words(words, model, tokenizer)
    if words:
        rest = len(words) - added
        print(
            f"--new_tokens: {added} words added"
            + (f"; {rest} are tokens already, or the same as another" if rest else "")
        )
    check_model(model, tokenizer, config.max_length, config.packing)
    fingerprint = digest_of(model, tokenizer, texts)
    with claim(config, fingerprint), StopSignals(partial(print, file=sys.stderr)) as stop:
        pretrain(config, model, tokenizer, (train, held_out), fingerprint, stop, added)


def pretrain(config, model, tokenizer, texts, fingerprint, stop, words_added):
    """The training itself, from the newest checkpoint if there is one, and its result in --output_dir."""
    folder = Path(config.output_dir)
    collator = masking_collator(config, tokenizer)
    key = hashlib.sha256(f"{fingerprint}{asdict(config)}".encode()).hexdigest()[:20]
    sets = build_sets(config, tokenizer, collator, texts, key)
    trainer = build_trainer(model, collator, sets, config, stop)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    blocks = f"{len(sets[0])} blocks to train on, {len(sets[1])} held out"
    print(f"{millions:.1f} M parameters on {trainer.args.device}; {blocks}")

    before_path, start = folder / "before.json", newest_checkpoint(folder / "checkpoints")
    if not before_path.exists():  # of the untouched model: a resumed run has it already
        files.write_json(before_path, scores_of(trainer))
    before = json.loads(before_path.read_text(encoding="utf-8"))
    print(f"before: {shown(before)}")
    if start:
        print(f"going on from {start}")
    trainer.train(resume_from_checkpoint=start)
    if stop.number:
        print("stopped and saved; the same command goes on")
        stop.check()
    after = scores_of(trainer)
    lower = before["perplexity"] / after["perplexity"]
    print(f"after {trainer.state.epoch:.1f} epochs, the best: {shown(after)}, {lower:.2f} times lower")

    trainer.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    record = {"before": before, "after": after, "epochs": trainer.state.epoch, "words_added": words_added}
    record["blocks"] = [len(part) for part in sets]
    files.write_json(folder / "pretraining.json", record)  # last: the run is finished
    for leftover in (folder / "checkpoints", folder / ".cache"):
        shutil.rmtree(leftover)
    before_path.unlink()
    command = f"python main.py --do_train --do_eval --pretrain_model_path {folder} --data_path dataset/NAME"
    print(f"{folder} is ready: {command}")


def masking_collator(config, tokenizer):
    """80 % [MASK], 10 % another token, 10 % as it is (Devlin et al., 2019), of whole words too."""
    from transformers import DataCollatorForLanguageModeling

    kinds = dict(whole_word_mask=config.whole_word, mask_replace_prob=1, random_replace_prob=0)
    collator = DataCollatorForLanguageModeling(tokenizer, **kinds)
    # Set afterwards, as it refuses to replace whole words by other tokens
    collator.mlm_probability, collator.mask_replace_prob, collator.random_replace_prob = (
        config.mlm_probability,
        0.8,
        0.1,
    )
    return collator


def scores_of(trainer):
    return {
        name.removeprefix("eval_"): value
        for name, value in trainer.evaluate().items()
        if "masked" in name or "perplexity" in name
    }


def shown(scores):
    loss = f"loss {scores['masked_loss']:.4f} over {scores['masked_tokens']} masked tokens"
    return f"held-out perplexity {scores['perplexity']:.2f} ({loss})"


def command(argv=None):
    return run_command(main, PretrainConfig, argv)


if __name__ == "__main__":
    sys.exit(command())
