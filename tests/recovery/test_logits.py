"""The loss on logits: equal to the plain formula, whatever the chunks; nothing where student and teacher are one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from prune.recovery.head import Head, check, head, last_hidden, predicted
from prune.recovery.logits import DIVERGENCES, Dense, Logits, Soft, Sparse, logit_loss, with_rest
from tests import zoo
from tests.tiny import padded_batch, tiny_model, token_ids

CAUSAL = [name for name in zoo.GENERATES if name != "t5"]
TOKENS, WIDTH, IDS = 7, 5, 11


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def case(cap: float | None = None, scale: float = 1.0) -> tuple[Tensor, Tensor, Head, Head, Tensor]:
    """A student's hidden states and head, a teacher's head, its hidden states, and labels."""
    student = Head(random(IDS, WIDTH, seed=1), random(IDS, seed=2), scale, cap)
    teacher = Head(random(IDS + 2, WIDTH + 1, seed=3), None, 1.0, None)
    labels = token_ids(TOKENS, vocabulary=IDS)
    return random(TOKENS, WIDTH, seed=4), random(TOKENS, WIDTH + 1, seed=5), student, teacher, labels


def plain(hidden: Tensor, labels: Tensor, student: Head, p: Tensor, q: Tensor, settings: Logits) -> Tensor:
    """The definition, from whole distributions at the loss's temperature."""
    beta = settings.beta
    middle = beta * p + (1 - beta) * q
    value = {
        "forward": (p * (p / q).log()).sum(-1),
        "reverse": (q * (q / p).log()).sum(-1),
        "jsd": beta * (p * (p / middle).log()).sum(-1) + (1 - beta) * (q * (q / middle).log()).sum(-1),
        "tvd": (p - q).abs().sum(-1) / 2,
    }[settings.divergence]
    hard = cross_entropy(student.logits(hidden), labels)
    return settings.alpha * settings.temperature**2 * value.mean() + (1 - settings.alpha) * hard


def coarse(p: Tensor, ids: Tensor) -> Tensor:
    top = p.gather(1, ids)
    return torch.cat([top, 1 - top.sum(-1, keepdim=True)], -1)


@pytest.mark.parametrize("kept", [None, 3], ids=["whole", "top 3"])
@pytest.mark.parametrize("kind", sorted(DIVERGENCES))
@pytest.mark.parametrize("chunk", [1, 2 * IDS, 1000])
def test_value_and_gradients_are_those_of_the_plain_formula(kind: str, chunk: int, kept: int | None) -> None:
    hidden, teacher_hidden, student, teacher, labels = case(cap=3.0, scale=0.7)
    settings = Logits(kind, temperature=1.7, alpha=0.3, beta=0.2)  # type: ignore[arg-type]
    p = torch.softmax(teacher.logits(teacher_hidden)[:, :IDS] / 1.7, -1)
    ids = p.topk(kept or 1).indices
    soft: Soft = Dense(teacher_hidden, teacher, IDS) if kept is None else Sparse(ids, coarse(p, ids).log(), IDS)
    inputs = [hidden, student.weight, student.bias]
    found = []
    for way in ("chunked", "plain"):
        own = [tensor.clone().requires_grad_() for tensor in inputs]
        mine = Head(own[1], own[2], student.scale, student.cap)
        if way == "chunked":
            loss = logit_loss(own[0], labels, mine, soft, settings, total=TOKENS, chunk=chunk)[0]
        else:
            q = torch.softmax(mine_logits(own[0], mine) / 1.7, -1)
            a, b = (p, q) if kept is None else (coarse(p, ids), coarse(q, ids))
            loss = plain(own[0], labels, Plain(mine), a, b, settings)  # type: ignore[arg-type]
        (3 * loss).backward()
        found.append([loss.detach(), *(tensor.grad for tensor in own)])
    for mine_, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine_, theirs)


class Plain:
    """A head that autograd can follow."""

    def __init__(self, of: Head):
        self.of = of

    def logits(self, hidden: Tensor) -> Tensor:
        return mine_logits(hidden, self.of)


def mine_logits(hidden: Tensor, of: Head) -> Tensor:
    raw = (hidden @ of.weight.T + of.bias) * of.scale
    return raw if of.cap is None else of.cap * torch.tanh(raw / of.cap)


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_the_gradient_passes_gradcheck(kind: str) -> None:
    hidden, teacher_hidden, student, teacher, labels = case()
    soft = Dense(teacher_hidden, teacher, IDS)
    settings = Logits(kind, temperature=2.0, alpha=0.6)  # type: ignore[arg-type]

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return logit_loss(hidden, labels, Head(weight, bias, 1.0, None), soft, settings, total=TOKENS, chunk=2 * IDS)[0]

    inputs = tuple(tensor.clone().requires_grad_() for tensor in (hidden, student.weight, student.bias))
    assert torch.autograd.gradcheck(loss, inputs)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("kept", [None, 4], ids=["whole", "top 4"])
@pytest.mark.parametrize("kind", sorted(DIVERGENCES))
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_student_that_is_the_teacher_loses_exactly_nothing(kind: str, temperature: float, kept: int | None) -> None:
    hidden, _, of, _, labels = case()
    hidden, weight = hidden.float(), of.weight.float() * 3
    own = Head(weight.requires_grad_(), None, 1.0, None)
    soft: Soft = Dense(hidden, own, IDS)
    if kept:
        log_q = torch.log_softmax(own.logits(hidden).detach() / temperature, -1)
        ids = log_q.topk(kept).indices
        soft = Sparse(ids, with_rest(log_q, ids), IDS)
    settings = Logits(kind, temperature=temperature, alpha=1.0)  # type: ignore[arg-type]
    loss, _, softly = logit_loss(hidden.requires_grad_(), labels, own, soft, settings, total=TOKENS)
    assert loss.item() == 0.0 and softly.item() == 0.0
    loss.backward()
    assert hidden.grad is not None and hidden.grad.abs().max() < 1e-6


def test_without_a_teacher_it_is_cross_entropy() -> None:
    hidden, _, student, _, labels = case()
    loss, hard, soft = logit_loss(hidden, labels, student, None, Logits(), total=TOKENS, chunk=3 * IDS)
    expected = cross_entropy(student.logits(hidden), labels)
    torch.testing.assert_close(loss, expected)
    assert hard == loss and soft == 0


def test_far_apart_distributions_stay_finite() -> None:
    own = Head(torch.eye(3).requires_grad_(), None, 1.0, None)
    far = Head(torch.eye(3), None, 1.0, None)
    mine, theirs = torch.tensor([[300.0, 0, 0]]), torch.tensor([[0.0, 300, 0]])
    for kind in DIVERGENCES:
        settings = Logits(kind, temperature=1.0, alpha=1.0)  # type: ignore[arg-type]
        state = mine.clone().requires_grad_()
        loss, *_ = logit_loss(state, torch.tensor([0]), own, Dense(theirs, far, 3), settings, total=1)
        loss.backward()
        assert state.grad is not None
        assert loss.isfinite() and loss > 0.3 and state.grad.isfinite().all()


@pytest.mark.parametrize("model_type", [*CAUSAL, "scaled"])
def test_the_head_gives_every_causal_familys_own_logits(model_type: str) -> None:
    model = tiny_model("granite", logits_scaling=3.0) if model_type == "scaled" else zoo.module(model_type)
    batch = padded_batch()
    with torch.no_grad():
        expected = model(**batch, use_cache=False).logits
        found = head(model).logits(last_hidden(model, batch))
    torch.testing.assert_close(found, expected)
    check(model)


def test_labels_are_predicted_from_the_position_before() -> None:
    states = torch.arange(8.0).reshape(2, 4, 1)
    labels = torch.tensor([[5, -100, 6, 7], [-100, 8, -100, -100]])
    hidden, found = predicted(states, labels)
    assert hidden.flatten().tolist() == [1, 2, 4] and found.tolist() == [6, 7, 8]
