"""Examples whose positions are not independent: means, certificates, whole texts (docs/theory.md section 19)."""

import itertools
import math

import pytest
import torch
from scipy.stats import binom

from bounds.certificates import BoundedSample, Constants, held_out, weighted_mean
from bounds.coarse import coarsened, likeliest
from bounds.distillation import Divergences, divergences, kl, ladder_of, total_variation
from bounds.scores import largest_smoothed_loss, smoothed_cross_entropy
from bounds.sequences import example_means, mean_of_positions, text_divergence
from bounds.types import InputError

DELTA = 0.05
RATE, LENGTH, EXAMPLES = 0.3, 50, 20
"""An example of the worst kind: all of its LENGTH tokens are wrong together, with probability RATE."""


def missed(limit, outcomes, rate=RATE):
    """Probability that the limit is below the rate, if so many of ``outcomes`` examples are wrong; exact."""
    return sum(binom.pmf(k, outcomes, rate) for k in range(outcomes + 1) if limit(k) < rate - 1e-12)


def wrong_shares(wrong, examples=EXAMPLES):
    return torch.cat([torch.ones(wrong), torch.zeros(examples - wrong)]).double()


def of_examples(k):
    sums = LENGTH * wrong_shares(k)
    shares = example_means(sums, torch.full((EXAMPLES,), float(LENGTH)))
    return weighted_mean([BoundedSample(values=shares)], [1.0], DELTA).value


def of_tokens(k):
    """Wrong: tokens counted as if they were independent."""
    return held_out(k * LENGTH, EXAMPLES * LENGTH, DELTA).value


def test_examples_are_covered_and_tokens_counted_as_examples_are_not():
    assert missed(of_examples, EXAMPLES) <= DELTA
    assert missed(of_tokens, EXAMPLES) > 0.3
    with pytest.raises(InputError, match="whole"):
        held_out(4.5, EXAMPLES, DELTA)  # (13) counts: a sum of shares is none


def test_a_sum_of_shares_that_is_rounded_to_a_count_misses():
    """Every example has 999 wrong tokens of 1000: rounded down, (13) is below the rate with certainty."""
    shares = example_means(torch.full((10,), 999.0), torch.full((10,), 1000.0))
    assert held_out(math.floor(float(shares.sum())), 10, DELTA).value < 0.999
    assert weighted_mean([BoundedSample(values=shares)], [1.0], DELTA).value >= 0.999


def test_sequences_that_share_documents_are_not_covered():
    """Sequences in equal pairs, as where every document is cut in two; of 15 documents, wrong at a rate of .1."""
    constants = Constants(rate=1.1, offsets=(0.0,))

    def of(values):
        return weighted_mean([BoundedSample(values=values)], [1.0], DELTA, constants).value

    assert missed(lambda k: of(wrong_shares(k, 15)), 15, 0.1) <= DELTA
    assert missed(lambda k: of(wrong_shares(k, 15).repeat(2)), 15, 0.1) > 0.2
    blocks = [wrong_shares(k, 15).repeat(2).view(2, 15).mean(dim=0) for k in range(16)]
    assert missed(lambda k: of(blocks[k]), 15, 0.1) <= DELTA, "what shares a document is one example"


def test_smoothed_losses_of_tokens_stay_in_range_in_the_mean():
    generator = torch.Generator().manual_seed(0)
    scores = 40 * torch.randn(6, 9, 30, generator=generator, dtype=torch.float64)
    labels = torch.randint(30, (6, 9), generator=generator)
    sums = torch.stack([smoothed_cross_entropy(s, y, 0.02).sum() for s, y in zip(scores, labels, strict=True)])
    means = example_means(sums, torch.full((6,), 9.0))
    assert 0 < float(means.min()) < float(means.max()) <= largest_smoothed_loss(30, 0.02)
    raw = torch.stack([-s.log_softmax(-1).gather(-1, y[:, None]).mean() for s, y in zip(scores, labels, strict=True)])
    with pytest.raises(InputError, match="loss without a bound"):
        BoundedSample(values=raw, upper=largest_smoothed_loss(30, 0.02))


def test_two_means_are_equal_for_equal_lengths_and_differ_by_a_covariance():
    sums, lengths = torch.tensor([4.0, 9.0, 1.0]), torch.tensor([2.0, 6.0, 1.0])
    means = example_means(sums, lengths)
    assert means.tolist() == [2.0, 1.5, 1.0]
    covariance = float((lengths * means).mean() - lengths.mean() * means.mean())
    assert mean_of_positions(sums, lengths).value == pytest.approx(14 / 9)
    assert 14 / 9 - float(means.mean()) == pytest.approx(covariance / float(lengths.mean()))
    same = torch.full((3,), 4.0)
    found = mean_of_positions(sums, same)
    assert found.value == pytest.approx(float(example_means(sums, same).mean()))
    assert found.stderr == pytest.approx(float((sums / 4).std()) / math.sqrt(3))


def test_the_error_of_the_mean_over_tokens_is_that_of_dependent_tokens():
    """Against repetition: tokens of an example share a level. Tokens taken for independent: a fifth of the error."""
    generator, draws, n = torch.Generator().manual_seed(0), 1500, 40
    values, errors, naive = [], [], []
    for _ in range(draws):
        lengths = torch.randint(5, 80, (n,), generator=generator).double()
        level = torch.rand(n, generator=generator).double() + lengths / 80
        noise = 0.1 * torch.randn(n, generator=generator).double() * lengths.sqrt()
        found = mean_of_positions(lengths * level + noise, lengths)
        values.append(found.value)
        errors.append(found.stderr)
        naive.append(float(level.std()) / math.sqrt(float(lengths.sum())))
    spread = float(torch.tensor(values).std())
    assert sum(errors) / draws == pytest.approx(spread, rel=0.08)
    assert sum(naive) / draws < spread / 4


@pytest.mark.parametrize(
    ("sums", "positions"),
    [([1.0, 2.0], [1.0]), ([1.0, 2.0], [1.0, 0.0]), ([1.0, math.nan], [1.0, 1.0]), ([[1.0]], [[1.0]])],
)
def test_sums_that_do_not_fit_are_refused(sums, positions):
    for function in (example_means, mean_of_positions):
        with pytest.raises(InputError):
            function(torch.tensor(sums), torch.tensor(positions))


V, LONG = 3, 3
"""Tokens and length of the texts that are written out one by one."""


def table(seed, scale=1.5):
    """A language model as a table: scores of the next token after every prefix of tokens."""
    generator = torch.Generator().manual_seed(seed)
    prefixes = [p for length in range(1, LONG + 1) for p in itertools.product(range(V), repeat=length)]
    return {p: scale * torch.randn(V, generator=generator, dtype=torch.float64) for p in prefixes}


def scorer(scores):
    def model(ids):
        rows = [[scores[tuple(row[: at + 1])] for at in range(len(row))] for row in ids.tolist()]
        return torch.stack([torch.stack(row) for row in rows])

    return model


def law(scores, prompt=(0,)):
    """Probability of every text of LONG tokens after the prompt."""
    found = {}
    for text in itertools.product(range(V), repeat=LONG):
        chance, prefix = 1.0, prompt
        for token in text:
            chance *= float(scores[prefix].softmax(-1)[token])
            prefix = (*prefix, token) if len(prefix) < LONG else prefix
        found[text] = chance
    return found


def exact(p, q):
    """KL and TV of whole texts, written out."""
    first, second = law(p), law(q)
    assert sum(first.values()) == pytest.approx(1.0)
    divergence = sum(a * math.log(a / second[text]) for text, a in first.items())
    return divergence, sum(abs(a - second[text]) for text, a in first.items()) / 2


def along_teacher(p, q, measure):
    """Σ_l E over the teacher's prefixes of a divergence of the next token: (24), written out."""
    total = 0.0
    for length in range(LONG):
        for text in itertools.product(range(V), repeat=length):
            chance, prefix = 1.0, (0,)
            for token in text:
                chance *= float(p[prefix].softmax(-1)[token])
                prefix = (*prefix, token)
            total += chance * float(measure(p[prefix][None], q[prefix][None]))
    return total


def test_the_divergence_of_whole_texts_is_the_sum_over_the_teachers_prefixes():
    p, q = table(0), table(1)
    divergence, variation = exact(p, q)
    assert along_teacher(p, q, kl) == pytest.approx(divergence)
    assert along_teacher(p, q, total_variation) >= variation
    found = text_divergence(scorer(p), scorer(q), torch.zeros(4000, 1, dtype=torch.long), LONG, seed=0)
    assert abs(found.kl.value - divergence) < 4 * found.kl.stderr < 0.1 * divergence
    assert found.most >= variation
    assert float(found.variation.mean()) == pytest.approx(along_teacher(p, q, total_variation), rel=0.05)
    assert text_divergence(scorer(p), scorer(p), torch.zeros(9, 1, dtype=torch.long), LONG, seed=0).most == 0


def test_most_is_an_upper_bound_whether_models_are_near_or_far():
    for scale in (0.05, 0.5, 3.0):
        p = table(2)
        q = {prefix: scores + scale * table(3)[prefix] for prefix, scores in p.items()}
        found = text_divergence(scorer(p), scorer(q), torch.zeros(3000, 1, dtype=torch.long), LONG, seed=1)
        assert exact(p, q)[1] <= found.most + 4 * found.kl.stderr


def test_prefixes_from_the_data_say_nothing_about_whole_texts():
    """Models that agree wherever the data go (always token 0) differ as much as one likes elsewhere."""
    p = table(4)
    q = {prefix: scores if set(prefix) == {0} else -9 * scores for prefix, scores in p.items()}
    data = torch.zeros(1, LONG, dtype=torch.long)
    forced = [kl(scorer(p)(data)[0], scorer(q)(data)[0])]
    assert float(torch.stack(forced).sum()) == 0.0
    assert exact(p, q)[0] > 1.0


def test_the_ladder_of_a_token_bounds_what_the_student_adds_whatever_the_dependence():
    """(23): of each example the mean over its positions; labels repeat within an example."""
    generator = torch.Generator().manual_seed(5)
    p, q = (torch.randn(8, 6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(4, (8, 1), generator=generator).expand(8, 6)
    found = [divergences(a, b) for a, b in zip(p, q, strict=True)]
    means = Divergences(**{name: torch.stack([vars(d)[name].mean() for d in found]) for name in vars(found[0])})
    made = ladder_of([means], [1.0])
    added = (p.softmax(-1) - q.softmax(-1)).gather(-1, labels[..., None]).mean()
    values = [rung.total.value for rung in (made.total_variation, made.minimum)]
    assert float(added) <= values[0] <= values[1]
    assert made.total_variation.total.n == 8, "the example is the unit"
    assert values[0] == pytest.approx(float((p.softmax(-1) - q.softmax(-1)).abs().sum(-1).mean()) / 2)


def test_a_divergence_of_coarsened_distributions_is_no_rung():
    """p and q agree on the likeliest class and on all others together, and on nothing else."""
    p = torch.tensor([[2.0, 1.0, -3.0, -3.0]], dtype=torch.float64)
    q = torch.tensor([[2.0, -3.0, 1.0, -3.0]], dtype=torch.float64)
    log_p, classes = likeliest(p, 1)
    coarse = (log_p.exp() * (log_p - coarsened(q, classes))).sum(-1)
    variation = total_variation(p, q)
    assert float(coarse) == pytest.approx(0.0, abs=1e-12)
    assert float(variation) > 0.2
    rest = [float(1 - s.softmax(-1)[0, 0]) for s in (p, q)]
    assert float(variation) <= min(rest), "TV exceeds that of the coarsened ones by no more than the smaller rest"
    wrong = Divergences(variation=variation, divergence=coarse, disagreement=coarse, surrogate=coarse)
    made = ladder_of([wrong], [1.0])
    assert made.minimum.total.value < made.total_variation.total.value


@pytest.mark.parametrize(
    ("prompts", "tokens"), [(torch.zeros(2), 3), (torch.zeros(0, 1).long(), 3), (torch.zeros(2, 1).long(), 0)]
)
def test_prompts_that_are_none_are_refused(prompts, tokens):
    model = scorer(table(0))
    with pytest.raises(InputError):
        text_divergence(model, model, prompts, tokens, seed=0)
