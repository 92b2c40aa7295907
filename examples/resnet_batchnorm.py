"""Two ResNets with batch normalisation, merged and reported in one process: torchvision's own modules, no files.

    python examples/resnet_batchnorm.py

A model is its parameters and its running statistics: without them an expert is not the model that was fine-tuned.
"""

import argparse
import copy

import torch
import torch.nn.functional as F
from torchvision.models.resnet import BasicBlock, ResNet

from diagnostics import report
from diagnostics.settings import Settings
from merging import Selection, merge, suite_from_modules
from merging.commands import console
from merging.commands.evaluation import accuracy_table, evaluate
from merging.suites.mini8 import FILES, read_splits

TASKS = ("fashion_mnist", "kmnist")


def pixels(images: torch.Tensor) -> torch.Tensor:
    """Grey images [N, 28, 28] of 0..255 as [N, 3, 32, 32], centred."""
    return F.pad(images.float()[:, None] / 127.5 - 1, (2, 2, 2, 2), value=-1.0).repeat(1, 3, 1, 1)


def train(net: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int, seed: int) -> torch.nn.Module:
    """Return a trained copy; running statistics follow the data, as they do."""
    net, generator = copy.deepcopy(net).train(), torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(steps):
        chosen = torch.randint(len(x), (32,), generator=generator)
        loss = F.cross_entropy(net(x[chosen]), y[chosen])
        adam.zero_grad()
        loss.backward()
        adam.step()
    return net.eval()


def main() -> None:
    """Train, merge with each treatment of the running statistics, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=120, help="steps of the pretraining and of each expert")
    parser.add_argument("--images", type=int, default=1000, help="images of a split, at most")
    parser.add_argument("--out", default=None, help="folder for the report (default: none is written)")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    data = {}
    for task in TASKS:
        splits = read_splits(FILES / f"{task}.npz")
        splits = {split: sample.take(slice(arguments.images)) for split, sample in splits.items()}
        data[task] = {split: (pixels(s.inputs), s.labels) for split, s in splits.items() if s.labels is not None}
        data[task]["calibration"] = pixels(splits["calibration"].inputs)
    half = {task: [part[: len(part) // 2] for part in data[task]["train"]] for task in TASKS}
    both = [torch.cat([half[task][i] for task in TASKS]) for i in (0, 1)]
    base = train(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10), *both, arguments.steps, seed=0)
    experts = {task: train(base, *data[task]["train"], arguments.steps, seed=1) for task in TASKS}

    suite = suite_from_modules(base, experts, data, heads="fc.*")
    for statistics in ("average", "base", "calibration", "merged"):
        artifact = merge("average", suite, selection=Selection(statistics=statistics))
        console().print(
            accuracy_table(evaluate(suite, artifact.merged)[0], f"average, running statistics: {statistics}")
        )
    learned = merge("samerging", suite, steps=10, batch=16, examples=min(64, arguments.images), granularity="tensor")
    small = Settings(held_out=8, kernel=4, train=8, points=3, control_points=2)
    found = report(learned, suite, settings=small, sections=("accuracy", "certificates"))
    found.print()
    if arguments.out:
        print(found.save(arguments.out))
    for index, (task, module) in enumerate(experts.items()):  # an expert here is the module that was trained
        x, y = data[task]["test"]
        with torch.no_grad():
            own = float((module(x).argmax(1) == y).float().mean())
        print(f"{task}: the module's own test accuracy {100 * own:.2f} %", end="; ")
        print(f"the report's {100 * found.data.merges[0].accuracy.tasks[index].accuracy['expert']:.2f} %")


if __name__ == "__main__":
    main()
