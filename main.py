"""Fine-tunes a BERT-like encoder, or a small one from scratch, on text classification, tagging, or several tasks jointly.

    python main.py --do_train --do_eval --do_predict
    python main.py --do_train --do_eval --data_path dataset/NAME --pretrain_model_path bert-base-uncased

This file is the table of contents: each step is one call into the room that does it. Edit here when the order changes.
"""

import json
import logging
import signal
import sys
from pathlib import Path

from config import Config, seed_torch
from engine.command_line import UserError, os_error_line, parse_args
from engine.device import keep_freed_memory
from engine.run_folder import Interrupted, claim_run_dir
from logging_config import get_logger


def main(config):
    # Imported here, so that --help and a mistaken flag answer at once.
    import data_process
    import metrics
    from data_loader import MyDataLoader, MyDataset, build_loaders, training_texts
    from engine.device import to_device
    from engine.features import Featurizer
    from engine.tokenizer import load_tokenizer
    from model_utils import build_model, load_checkpoint, parameter_groups
    from preprocess import schema
    from trainer import Trainer, build_optimizer, build_scheduler, prepare_inputs
    from tricks import build_tricks

    # Everything that can be checked before the slow part
    if not (config.do_train or config.do_eval or config.do_predict):
        raise UserError("nothing to do: add --do_train, --do_eval or --do_predict")
    device, data_path = to_device(config.device), config.data_dir
    texts = data_process.read_texts(config.predict_file, config) if config.do_predict and config.predict_file else None
    needs_data = config.do_train or config.do_eval or not texts
    if needs_data and config.data_path == Config.data_path and config.fold is None:
        data_process.make_sample(data_path)

    with claim_run_dir(config) as run_dir:
        log_path = Path(config.log_output_path or run_dir) / config.log_output_file
        logger = get_logger(log_path, logging.DEBUG if config.debug else logging.INFO)
        seed_torch(config.random_seed, config.deterministic)
        limit = 64 if config.debug else None

        if device.type == "cpu":
            keep_freed_memory()

        if config.do_train:
            # Data
            tasks = schema.load_labels(data_path)
            tokenizer = load_tokenizer(config, lambda: training_texts(data_path / "train.jsonl"))
            encoder = Featurizer(tokenizer, tasks, config.max_length, config.window_stride, config.truncation)
            train_loader, dev_loader = build_loaders(config, data_path, encoder, device, limit)

            # Model, optimizer, schedule
            model = build_model(config, tokenizer, tasks).to(device)
            tricks = build_tricks(model, config)
            optimizer = build_optimizer(tricks.groups(parameter_groups(model, config)), device)
            scheduler = build_scheduler(optimizer, config, -(-len(train_loader) // config.gradient_accumulation_steps))
            trainer = Trainer(
                model, tokenizer, tasks, config, device, train_loader, dev_loader, optimizer, scheduler, tricks
            )

            # Train
            trainer.resume()
            trainer.train()

        if config.do_eval or config.do_predict:
            # The best checkpoint, as a new process on another machine would load it
            model, tokenizer, tasks, trained = load_checkpoint(Path(config.checkpoint or run_dir / "checkpoints/best"))
            encoder = Featurizer(tokenizer, tasks, trained.max_length, trained.window_stride, trained.truncation)
            trainer = Trainer(model, tokenizer, tasks, config, device)

        if config.do_eval:
            schema.check_same_labels(data_path, tasks)
            scores, per_label = {}, {}
            for path in (path for path in (data_path / "dev.jsonl", data_path / "test.jsonl") if path.exists()):
                scores[path.stem] = trainer.eval(MyDataLoader(MyDataset(path, encoder, limit), config.eval_batch_size))
                per_label[path.stem] = metrics.report(tasks, *trainer.answers)
                for name, found in per_label[path.stem].items():
                    logger.info(f"{path.stem}, {name}:\n{metrics.table(found)}")
                logger.info(
                    f"{path.stem}: " + "  ".join(f"{name} {value:.4f}" for name, value in scores[path.stem].items())
                )
            for name, value in (("report.json", per_label), ("eval.json", scores)):
                (run_dir / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

        if config.do_predict:
            source = prepare_inputs(texts, tasks) if texts else schema.part_of(data_path, "test")
            predict_set = MyDataset(source, encoder, None if texts else limit)
            trainer.predict(
                MyDataLoader(predict_set, config.eval_batch_size), config.predict_output or run_dir / "predictions.csv"
            )


def command(argv=None, run=main):
    """The command line: runs `main` and returns the exit code. A mistake is one line and 2; a signal 128 + its number."""
    config = parse_args(Config, argv)
    mistake = None
    try:
        run(config)
    except UserError as error:
        mistake = error
    except OSError as error:
        mistake = os_error_line(error)
    except Interrupted as interrupted:
        return 128 + interrupted.signal_number
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        mistake = (
            "the GPU's memory is too small: lower --batch_size and raise --gradient_accumulation_steps, lower --max_length, "
            "or use --precision bf16; the last checkpoint is intact"
        )
    if mistake:
        print(f"error: {mistake}", file=sys.stderr)
    return 2 if mistake else 0


if __name__ == "__main__":
    sys.exit(command())
