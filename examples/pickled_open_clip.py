"""Two experts that were pickled as whole modules, as published task vectors are: converted, merged, exported.

    python examples/pickled_open_clip.py --out clip

First it makes what you would already have: a CLIP of open_clip, image encoders fine-tuned from it and pickled, data.
Then come a suite file, the commands, and checks that nothing was lost on the way. Loading a pickle can run any code;
``mergebound convert`` runs none of it.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from diagnostics import cli
from merging import artifact, load_suite
from merging.suites.mini8 import FILES  # images that come with this package
from merging.task import accuracy, score_task

CLASSES = {
    "fashion_mnist": "t-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot",
    "kmnist": "o, ki, su, tsu, na, ha, ma, ya, re, wo",
}
TEMPLATES = ["a photo of {}.", "a small grey picture of {}."]
IMAGE = {"image_size": 28, "patch_size": 7, "layers": 3, "width": 64, "head_width": 16}
TEXT = {"context_length": 16, "layers": 2, "width": 32, "heads": 2}
MODEL: dict[str, Any] = {"embed_dim": 32, "vision_cfg": IMAGE, "text_cfg": TEXT}
SUITE = f"""\
name: pickled-clips
model: {{kind: open_clip, base: base}}   # the folder's open_clip_config.json says the architecture
templates: {json.dumps(TEMPLATES)}
tasks:
"""
TASK = """\
  - name: NAME
    expert: NAME.safetensors   # what mergebound convert wrote
    classes: [CLASSES]
    data:
      train: {path: NAME.npz, split: train}
      calibration: {path: NAME.npz, split: calibration, label: null}
      validation: {path: NAME.npz, split: validation}
      test: {path: NAME.npz, split: test}
"""


class ImageEncoder(nn.Module):
    """A CLIP without its text transformer, and its preprocessing: what repositories of task vectors pickle."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        clip, _, self.val_preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        self.model: Any = clip
        del self.model.transformer

    def forward(self, pixels: Tensor) -> Tensor:
        """Return unit embeddings [N, D]."""
        return self.model.encode_image(pixels, normalize=True)


def make_base(folder: Path) -> None:
    """Save a small CLIP of random weights, as folders of a hub are: configuration and safetensors."""
    folder.mkdir(parents=True)
    config = {"model_cfg": MODEL, "preprocess_cfg": {"mean": [0.3, 0.3, 0.3], "std": [0.35, 0.35, 0.35]}}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2))
    save_file(open_clip.CLIP(**MODEL).state_dict(), folder / "open_clip_model.safetensors")


def read(file: Path, split: str, preprocess: Any) -> tuple[Tensor, Tensor]:
    """Return pixels as open_clip prepares them, and labels."""
    with np.load(file) as arrays:
        pixels = torch.stack([preprocess(Image.fromarray(image)) for image in arrays[f"{split}_images"]])
        return pixels, torch.tensor(arrays[f"{split}_labels"])


@torch.no_grad()
def head(folder: Path, task: str) -> Tensor:
    """Return open_clip's zero-shot classifier [D, C] of a saved model, with its logit scale."""
    clip: Any = open_clip.create_model(f"local-dir:{folder}").eval()
    tokenizer, names = open_clip.get_tokenizer(f"local-dir:{folder}"), CLASSES[task].split(", ")
    return open_clip.build_zero_shot_classifier(clip, tokenizer, names, TEMPLATES) * clip.logit_scale.exp()


def fine_tune(folder: Path, task: str, steps: int) -> None:
    """Train an image encoder under the base's frozen head; pickle it as a whole."""
    encoder, classifier = ImageEncoder(folder / "base").train(), head(folder / "base", task)
    pixels, labels = read(folder / f"{task}.npz", "train", encoder.val_preprocess)
    adam = torch.optim.AdamW(encoder.model.visual.parameters(), 1e-3)
    for _ in range(steps):
        rows = torch.randint(len(labels), (64,))
        loss = nn.functional.cross_entropy(encoder(pixels[rows]) @ classifier, labels[rows])
        adam.zero_grad()
        loss.backward()
        adam.step()
    torch.save(encoder, folder / f"{task}.pt")


def mergebound(*arguments: Any) -> None:
    """Run a command as a shell would; stop where it fails."""
    print("\n$ mergebound", *arguments, flush=True)
    if status := cli.main([str(argument) for argument in arguments]):
        sys.exit(status)


def main() -> None:
    """Make experts, merge them, and compare with what open_clip says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("clip"), help="a new folder for all that is written")
    parser.add_argument("--steps", type=int, default=200, help="steps of each expert")
    arguments = parser.parse_args()
    out, made, text = arguments.out, arguments.out / "out.pt", SUITE
    torch.set_num_threads(1)  # small models are fastest on one
    torch.manual_seed(0)
    make_base(out / "base")
    for task, classes in CLASSES.items():
        with np.load(FILES / f"{task}.npz") as arrays:
            np.savez(out / f"{task}.npz", **{name: array[:1000] for name, array in arrays.items()})
        fine_tune(out, task, arguments.steps)
        mergebound("convert", out / f"{task}.pt", "--to", out / f"{task}.safetensors")
        text += TASK.replace("NAME", task).replace("CLASSES", classes)
    (out / "suite.yaml").write_text(text)
    mergebound("suite", "check", out / "suite.yaml")
    mergebound("merge", "--suite", out / "suite.yaml", "--steps", 20, "--batch", 16, "--examples", 64, "--out", made)
    mergebound("report", "--merged", made, "--out", out / "report", "--sections", "accuracy", "certificates")
    mergebound("export", made, "--to", out / "merged", "--report", out / "report/report.json")

    suite, merged = load_suite(out / "suite.yaml"), artifact.load(made).merged
    back: Any = ImageEncoder(out / "merged")
    for index, task in enumerate(suite.tasks):
        pixels, labels = read(out / f"{task.name}.npz", "test", back.val_preprocess)
        expert = torch.load(out / f"{task.name}.pt", weights_only=False)  # our own, so that we may run it
        for what, module, params, folder in (
            ("expert, the pickled module itself", expert, suite.task_vectors.expert(index), "base"),
            ("merge, loaded back by open_clip", back, merged, "merged"),
        ):
            own = (module.eval()(pixels) @ head(out / folder, task.name)).detach()
            other = (own - score_task(task, params, task.test.inputs, "test", what)).abs().max()
            right, most = 100 * accuracy(own, labels), own.abs().max()
            print(f"{task.name}: {what}: {right:.2f} % right, scores up to {most:.2g}; here other by {other:.1e}")


if __name__ == "__main__":
    main()
