"""Every method beside its formula, computed densely in float64, and the laws that merges obey."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from prune.merging import chance
from prune.merging.block import Block, keywords, parameters
from prune.merging.blocks import Blocks
from prune.merging.methods import method, names
from prune.merging.profile import Profile
from prune.merging.stream import Job, compute

SHAPE = (24, 20)


def tensors(count: int = 3, *, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> list[Tensor]:
    """A base and tensors near it."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    return [base, *(base + 0.1 * torch.randn(shape, generator=generator) for _ in range(count - 1))]


def merged(name: str, inputs: list[Tensor], base: Tensor | None, seed: int = 0, **values: Any) -> Tensor:
    """A method over whole tensors, its other parameters as they are by default."""
    used = method(name)
    chosen = {
        known: values.get(known, [parameter.default] * len(inputs) if parameter.each else parameter.default)
        for known, parameter in parameters(used).items()
    }
    first = inputs[0] if inputs else base
    assert first is not None
    job = Job(
        name="w",
        shape=tuple(first.shape),
        method=used,
        inputs=[opener(tensor) for tensor in inputs],
        base=opener(base) if base is not None else None,
        values=chosen,
        dtype=torch.float32,
        out=first.dtype,
        seed=seed,
    )
    return compute(job)


def opener(tensor: Tensor) -> Callable[[], Any]:
    entries = tensor.reshape(-1)
    return lambda: lambda start, stop: entries[start:stop]


def close(ours: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(ours.double(), wanted.double(), rtol=2e-5, atol=2e-6)


def test_linear_is_the_weighted_average() -> None:
    a, b, c = tensors()
    close(merged("linear", [a, b, c], None, weight=[1, 2, 5]), (a + 2 * b + 5 * c) / 8)
    close(merged("linear", [a, b], None, weight=[1, 2], normalize=False), a + 2 * b)


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    a, b = a.double(), b.double()
    angle = torch.acos((a * b).sum() / a.norm() / b.norm())
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


def test_slerp_goes_along_the_arc() -> None:
    a, b = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    close(merged("slerp", [b], a, t=0.3), slerp(a, b, 0.3))
    assert torch.equal(merged("slerp", [b], a, t=0.0), a)
    assert torch.equal(merged("slerp", [b], a, t=1.0), b)
    near = a + 1e-4 * b
    close(merged("slerp", [near], a, t=0.25), 0.75 * a + 0.25 * near)  # parallel: a line


@pytest.mark.parametrize("seed", [0, 19, 23])
def test_slerp_of_several_parts_is_rounded_as_sums_of_rows_are(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    part = 64
    monkeypatch.setattr(method("slerp"), "BLOCK", part)
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(1, 2 * part + 40, generator=generator) * 0.02
    b = a + torch.randn(a.shape, generator=generator) * 0.05
    pieces = [(one.float(), other.float()) for one, other in zip(a.split(part, 1), b.split(part, 1), strict=True)]
    norms = [
        torch.stack([own.norm(dim=1, keepdim=True) for own in side]).norm(dim=0) for side in zip(*pieces, strict=True)
    ]
    dots = [((x / norms[0]) * (y / norms[1])).sum(dim=1, keepdim=True) for x, y in pieces]
    angle = torch.acos(torch.stack(dots).sum(dim=0))
    first, second = torch.sin((1 - torch.tensor([[0.4]])) * angle), torch.sin(torch.tensor([[0.4]]) * angle)
    wanted = first / torch.sin(angle) * a + second / torch.sin(angle) * b
    assert torch.equal(merged("slerp", [b], a, t=0.4), wanted)


def test_masks_are_drawn_on_the_cpu_wherever_the_tensor_is(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, moved = [], []

    class Elsewhere:
        """What a mask is asked for of a tensor on another device."""

        shape, dtype, device = torch.Size((4, 5)), torch.float32, torch.device("meta")

    def bernoulli(chances: Tensor, generator: torch.Generator) -> Any:
        drawn.append((chances.device.type, generator.device.type))
        return type("Drawn", (), {"to": staticmethod(lambda **where: moved.append(where))})

    monkeypatch.setattr(torch, "bernoulli", bernoulli)
    for share in (0.5, torch.full((4, 5), 0.5)):
        state = torch.Generator().manual_seed(1).get_state()
        chance.InTurn(state).mask(0, share, Elsewhere())  # type: ignore[arg-type]
    assert drawn == [("cpu", "cpu")] * 2
    assert moved == [{"device": torch.device("meta"), "dtype": torch.float32}] * 2


def test_task_arithmetic_adds_weighted_changes() -> None:
    base, a, b = tensors()
    wanted = base + 0.5 * (0.3 * (a - base) + 2 * (b - base))
    close(merged("task_arithmetic", [a, b], base, weight=[0.3, 2], **{"lambda": 0.5}), wanted)


def trimmed(delta: Tensor, density: float) -> Tensor:
    count = max(1, int(density * delta.numel()))
    kept = delta.abs().reshape(-1).argsort(descending=True)[:count]
    mask = torch.zeros(delta.numel(), dtype=delta.dtype)
    mask[kept] = 1
    return delta * mask.reshape(delta.shape)


def elected(deltas: list[Tensor], weight: list[float], *, normalize: bool) -> Tensor:
    """The paper's election, entry by entry."""
    stacked = torch.stack([own * delta for own, delta in zip(weight, deltas, strict=True)]).reshape(len(deltas), -1)
    out = torch.zeros(stacked.shape[1], dtype=stacked.dtype)
    for place, column in enumerate(stacked.T):
        sign = 1.0 if column.sum() >= 0 else -1.0
        agree = [(float(value), own) for value, own in zip(column, weight, strict=True) if value * sign > 0]
        divisor = sum(own for _, own in agree) if normalize else 1.0
        out[place] = sum(value for value, _ in agree) / (divisor or 1.0)
    return out.reshape(deltas[0].shape)


def test_ties_trims_elects_and_sums() -> None:
    base, a, b = (tensor.double() for tensor in tensors())
    deltas = [trimmed(a - base, 0.4), trimmed(b - base, 0.7)]
    wanted = base + 0.9 * elected(deltas, [0.3, 0.8], normalize=True)
    ours = merged(
        "ties", [a.float(), b.float()], base.float(), weight=[0.3, 0.8], density=[0.4, 0.7], **{"lambda": 0.9}
    )
    close(ours, wanted)


def test_ties_of_one_whole_model_is_that_model() -> None:
    base, a, _ = tensors()
    torch.testing.assert_close(merged("ties", [a], base, weight=[1.0]), a, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_dare_drops_by_its_masks_and_keeps_the_l1_size(name: str) -> None:
    base, a, b = tensors()
    sparse = []
    for number, own in enumerate((a, b)):
        delta = own - base
        mask = chance.mask(5, "w", number, 0, 0.6, delta)
        left = delta * mask
        sparse.append((left * delta.abs().sum() / left.abs().sum()).double())
    weight = [0.3, 0.8]
    total = 0.3 * sparse[0] + 0.8 * sparse[1]
    wanted = base + (total if name == "dare_linear" else elected(sparse, weight, normalize=False))
    close(merged(name, [a, b], base, seed=5, weight=weight, density=[0.6, 0.6]), wanted)


def test_dare_averages_to_the_delta_over_seeds() -> None:
    base, a = tensors(2)
    many = [merged("dare_linear", [a], base, seed=seed, weight=[1.0], density=[0.5]) for seed in range(400)]
    mean = torch.stack(many).mean(dim=0)
    off = (mean - a).abs().max() / (a - base).abs().max()
    assert off < 0.2  # of one entry among 480, whose own spread over 400 seeds is 1/20
    assert float((mean - a).norm() / (a - base).norm()) < 0.06


def test_passthrough_scales_one_model() -> None:
    a = tensors(1)[0]
    assert torch.equal(merged("passthrough", [a], None), a)
    assert torch.equal(merged("passthrough", [a], None, scale=[0.5]), a * 0.5)


@pytest.mark.parametrize("name", ["breadcrumbs", "breadcrumbs_ties"])
def test_breadcrumbs_keeps_changes_of_middling_size(name: str) -> None:
    base, a, b = (tensor.double() for tensor in tensors())
    deltas = []
    for own in (a, b):
        delta = own - base
        order = delta.abs().reshape(-1).argsort()
        n = len(order)
        kept, top = int(0.5 * n), int(0.1 * n)
        mask = torch.zeros(n, dtype=torch.float64)
        mask[order[n - kept - top : n - top]] = 1
        deltas.append(delta * mask.reshape(delta.shape))
    weight = [0.3, 0.8]
    total = 0.3 * deltas[0] + 0.8 * deltas[1]
    wanted = base + (total if name == "breadcrumbs" else elected(deltas, weight, normalize=False))
    inputs = [a.float(), b.float()]
    close(merged(name, inputs, base.float(), weight=weight, density=[0.5, 0.5], gamma=[0.1, 0.1]), wanted)


def test_della_keeps_larger_changes_more_often() -> None:
    base, a = tensors(2, shape=(6, 40))
    delta = a - base
    kept = torch.zeros_like(delta)
    for seed in range(300):
        changed = merged("della_linear", [a], base, seed=seed, weight=[1.0], density=[0.5], epsilon=[0.3])
        kept += (changed != base).float()
    kept /= 300
    ranks = delta.abs().argsort(dim=1).argsort(dim=1).float() / 39
    wanted = 0.2 + 0.6 * ranks
    assert float((kept - wanted).abs().mean()) < 0.04


def test_model_stock_goes_as_far_as_the_changes_agree() -> None:
    base, a, b, c = (tensor.double() for tensor in tensors(4))
    deltas = [own - base for own in (a, b, c)]
    pairs = [(0, 1), (0, 2), (1, 2)]
    cosines = [(deltas[i] * deltas[j]).sum() / deltas[i].norm() / deltas[j].norm() for i, j in pairs]
    cosine = sum(cosines) / 3
    t = 3 * cosine / (1 + 2 * cosine)
    wanted = t * (a + b + c) / 3 + (1 - t) * base
    close(merged("model_stock", [a.float(), b.float(), c.float()], base.float()), wanted)
    rows = merged("model_stock", [a[:1].float(), b[:1].float()], base[:1].float(), filter_wise=True)
    close(rows, merged("model_stock", [a[:1].float(), b[:1].float()], base[:1].float()))


def test_nuslerp_is_slerp_by_weights_of_models_or_changes() -> None:
    base, a, b = tensors()
    close(merged("nuslerp", [a, b], None, weight=[1, 3]), slerp(a, b, 0.75))
    close(merged("nuslerp", [a, b], base, weight=[1, 3]), base + slerp(a - base, b - base, 0.75))
    rows = merged("nuslerp", [a, b], None, weight=[1, 3], nuslerp_flatten=False)
    close(rows[3], slerp(a[3], b[3], 0.75))
    columns = merged("nuslerp", [a, b], None, weight=[1, 3], nuslerp_flatten=False, nuslerp_row_wise=True)
    close(columns[:, 5], slerp(a[:, 5], b[:, 5], 0.75))


def test_multislerp_and_karcher_lie_on_the_sphere_between_the_models() -> None:
    a, b, c = (tensor.double() for tensor in torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(2)))
    units = [own / own.norm() for own in (a, b, c)]
    size = sum(own.norm() for own in (a, b, c)) / 3
    mean = sum(units)
    assert isinstance(mean, Tensor)
    inputs = [own.float() for own in (a, b, c)]
    close(merged("multislerp", inputs, None, weight=[1, 1, 1]), mean / mean.norm() * size)
    found = merged("karcher", inputs, None).double()
    assert float(found.norm() / size) == pytest.approx(1, abs=1e-5)
    point = found / found.norm()
    pull = sum(
        (unit - (unit * point).sum() * point) * (angle := torch.acos((unit * point).sum())) / torch.sin(angle)
        for unit in units
    )
    assert float(torch.as_tensor(pull).norm()) < 1e-4  # the mean's own condition: all pulls cancel out


def test_karcher_of_two_models_is_the_middle_of_their_arc() -> None:
    a, b = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(4))
    b = b / b.norm() * a.norm()
    close(merged("karcher", [a, b], None), slerp(a, b, 0.5))


def test_nearswap_moves_no_further_than_t() -> None:
    base, a = tensors(2)
    found = merged("nearswap", [a], base, t=0.05)
    gap = (a - base).abs()
    assert torch.equal(found[gap <= 0.05], a[gap <= 0.05])
    torch.testing.assert_close(
        (found - base).abs()[gap > 0.05], torch.full_like(gap[gap > 0.05], 0.05), rtol=0, atol=1e-5
    )


def test_sce_selects_calculates_and_erases() -> None:
    base, a, b = (tensor.double() for tensor in tensors())
    deltas = torch.stack([a - base, b - base])
    variance = deltas.var(dim=0, unbiased=False)
    keep = variance >= variance.reshape(-1).sort(descending=True).values[int(0.5 * variance.numel()) - 1]
    deltas = deltas * keep
    weights = deltas.square().mean(dim=(1, 2))
    weights = weights / weights.sum()
    agree = deltas.sign() == torch.where(deltas.sum(0) >= 0, 1.0, -1.0)
    kept = weights[:, None, None] * agree
    wanted = base + (kept * deltas).sum(0) / kept.sum(0).clamp(min=1e-6)
    close(merged("sce", [a.float(), b.float()], base.float(), select_topk=0.5), wanted)


def test_arcee_fusion_takes_whole_entries_that_matter() -> None:
    base, a = tensors(2)
    found = merged("arcee_fusion", [a], base)
    changed = found != base
    assert 0 < int(changed.sum()) < changed.numel() // 2
    torch.testing.assert_close(found[changed], a[changed])


ALONE = ("passthrough",)
PAIRS = ("slerp", "nearswap", "arcee_fusion")


@pytest.mark.parametrize("name", names())
def test_x_merged_with_x_is_x(name: str) -> None:
    x = tensors(1)[0]
    known, used = parameters(method(name)), method(name)
    count = 1 if name in (*ALONE, *PAIRS) else 2
    values: dict[str, Any] = {"weight": [0.5] * count} if "weight" in known else {}
    values |= {"t": 0.4} if "t" in known else {}
    values |= {"density": [0.5] * count} if "density" in known else {}
    base = None if used.BASE == "input" else x
    torch.testing.assert_close(merged(name, [x] * count, base, **values), x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in names() if not hasattr(method(name), "whole")])
def test_blocks_do_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from prune.merging import sparsify, stream

    base, a, b = tensors(shape=(700, 11))
    inputs = [a] if name in (*ALONE, *PAIRS) else [a, b]
    known = parameters(method(name))
    values: dict[str, Any] = {"weight": [0.3, 0.8]} if "weight" in known else {}
    values |= {"t": 0.02} if "t" in known else {}
    values |= {"density": [0.3, 0.6]} if "density" in known else {}
    start = None if method(name).BASE == "input" else base
    whole = merged(name, inputs, start, **values)
    monkeypatch.setattr(stream, "SIZE", 7700 // 3)
    monkeypatch.setattr(sparsify, "SMALL", 10)
    if name == "slerp":
        monkeypatch.setattr(method(name), "BLOCK", 1000)
    parts = merged(name, inputs, start, **values)
    if name.startswith("dare"):  # masks are drawn block by block
        assert float((parts - base).norm() / (whole - base).norm()) == pytest.approx(1, abs=0.1)
    else:
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spread", [1.0, 0.0])
def test_the_threshold_is_exact_however_the_sample_falls(spread: float) -> None:
    """Sorted entries, and entries of which most are equal, mislead a sample."""
    from prune.merging import sparsify

    n = sparsify.SMALL * 2
    sizes = torch.arange(n, dtype=torch.float32) if spread else (torch.arange(n) % 3 == 0).float()
    zero = torch.zeros(())

    def block(start: int, stop: int) -> Block:
        return Block([sizes[start:stop]], zero, lambda *_: zero)

    ranks = [1, 10, n // 3, n // 2, n - 1]
    (found,) = sparsify.nth_largest(Blocks(n, n // 8, block), [ranks])
    ordered = sizes.sort(descending=True).values
    assert found == [float(ordered[rank - 1]) for rank in ranks]


def test_masks_follow_from_seed_tensor_input_and_place_alone() -> None:
    like = torch.zeros(100_001)
    one = chance.mask(1, "a", 0, 0, 0.3, like)
    assert torch.equal(one, chance.mask(1, "a", 0, 0, 0.3, like))
    assert abs(float(one.mean()) - 0.3) < 0.01
    others = [(2, "a", 0, 0), (1, "b", 0, 0), (1, "a", 1, 0), (1, "a", 0, 5)]
    for other in others:
        agree = float((chance.mask(*other, 0.3, like) == one).float().mean())
        assert abs(agree - (0.3**2 + 0.7**2)) < 0.01
    chances = torch.linspace(0, 1, 100_001)
    drawn = chance.mask(1, "a", 0, 0, chances, like)
    assert abs(float(drawn[:50_000].mean()) - 0.25) < 0.01


@pytest.mark.parametrize("share", [0.3, torch.linspace(0, 1, 1001)])
def test_a_remembered_mask_is_the_drawn_one(share: float | torch.Tensor) -> None:
    like, remembered = torch.zeros(1001), chance.Remembered(1, "a")
    wanted = chance.mask(1, "a", 2, 5, share, like)
    assert torch.equal(remembered.mask(5, 2, share, like), wanted)
    assert torch.equal(remembered.mask(5, 2, share, like), wanted)
    assert not torch.equal(remembered.mask(5, 1, share, like), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bound", [0.0, 2.0**-140, 0.25, float("inf")])
def test_changes_as_large_as_the_bound_stay(bound: float, dtype: torch.dtype) -> None:
    from prune.merging.sparsify import trimmed

    delta = torch.tensor([0.0, 2.0**-140, -(2.0**-140), 0.249, -0.249, 0.25, -0.25, 0.26, -3.0e38], dtype=dtype)
    assert torch.equal(trimmed(delta, bound), torch.where(delta.abs() >= bound, delta, 0))


def test_lambda_is_spelt_without_its_stroke() -> None:
    assert "lambda" in parameters(method("ties"))
    assert keywords({"lambda": 1.0}) == {"lambda_": 1.0}


def test_a_tensor_that_is_computed_twice_at_once_is_measured_once() -> None:
    profile = Profile({"w": "0"}, ["0"], {"w": ["a", "b"]}, {"w": 480})
    base, a, b = tensors()

    def block(start: int, stop: int) -> Block:
        one, two, zero = (tensor.reshape(-1)[start:stop] for tensor in (a, b, base))
        return Block([one, two], zero, lambda *_: zero)

    first, second, stopped = (profile.watch("w") for _ in range(3))
    assert first and second and stopped
    stopped(block(0, 240))
    assert profile.rows() == []
    for see in (first, second):
        see(block(0, 240))
    for see in (second, first):
        see(block(240, 480))
    assert profile.watch("w") is None
    (row,) = profile.rows()
    wanted = {"a": float((a - base).norm()), "b": float((b - base).norm())}
    assert row["delta_norm"] == pytest.approx(wanted, rel=1e-5)
