"""Trains setfit on a JSONL file and scores it, for comparison in benchmarks/few_labels.py, in a separate environment.

    python -m venv setfit_env && setfit_env/bin/pip install setfit==1.2.0 "transformers<5"
    setfit_env/bin/python benchmarks/setfit_peer.py --data FOLDER --pretrain_model_path DIR --output scores.json

FOLDER has train.jsonl, tuning.jsonl, dev.jsonl and test.jsonl with rows of `text` and `label`. All options are
setfit's defaults (batch size 16, one epoch over all pairs of texts, with the rarer kind of pairs oversampled, logistic
regression as head), unless --num_iterations sets the number of pairs per text and kind (R in the paper). --max_steps
limits the steps. Also scores the predictions after multiplying the probabilities by p_dev(c) / p_train(c), with the
label frequencies of tuning.jsonl, like --few_shot (engine/tricks/few_labels.py); setfit itself does not use dev.
"""

import argparse
import json
import resource
from collections import Counter
from pathlib import Path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pretrain_model_path", required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--num_iterations", type=int)
    parser.add_argument("--max_steps", type=int, default=-1)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()

    import torch
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    torch.set_num_threads(1)
    splits = {
        split: [json.loads(line) for line in (options.data / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        for split in ("train", "tuning", "dev", "test")
    }
    work = options.output.parent / f"{options.output.stem}.setfit"
    arguments = TrainingArguments(
        output_dir=str(work),
        seed=options.seed,
        num_iterations=options.num_iterations,
        max_steps=options.max_steps,
        save_strategy="no",
        logging_steps=10**6,
        show_progress_bar=False,
        report_to="none",
    )
    torch.manual_seed(options.seed)
    model = SetFitModel.from_pretrained(options.pretrain_model_path, trust_remote_code=False)
    train = Dataset.from_list([{"text": row["text"], "label": row["label"]} for row in splits["train"]])
    trainer = Trainer(model=model, args=arguments, train_dataset=train)
    trainer.train()
    used = resource.getrusage(resource.RUSAGE_SELF)
    result = {"seconds": used.ru_utime + used.ru_stime, "steps": trainer.st_trainer.state.global_step}
    classes = [str(label) for label in model.model_head.classes_]
    tuning, sample = (Counter(row["label"] for row in splits[split]) for split in ("tuning", "train"))
    factors = torch.tensor([(tuning[label] + 1) / (sample[label] + 1) for label in classes])
    for split in ("dev", "test"):
        rows = splits[split]
        chances = torch.as_tensor(model.predict_proba([row["text"] for row in rows], show_progress_bar=False))
        for name, scores in ((split, chances), (f"{split}_with_frequencies", chances * factors)):
            predicted = [classes[i] for i in scores.argmax(1).tolist()]
            result[name] = sum(label == row["label"] for label, row in zip(predicted, rows)) / len(rows)
    options.output.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
