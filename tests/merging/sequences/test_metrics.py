"""Figures of language models: by hand, and greedy texts against a loop."""

import math

import pytest
import torch

from bounds.types import InputError
from merging.sequences import bits_per_byte, exact_match, generate, perplexity
from tests.sequences_world import VOCABULARY, world


def test_perplexity_of_a_uniform_guess_is_the_number_of_classes():
    assert perplexity(math.log(VOCABULARY)) == pytest.approx(VOCABULARY)
    assert perplexity(1e6) == math.inf


def test_bits_per_byte_divides_all_bits_by_all_bytes():
    task, theta = world().tasks[0], world().task_vectors.base
    assert bits_per_byte(task.measured(theta, "test")) is None
    counts = torch.arange(12) + 3
    found = task.changed(text_bytes={"test": counts}).measured(theta, "test")
    expected = float(found.cross_entropy.sum()) / math.log(2) / float(counts.sum())
    assert bits_per_byte(found) == pytest.approx(expected)
    per_document = float((found.cross_entropy / math.log(2) / counts).mean())
    assert abs(expected - per_document) > 1e-3


def test_greedy_texts_are_those_of_a_loop():
    """Prompts of two lengths; the first task counts up, so that a good model goes on counting."""
    suite = world(padded=False)
    forward, theta = suite.tasks[0].forward, suite.task_vectors.expert(0)
    prompts = [torch.tensor([3, 4, 5]), torch.tensor([1]), torch.tensor([7, 8, 9])]
    found = generate(forward, theta, prompts, 4)
    for prompt, text in zip(prompts, found, strict=True):
        tokens = prompt.tolist()
        for _ in range(4):
            row = forward(theta, torch.tensor([tokens]))[0, -1].tolist()
            tokens.append(row.index(max(row)))
        assert text.tolist() == tokens[len(prompt) :]


def counting(params, tokens):
    """A model that is sure of the next number, modulo 5."""
    return torch.nn.functional.one_hot((tokens + 1) % 5, 5).double()


def test_a_text_ends_at_the_stop():
    prompts = [torch.tensor([0]), torch.tensor([3, 4, 0, 1]), torch.tensor([2])]
    found = generate(counting, {}, prompts, 6, stop=4)
    assert [text.tolist() for text in found] == [[1, 2, 3], [2, 3], [3]]
    passes = []
    generate(lambda params, tokens: passes.append(len(tokens)) or counting(params, tokens), {}, prompts[2:], 6, stop=4)
    assert passes == [1, 1], "no pass after every text has ended"
    assert exact_match(found, [torch.tensor([1, 2, 3]), torch.tensor([2]), torch.tensor([3])]).tolist() == [1, 0, 1]
    short = generate(counting, {}, [torch.tensor([4])], 2, stop=4)
    assert short[0].tolist() == [0, 1], "the stop in a prompt ends nothing"


def test_what_is_refused():
    with pytest.raises(InputError, match="new tokens: expected at least 1"):
        generate(counting, {}, [torch.tensor([0])], 0)
    for wrong in (torch.tensor([], dtype=torch.int64), torch.tensor([[1]]), torch.tensor([0.5])):
        with pytest.raises(InputError, match="prompt 1: expected token ids"):
            generate(counting, {}, [torch.tensor([0]), wrong], 1)
    with pytest.raises(InputError, match="answers: expected 1 of them"):
        exact_match([torch.tensor([1])], [])
