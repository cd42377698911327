from __future__ import annotations

import pytest
import torch

from fastssl.data import kmeans as module
from fastssl.data.kmeans import kmeans


def blobs(centers: torch.Tensor, count: int, spread: float) -> torch.Tensor:
    noise = torch.randn(len(centers), count, centers.shape[1], generator=torch.Generator().manual_seed(1))
    return (centers[:, None] + spread * noise).flatten(0, 1)


def test_separate_groups_are_found_and_their_means() -> None:
    centers = torch.tensor([[-40.0, 10.0], [0.0, -60.0], [0.0, 0.0], [55.0, 30.0]])
    points = blobs(centers, 200, 2.0)
    found = kmeans(points[torch.randperm(len(points), generator=torch.Generator().manual_seed(2))], 4)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, points.view(4, 200, 2).mean(1), rtol=0, atol=1e-4)


def test_each_center_is_the_mean_of_the_points_nearest_to_it() -> None:
    points = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    found = kmeans(points, 7)
    member = torch.cdist(points, found).argmin(1)
    for i in range(7):
        torch.testing.assert_close(found[i], points[member == i].mean(0), rtol=0, atol=1e-5)


def test_the_same_at_each_call_and_torchs_generator_stays() -> None:
    points = torch.rand(300, 3, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    assert torch.equal(kmeans(points, 5), kmeans(points, 5))
    assert torch.equal(torch.get_rng_state(), before)


def test_fewer_points_than_centers() -> None:
    points = torch.tensor([[1.0, 2.0], [1.0, 2.0], [5.0, 6.0]])
    found = kmeans(points, 4)
    assert found.unique(dim=0).tolist() == [[1, 2], [5, 6]]


def test_of_many_points_some_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_POINTS", 100)
    points = blobs(torch.tensor([[0.0], [10.0]]), 1000, 0.1)
    torch.testing.assert_close(kmeans(points, 2), torch.tensor([[0.0], [10.0]]), rtol=0, atol=0.1)


@pytest.mark.parametrize(("points", "k"), [(torch.zeros(3), 2), (torch.zeros(0, 2), 2), (torch.zeros(3, 2), 0)])
def test_what_cannot_be_clustered_is_refused(points: torch.Tensor, k: int) -> None:
    with pytest.raises(ValueError, match="kmeans: needs points"):
        kmeans(points, k)
