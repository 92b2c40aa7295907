"""The table of published suites: names, repositories, prompts."""

import pytest

from bounds.types import InputError
from merging.suites.published import NAMES, find, is_published
from merging.suites.published.table import prompts

EIGHT = ["sun397", "stanford-cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd"]
CLASSES = [397, 196, 45, 10, 10, 43, 10, 47, 102, 2, 7, 37, 10, 100, 10, 101, 10, 26, 10, 2]
"""How many classes each of the twenty data sets has, by their papers."""


def test_names_with_and_without_a_model():
    assert find("clip-ta8") == find("clip-ta8:ViT-B-32")
    assert list(find("clip-ta8").experts) == EIGHT
    large = find("clip-tall20:ViT-L-14")
    assert large.base == "openai/clip-vit-large-patch14"
    assert large.experts["rendered-sst2"] == "tanganke/clip-vit-large-patch14_rendered-sst2"
    assert [len(find(name).experts) for name in NAMES] == [8, 14, 20, 7]
    assert list(find("clip-tall14").experts)[:8] == EIGHT
    assert len({find(f"{name}:{model}").file for name, models in NAMES.items() for model in models}) == 10
    assert is_published("clip-ta9") is is_published("clip") is is_published("toy") is False
    with pytest.raises(InputError, match=r"model of clip-ta8: expected ViT-B-32 or .*; got 'ViT-H'"):
        find("clip-ta8:ViT-H")
    with pytest.raises(InputError, match="model of gpt2-glue7: expected gpt2; got 'ViT-B-32'"):
        find("gpt2-glue7:ViT-B-32")
    with pytest.raises(InputError, match=r"published suite: expected clip-ta8 or .*; got 'clip-ta9'"):
        find("clip-ta9")


def test_every_task_of_the_twenty_has_its_classes_and_prompts():
    suite = find("clip-tall20")
    assert [len(prompts()[task]["classes"]) for task in suite.experts] == CLASSES
    assert list(prompts()) == list(suite.experts)
    for task, prompt in prompts().items():
        assert len(set(prompt["classes"])) == len(prompt["classes"]), task
        assert all(template.count("{}") == 1 for template in prompt["templates"]), task
    assert prompts()["mnist"]["classes"] == list("0123456789")
    assert prompts()["emnist_letters"]["classes"] == list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
