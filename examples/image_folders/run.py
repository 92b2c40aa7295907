"""Two torchvision classifiers and two folders of images, by one suite file: suite.yaml, beside this script.

    python examples/image_folders/run.py --out images

First it makes what you would already have: images in folders by class, a base and two experts that plain PyTorch
trained. Then come the commands, and checks that nothing was lost on the way. The network has batch normalisation: its
running statistics are merged and written, too.
"""

import argparse
import copy
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.models import get_model

from diagnostics import cli
from merging import artifact, load_suite
from merging.suites.mini8 import FILES, read_splits  # images that come with this package
from merging.task import accuracy, score_task

CLASSES = {
    "fashion_mnist": "t-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot",
    "kmnist": "o, ki, su, tsu, na, ha, ma, ya, re, wo",
}
IMAGES = {"train": 600, "validation": 200, "test": 300}
ARCHITECTURE = "shufflenet_v2_x0_5"
PREPARE = transforms.Compose(
    [
        transforms.Resize(32),
        transforms.CenterCrop(32),
        transforms.ToTensor(),
        transforms.Normalize([0.5] * 3, [0.5] * 3),
    ]
)


def write_images(folder: Path, task: str) -> None:
    """Write PNG files as SPLIT/CLASS/NUMBER.png."""
    splits, names = read_splits(FILES / f"{task}.npz"), CLASSES[task].split(", ")
    for split, count in IMAGES.items():
        inputs, labels = splits[split].inputs, splits[split].labels
        assert isinstance(inputs, Tensor)
        assert labels is not None
        for name in names:
            (folder / split / name).mkdir(parents=True)
        for index in range(min(count, len(labels))):
            place = folder / split / names[int(labels[index])] / f"{index}.png"
            Image.fromarray(inputs[index].numpy()).save(place)


def read(folder: Path) -> tuple[Tensor, Tensor]:
    """Return images as torchvision reads and prepares them, and labels."""
    files = ImageFolder(str(folder), PREPARE)
    pairs = [files[index] for index in range(len(files))]
    return torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs])


def train(net: nn.Module, images: Tensor, labels: Tensor, steps: int) -> nn.Module:
    """Return a trained copy; running statistics follow the images, as they do."""
    net = copy.deepcopy(net).train()
    adam = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(steps):
        rows = torch.randint(len(labels), (32,))
        loss = F.cross_entropy(net(images[rows]), labels[rows])
        adam.zero_grad()
        loss.backward()
        adam.step()
    return net.eval()


def mergebound(*arguments: Any) -> None:
    """Run a command as a shell would; stop where it fails."""
    print("\n$ mergebound", *arguments, flush=True)
    if status := cli.main([str(argument) for argument in arguments]):
        sys.exit(status)


def main() -> None:
    """Make images and experts, merge them, and compare with what torchvision says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("images"), help="a new folder for all that is written")
    parser.add_argument("--steps", type=int, default=150, help="steps of the base and of each expert")
    arguments = parser.parse_args()
    out, steps = arguments.out, arguments.steps
    torch.set_num_threads(1)  # small models are fastest on one
    torch.manual_seed(0)
    out.mkdir(parents=True)
    for task in CLASSES:
        write_images(out / task, task)
    data = {task: read(out / task / "train") for task in CLASSES}
    images, labels = (torch.cat(parts) for parts in zip(*data.values(), strict=True))
    base = train(get_model(ARCHITECTURE, num_classes=10), images, labels, steps)
    torch.save(base.state_dict(), out / "base.pth")
    experts = {task: train(base, *data[task], steps) for task in CLASSES}
    for task, expert in experts.items():
        torch.save(expert.state_dict(), out / f"{task}.pth")

    suite_file, made = out / "suite.yaml", out / "out.pt"
    shutil.copy(Path(__file__).with_name("suite.yaml"), suite_file)
    mergebound("suite", "check", suite_file)
    merging = ("--method", "average", "--running-statistics", "calibration")
    mergebound("merge", "--suite", suite_file, *merging, "--out", made)
    mergebound("report", "--merged", made, "--out", out / "report", "--sections", "accuracy", "certificates")
    mergebound("export", made, "--to", out / "merged", "--report", out / "report/report.json")

    suite, merged = load_suite(suite_file), artifact.load(made).merged
    for index, task in enumerate(suite.tasks):
        images, labels = read(out / task.name / "test")
        back = get_model(ARCHITECTURE, num_classes=10)
        back.load_state_dict(load_file(out / "merged" / task.name / "model.safetensors"))
        for what, module, params in (
            ("expert, as torchvision has it", experts[task.name], suite.task_vectors.expert(index)),
            ("merge, loaded back by torchvision", back.eval(), merged),
        ):
            with torch.no_grad():
                own = module(images)
            other = (own - score_task(task, params, task.test.inputs, "test", what)).abs().max()
            right, most = 100 * accuracy(own, labels), own.abs().max()
            print(f"{task.name}: {what}: {right:.2f} % right, scores up to {most:.2g}; here other by {other:.1e}")


if __name__ == "__main__":
    main()
