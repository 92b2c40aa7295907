"""Fine-tuning of mini8's experts: each of its two terms does what it is there for."""

import pytest
import torch
import torch.nn.functional as F

from merging.suites.mini8.experts import FineTuning, fine_tune
from merging.suites.mini8.pretraining import seeded_clip

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
}


class World:
    """Images bright above or below, and others that are to be kept."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.visual = seeded_clip(CONFIG, 0).visual
        self.base = {name: value.detach() for name, value in self.visual.named_parameters()}
        self.labels = torch.arange(64) % 2
        self.pixels = 0.1 * torch.randn(64, 3, 16, 16, generator=generator)
        for image, label in zip(self.pixels, self.labels, strict=True):
            image[:, 8 * label : 8 * label + 8] += 0.3
        self.others = torch.randn(40, 3, 16, 16, generator=generator)
        self.head = F.normalize(torch.randn(2, 16, generator=generator), dim=1)

    def change(self, **settings):
        chosen = FineTuning(**{"steps": 40, "rate": 2e-3, "batch": 16, **settings})
        generator = torch.Generator().manual_seed(1)
        sample = (self.pixels, self.labels)
        return fine_tune(self.visual, self.base, self.head, 10.0, sample, [self.others], chosen, generator)

    def embed(self, change, images, scale=1.0):
        moved = {name: value + scale * change[name] for name, value in self.base.items()}
        return F.normalize(torch.func.functional_call(self.visual, moved, images), dim=-1)

    def drift(self, change) -> float:
        nothing = {name: torch.zeros_like(value) for name, value in change.items()}
        return float((self.embed(change, self.others) - self.embed(nothing, self.others)).square().sum(1).mean())

    def loss(self, change, scale) -> float:
        return float(F.cross_entropy(10 * self.embed(change, self.pixels, scale) @ self.head.T, self.labels))


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def test_an_expert_learns_its_task(world):
    change, losses = world.change()
    assert losses[-1] < 0.5 * losses[0]
    assert world.loss(change, 1.0) < 0.2 * world.loss(change, 0.0)


def test_the_keep_term_holds_the_embeddings_of_what_is_in_no_task(world):
    free, _ = world.change(keep=0.0)
    kept, _ = world.change(keep=1.0)
    assert world.drift(kept) < 0.5 * world.drift(free)


def test_scores_at_smaller_scales_make_a_part_of_the_change_do_more(world):
    at_one, _ = world.change(least_scale=1.0)
    at_any, _ = world.change(least_scale=0.1)
    assert world.loss(at_any, 0.2) < world.loss(at_one, 0.2)


def test_one_generator_gives_one_expert(world):
    first, again = world.change(steps=3)[0], world.change(steps=3)[0]
    assert all(torch.equal(first[name], again[name]) for name in first)
