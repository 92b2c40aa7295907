"""Three LoRA adapters of ranks 2, 4 and 8 on one small BERT: from PEFT's own folders to a folder of transformers.

    python examples/lora_adapters.py --out lora

First it makes what you would already have: a base, adapters that PEFT fine-tuned and saved, data. Then come a suite
file, four commands, and checks that nothing was lost on the way.
"""

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import peft
import torch
import torch.nn.functional as F
import transformers

from diagnostics import cli
from merging import artifact, load_suite
from merging.task import accuracy, score_task

TASKS = {
    "mood": {"bad": "dull poor sad", "good": "fine great happy"},
    "topic": {"film": "actor screen scene", "book": "page author novel", "song": "singer tune chorus"},
    "place": {"home": "kitchen sofa garden", "away": "beach hotel airport"},
}
FILLERS = ["the", "a", "was", "and", "we", "it", "very", "then", "there", "quite", "saw", "some"]
ADAPTERS: dict[str, dict[str, Any]] = {
    "mood": {"r": 2, "task_type": "SEQ_CLS"},
    "topic": {"r": 4, "task_type": "SEQ_CLS", "use_rslora": True},
    "place": {"r": 8, "modules_to_save": ["classifier", "pooler"]},
}
SUITE = """\
name: lora-adapters
model: {kind: hf_text, base: base, max_length: 16}
splits: {validation: {calibration: 0.5}}   # half of the validation examples, without their labels
tasks:
"""
TASK = """\
  - name: NAME
    expert: NAME   # the folder that PEFT saved
    classes: CLASSES
    data: {train: NAME/train.jsonl, validation: NAME/validation.jsonl, test: NAME/test.jsonl}
"""


def make_base(folder: Path) -> None:
    """Save a small BERT of random weights, and its tokenizer."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *FILLERS]
    words += [word for classes in TASKS.values() for signs in classes.values() for word in signs.split()]
    transformers.BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)
    size: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    size |= {"intermediate_size": 128, "vocab_size": len(words), "max_position_embeddings": 32}
    transformers.BertModel(transformers.BertConfig(initializer_range=0.1, **size)).save_pretrained(folder)


def write_data(folder: Path, task: str, count: int) -> None:
    """Write sentences whose class is told by one of their words; words of the other tasks are noise."""
    generator, rows = random.Random(task), {}  # by text, so that no two splits share one
    while len(rows) < 3 * count:
        chosen = {name: generator.choice(list(classes)) for name, classes in TASKS.items()}
        words = [generator.choice(TASKS[name][label].split()) for name, label in chosen.items()]
        words += generator.choices(FILLERS, k=generator.randint(2, 6))
        text = " ".join(generator.sample(words, len(words)))
        rows[text] = json.dumps({"text": text, "label": chosen[task]}) + "\n"
    for index, split in enumerate(("train", "validation", "test")):
        (folder / f"{split}.jsonl").write_text("".join(list(rows.values())[index * count : (index + 1) * count]))


def read(folder: Path, task: str, split: str, tokenizer: Path) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the tokens of a split and its class numbers."""
    rows = [json.loads(line) for line in (folder / task / f"{split}.jsonl").read_text().splitlines()]
    encode = transformers.AutoTokenizer.from_pretrained(tokenizer)
    tokens = encode([row["text"] for row in rows], padding=True, return_tensors="pt")
    return dict(tokens), torch.tensor([list(TASKS[task]).index(row["label"]) for row in rows])


def classifier(folder: Path, **options: Any) -> Any:
    """Return a classifier of transformers; where the folder holds a base alone, with a new head."""
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder, **options)


def fine_tune(folder: Path, task: str, steps: int) -> None:
    """Train an adapter and the head with it; save what PEFT saves."""
    settings = peft.LoraConfig(lora_alpha=16, target_modules=r".*layer.*\.(query|value|dense)", **ADAPTERS[task])
    model: Any = peft.get_peft_model(classifier(folder / "base", num_labels=len(TASKS[task])), settings).train()
    tokens, labels = read(folder, task, "train", folder / "base")
    adam = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-3)
    for _ in range(steps):
        rows = torch.randint(len(labels), (16,))
        loss = F.cross_entropy(model(**{name: value[rows] for name, value in tokens.items()}).logits, labels[rows])
        adam.zero_grad()
        loss.backward()
        adam.step()
    model.save_pretrained(folder / task)


def mergebound(*arguments: Any) -> None:
    """Run a command as a shell would; stop where it fails."""
    print("\n$ mergebound", *arguments, flush=True)
    if status := cli.main([str(argument) for argument in arguments]):
        sys.exit(status)


def main() -> None:
    """Make adapters, merge them, and compare with what PEFT and transformers say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("lora"), help="a new folder for all that is written")
    parser.add_argument("--steps", type=int, default=150, help="steps of each adapter")
    arguments = parser.parse_args()
    out, made = arguments.out, arguments.out / "out.pt"
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)  # small models are fastest on one
    torch.manual_seed(0)
    make_base(out / "base")
    for task in TASKS:
        (out / task).mkdir()
        write_data(out / task, task, count=200)
        fine_tune(out, task, arguments.steps)

    parts = [TASK.replace("NAME", task).replace("CLASSES", f"[{', '.join(TASKS[task])}]") for task in TASKS]
    (out / "suite.yaml").write_text(SUITE + "".join(parts), encoding="utf-8")
    print((out / "suite.yaml").read_text())
    mergebound("suite", "check", out / "suite.yaml")
    mergebound("merge", "--suite", out / "suite.yaml", "--method", "average", "--out", made)
    mergebound("report", "--merged", made, "--out", out / "report", "--sections", "accuracy", "certificates")
    mergebound("export", made, "--to", out / "merged", "--report", out / "report/report.json")

    print()
    suite, merged = load_suite(out / "suite.yaml"), artifact.load(made).merged
    for index, task in enumerate(suite.tasks):
        fresh, place = classifier(out / "base", num_labels=len(TASKS[task.name])), out / "merged" / task.name
        adapted: Any = peft.PeftModel.from_pretrained(fresh, out / task.name).merge_and_unload()
        for what, model, tokenizer, params in (
            ("expert, by peft's merge_and_unload", adapted, out / "base", suite.task_vectors.expert(index)),
            ("merge, loaded back by transformers", classifier(place), place, merged),
        ):
            tokens, labels = read(out, task.name, "test", tokenizer)
            own = model.eval()(**tokens).logits.detach()
            other = (own - score_task(task, params, task.test.inputs, "test", what)).abs().max()
            right = f"{100 * accuracy(own, labels):.2f} % right, scores up to {own.abs().max():.2g}"
            print(f"{task.name}: {what}: {right}; here other by {other:.1e}")


if __name__ == "__main__":
    main()
