"""NT-Xent over labels: the printed sum, its invariances, and its gradient where numbers are hard."""

import pytest
import torch

from broadsheet.embed.losses.ntxent import cosines, minus_distances, nt_xent

SIMILARITIES = ("cos", "l2")


def label_ntxent(embeddings, labels, temperature=0.05, similarity="cos"):
    alike = minus_distances(embeddings) if similarity == "l2" else cosines(embeddings)
    return nt_xent(alike / temperature, labels)


def rows(count: int, width: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def printed(embeddings: torch.Tensor, labels: list[int], temperature: float, similarity: str) -> float:
    """The definition, pair by pair."""
    units = embeddings / embeddings.norm(dim=1, keepdim=True)

    def score(a: int, b: int) -> torch.Tensor:
        value = units[a] @ units[b] if similarity == "cos" else -(units[a] - units[b]).norm()
        return (value / temperature).exp()

    losses = []
    for i, label in enumerate(labels):
        for j in range(len(labels)):
            if j != i and labels[j] == label:
                others = sum(score(i, k) for k in range(len(labels)) if labels[k] != label)
                losses.append(-(score(i, j) / (score(i, j) + others)).log())
    return float(sum(losses) / len(losses))


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("labels", [[0, 1, 0, 1, 2, 3], [0, 0, 0, 1, 1, 2], [5, 5, 9, 7, 9, 9]])
def test_it_is_the_mean_over_all_ordered_positive_pairs(labels, similarity):
    embeddings = rows(len(labels))
    loss = label_ntxent(embeddings, torch.tensor(labels), 0.2, similarity)
    assert float(loss) == pytest.approx(printed(embeddings, labels, 0.2, similarity), abs=1e-10)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_the_length_of_a_row_and_the_names_of_the_labels_do_not_matter(similarity):
    embeddings, labels = rows(6), torch.tensor([0, 0, 1, 1, 2, 3])
    loss = label_ntxent(embeddings, labels, 0.1, similarity)
    assert label_ntxent(embeddings * torch.arange(1, 7)[:, None], labels * 31 + 4, 0.1, similarity).item() == (
        pytest.approx(loss.item(), abs=1e-10)
    )


def test_unique_queries_without_negatives_are_two_directional_losses_with_same_side_items_in_the_denominator():
    """Query i against passage i and everything of another label, on both sides, and the same from the passage."""
    queries, passages, temperature = rows(3, seed=1), rows(3, seed=2), 0.3
    pooled = torch.nn.functional.normalize(torch.cat([queries, passages]), dim=1)
    scores = pooled @ pooled.T / temperature
    scores.fill_diagonal_(-torch.inf)
    # A cross-entropy over all other rows: the row's own positive, and all rows of another query.
    towards = torch.nn.functional.cross_entropy(scores[:3], torch.arange(3, 6))
    back = torch.nn.functional.cross_entropy(scores[3:], torch.arange(3))
    loss = label_ntxent(torch.cat([queries, passages]), torch.arange(3).repeat(2), temperature)
    assert loss.item() == pytest.approx(((towards + back) / 2).item(), abs=1e-10)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_identical_rows_have_a_finite_gradient(similarity):
    embeddings = torch.ones(4, 5, requires_grad=True)
    loss = label_ntxent(embeddings, torch.tensor([0, 0, 1, 2]), 0.05, similarity)
    loss.backward()
    assert loss.item() == pytest.approx(torch.tensor(3.0).log().item(), abs=1e-5)
    assert torch.isfinite(embeddings.grad).all()


def test_large_logits_do_not_overflow():
    embeddings = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    loss = label_ntxent(embeddings, torch.tensor([0, 0, 1, 2]), 1e-4)
    # Row 0: its positive is at −1, a stranger at +1 → a difference of 2/τ; row 1: strangers at −1 and 0.
    assert loss.item() == pytest.approx((2e4 + 1e4) / 2, rel=1e-4)


def test_without_a_pair_there_is_nothing_to_learn():
    embeddings = rows(3).requires_grad_()
    loss = label_ntxent(embeddings, torch.tensor([0, 1, 2]))
    loss.backward()
    assert loss.item() == 0.0
    assert not embeddings.grad.any()
    alone = label_ntxent(rows(3), torch.tensor([4, 4, 4]))
    assert alone.item() == 0.0  # positives alone are in no denominator but their own


def test_a_gradient_step_brings_a_pair_together():
    embeddings, labels = rows(4).requires_grad_(), torch.tensor([0, 0, 1, 2])
    before = torch.nn.functional.cosine_similarity(embeddings[0], embeddings[1], dim=0)
    label_ntxent(embeddings, labels, 0.5).backward()
    moved = (embeddings - 0.5 * embeddings.grad).detach()
    assert torch.nn.functional.cosine_similarity(moved[0], moved[1], dim=0) > before


def test_half_precision_is_computed_in_single():
    embeddings, labels = rows(6).float(), torch.tensor([0, 0, 1, 1, 2, 3])
    half = embeddings.bfloat16()
    assert label_ntxent(half, labels).item() == pytest.approx(label_ntxent(half.float(), labels).item(), abs=1e-6)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"got scores \(3, 3\) for labels \(2,\)"):
        label_ntxent(rows(3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"got scores \(3, 6\)"):
        nt_xent(rows(3), torch.tensor([0, 1, 2]))
