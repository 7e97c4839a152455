"""Fine-tunes a BERT-like encoder, or a small one from scratch, on text classification, tagging, or several tasks jointly.

    python main.py --do_train --do_eval --do_predict
    python main.py --do_train --do_eval --data_path dataset/NAME --pretrain_model_path bert-base-uncased

This file is the table of contents: each step is one call into the room that does it. Edit here when the order changes.
"""

import json
import logging
import os
import signal
import sys
from pathlib import Path

from config import Config, DataConfig, UserError, parse_args, seed_torch
from logging_config import get_logger


def main(config):
    # Imported here, so that --help and a mistaken flag answer at once.
    import checkpoint
    import data_process
    import run_folder
    from data_loader import Encoder, MyDataLoader, MyDataset, MyIterableDataLoader, MyIterableDataset, load_tokenizer, to_device
    from model_utils import build_model, parameter_groups
    from trainer import Trainer, build_optimizer, build_scheduler, with_tokens
    from tricks import build_tricks

    # Everything that can be checked before the slow part
    device = to_device(config.device, config.precision)
    data_path = Path(config.data_path)
    if config.data_path == Config.data_path and not (data_path / "labels.json").exists():
        data_process.process(DataConfig(input=str(Path(__file__).parent / "dataset/sample_raw"), output_dir=config.data_path))
    texts = data_process.read_texts(config.predict_file, config) if config.do_predict and config.predict_file else None

    with run_folder.locked(config) as run_dir:
        logger = get_logger(Path(config.log_output_path or run_dir) / config.log_output_file, logging.DEBUG if config.debug else logging.INFO)
        seed_torch(config.random_seed, config.deterministic)
        limit = 64 if config.debug else None

        if config.do_train:
            # Data
            tasks = data_process.load_labels(data_path)
            tokenizer = load_tokenizer(config, data_path / "train.jsonl")
            encoder = Encoder(tokenizer, tasks, config.max_length)
            if config.streaming:
                train_set = MyIterableDataset(data_path / "train.jsonl", encoder, config.batch_size, config.shuffle_buffer, config.random_seed, limit)
                train_loader = MyIterableDataLoader(train_set, config.num_workers, device.type == "cuda")
            else:
                train_set = MyDataset(data_path / "train.jsonl", encoder, limit)
                train_loader = MyDataLoader(train_set, config.batch_size, config.random_seed, config.num_workers, device.type == "cuda")
            dev_loader = MyDataLoader(MyDataset(data_path / "dev.jsonl", encoder, limit), config.eval_batch_size)

            # Model, optimizer, schedule
            model = build_model(config, tokenizer, tasks).to(device)
            optimizer = build_optimizer(parameter_groups(model, config), device)
            scheduler = build_scheduler(optimizer, config, -(-len(train_loader) // config.gradient_accumulation_steps))
            logger.info(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters on {device}; {len(train_set)} examples to train on, "
                        f"{len(dev_loader.dataset)} in dev; peak rates {', '.join(sorted({format(g['initial_lr'], '.1e') for g in optimizer.param_groups}))}")

            # Train
            trainer = Trainer(model, tokenizer, tasks, config, device, train_loader, dev_loader, optimizer, scheduler, build_tricks(model, config))
            trainer.resume()
            trainer.train()

        if config.do_eval or config.do_predict:
            # The best checkpoint, as a new process on another machine would load it
            model, tokenizer, tasks, trained = checkpoint.load(Path(config.checkpoint or run_dir / "checkpoints/best"))
            encoder = Encoder(tokenizer, tasks, trained.max_length)
            trainer = Trainer(model, tokenizer, tasks, config, device)

        if config.do_eval:
            data_process.check_same_labels(data_path, tasks)
            scores = {part: trainer.eval(MyDataLoader(MyDataset(data_path / f"{part}.jsonl", encoder, limit), config.eval_batch_size))
                      for part in ("dev", "test") if (data_path / f"{part}.jsonl").exists()}
            (run_dir / "eval.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
            for part, figures in scores.items():
                logger.info(f"{part}: " + "  ".join(f"{name} {value:.4f}" for name, value in figures.items()))

        if config.do_predict:
            source = with_tokens(texts, tasks) if texts else data_path / "test.jsonl"
            predict_set = MyDataset(source, encoder, None if texts else limit)
            trainer.predict(MyDataLoader(predict_set, config.eval_batch_size), config.predict_output or run_dir / "predictions.csv")


if __name__ == "__main__":
    options = parse_args(Config)
    try:
        main(options)
    except UserError as mistake:
        sys.exit(print(f"error: {mistake}", file=sys.stderr) or 2)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
