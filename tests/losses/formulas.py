"""The losses' formulas in plain torch, in whatever dtype they are given."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, log_softmax, logsigmoid, normalize, softmax


def info_nce(q: Tensor, k: Tensor, temperature: float, negatives: Tensor | None = None) -> Tensor:
    candidates = k if negatives is None else torch.cat([k, negatives])
    logits = normalize(q, dim=1) @ normalize(candidates, dim=1).T / temperature
    return cross_entropy(logits, torch.arange(len(q)))


def nt_xent(z0: Tensor, z1: Tensor, temperature: float) -> Tensor:
    z, n = normalize(torch.cat([z0, z1]), dim=1), len(z0)
    logits = (z @ z.T / temperature).masked_fill(torch.eye(2 * n, dtype=torch.bool), -torch.inf)
    return cross_entropy(logits, torch.arange(2 * n).roll(n))


def clip(a: Tensor, b: Tensor, scale: float) -> Tensor:
    logits, own = scale * normalize(a, dim=1) @ normalize(b, dim=1).T, torch.arange(len(a))
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


def siglip(a: Tensor, b: Tensor, scale: float, bias: float) -> Tensor:
    signs = 2 * torch.eye(len(a), dtype=a.dtype) - 1
    return -logsigmoid(signs * (scale * normalize(a, dim=1) @ normalize(b, dim=1).T + bias)).sum() / len(a)


def moco(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    q, k = normalize(query, dim=1), normalize(key, dim=1)
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.to(q.dtype).T], 1) / temperature
    return cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64))


def cpc(predictions: Tensor, targets: Tensor) -> Tensor:
    """Of plain products, at temperature 1."""
    own = torch.arange(predictions.shape[1])
    return torch.stack([cross_entropy(p @ t.T, own) for p, t in zip(predictions, targets, strict=True)]).mean()


def dino(student: Tensor, p: Tensor, student_temp: float) -> Tensor:
    """For the teacher's probabilities: the mean cross-entropy of all pairs but those of one crop."""
    log_q = log_softmax(student / student_temp, -1)
    pairs = [(t, s) for t in range(len(p)) for s in range(len(student)) if s != t]
    return torch.stack([-(p[t] * log_q[s]).sum(-1).mean() for t, s in pairs]).mean()


def centered(teacher: Tensor, center: Tensor, temperature: float) -> Tensor:
    return softmax((teacher - center.to(teacher.dtype)) / temperature, -1)


def sinkhorn(teacher: Tensor, temperature: float) -> Tensor:
    """Three times over all crops together."""
    q = (teacher.flatten(0, 1) / temperature).exp()
    for _ in range(3):
        q = q / q.sum(0, keepdim=True)
        q = q / q.sum(1, keepdim=True)
    return q.view_as(teacher)


def mae(images: Tensor, prediction: Tensor, mask: Tensor, patch: int) -> Tensor:
    split = images.unfold(2, patch, patch).unfold(3, patch, patch)  # (N, C, rows, columns, P, P)
    target = split.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
    target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    return (prediction - target).square().mean(-1)[mask.bool()].mean()


def negative_cosine(x0: Tensor, x1: Tensor) -> Tensor:
    return -(normalize(x0, dim=1) * normalize(x1, dim=1)).sum(1).mean()


def barlow_twins(z0: Tensor, z1: Tensor, redundancy_weight: float) -> Tensor:
    x0, x1 = ((z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() for z in (z0, z1))
    c = x0.T @ x1 / len(z0)
    off_diagonal = c.masked_select(~torch.eye(len(c), dtype=torch.bool))
    return (1 - c.diagonal()).square().sum() + redundancy_weight * off_diagonal.square().sum()


def vicreg(z0: Tensor, z1: Tensor, invariance: float, variance: float, covariance: float) -> Tensor:
    loss = invariance * (z0 - z1).square().mean()
    for z in (z0, z1):
        x = z - z.mean(0)
        c = x.T @ x / (len(z) - 1)
        off_diagonal = c.masked_select(~torch.eye(len(c), dtype=torch.bool))
        loss = loss + variance * torch.relu(1 - (z.var(0) + 1e-4).sqrt()).mean() / 2
        loss = loss + covariance * off_diagonal.square().sum() / len(c)
    return loss


def sup_con(z: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """One row at a time."""
    s = normalize(z, dim=1) @ normalize(z, dim=1).T / temperature
    losses = []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        positives = [a for a in others if labels[a] == labels[i]]
        if positives:
            losses.append(s[i, others].logsumexp(0) - s[i, positives].mean())
    return torch.stack(losses).mean()


def koleo(z: Tensor) -> Tensor:
    x = normalize(z, dim=1)
    nearest = (x @ x.T).detach().masked_fill(torch.eye(len(x), dtype=torch.bool), -torch.inf).argmax(1)
    return -(x - x[nearest]).norm(dim=1).log().mean()


def dense(query: Tensor, key: Tensor, queue: Tensor, temperature: float, matched_by: tuple[Tensor, Tensor]) -> Tensor:
    """One place at a time."""
    losses = []
    for q, k, f, g in zip(*(x.flatten(2).mT for x in (query, key, *matched_by)), strict=True):
        matches = torch.stack([cosine_similarity(place[None], g).argmax() for place in f])
        losses.append(moco(q, k[matches], queue, temperature))
    return torch.stack(losses).mean()
