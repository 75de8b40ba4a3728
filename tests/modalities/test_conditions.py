"""What a model can be told, and what it is told by default."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from noiseloom.core.backbones import NETWORKS
from noiseloom.core.conditioning import given, null
from noiseloom.core.denoiser import Denoiser
from noiseloom.core.guidance import GUIDANCE
from noiseloom.core.randomness import sample_generators
from noiseloom.modalities.conditions import Conditions, each
from noiseloom.modalities.text import TEXT_ENCODERS, TextEncoder

COLUMNS: dict[str, Any] = {
    "label": ["10", "0", "2", "", "0"],
    "type": ["a", "b", "a", "b", "a"],
    "pitch": np.array([100.0, 200.0, 300.0, np.nan, 500.0]),
    "still": np.full(5, 50.0),
    "text": ["ten", "none at all", "two", "", "none"],
}
SECONDS = [0.1, 0.2, 0.3, 0.4, 0.5]


@TEXT_ENCODERS.register("test-words")
@dataclass(frozen=True)
class Words(TextEncoder):
    """Each word is its length, four times."""

    name: ClassVar[str] = "test-words"
    pooled: ClassVar[bool] = False

    @property
    def dim(self) -> int:
        return 4

    def embed(self, text: str) -> Tensor:
        return torch.tensor([[float(len(word) + i) for i in range(4)] for word in text.split()])


def fitted(**options: Any) -> Conditions:
    conditions = Conditions.fitted({**COLUMNS, "duration": SECONDS}, **options)
    return replace(conditions, positive=("duration",))


def sets(values: list[str] | None = None, **columns: Any) -> Conditions:
    """Digits, up to three of them."""
    return Conditions.fitted({"label": values or ["3", "8,3", "", "10", "8", "3,3,10", "3,8"], **columns})


def network(conditions: Conditions) -> Denoiser:
    torch.manual_seed(0)
    options = {"name": "dit", "channels": 3, "channels_last": True, "patch": [1], "width": 32, "depth": 1, "heads": 2}
    net = NETWORKS.build({**options, **conditions.network_options()})
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return Denoiser(net).eval()


def test_words_are_classes_and_numbers_numbers() -> None:
    conditions = fitted()
    assert conditions.labels == {"label": ["0", "2", "10"], "type": ["a", "b"]}
    assert conditions.numbers["pitch"] == {"mean": 275.0, "std": pytest.approx(np.std([100, 200, 300, 500]))}
    assert conditions.numbers["duration"]["mean"] == pytest.approx(0.3)
    assert conditions.numbers["still"]["std"] == 0.5  # not so small that 51 is a million deviations off
    assert conditions.names == ["label", "type", "pitch", "still", "duration"]
    again = Conditions(**conditions.config, positive=("duration",))
    assert again == conditions


def test_what_a_sample_is_told_and_what_not() -> None:
    told = [{"label": "10", "pitch": 275.0}, {"label": 0, "type": "b"}, {"label": 2.0, "duration": 0.3}, {"label": "9"}]
    cond = fitted().tensors(told)
    assert cond["label"].tolist() == [2, 0, 1, -1]  # the class 0 is a class
    assert cond["type"].tolist() == [-1, 1, -1, -1]
    assert cond["pitch"].isnan().tolist() == [False, True, True, True]
    assert cond["pitch"][0] == cond["duration"][2] == 0


def test_what_is_not_asked_comes_from_one_training_clip_of_the_class() -> None:
    conditions = fitted()
    for seed in range(40):
        drawn = conditions.drawn({"label": 0}, seed)
        row = SECONDS.index(drawn["duration"])
        assert row in (1, 4)
        assert (drawn["label"], drawn["pitch"]) == ("0", [200.0, 500.0][row == 4])
    drawn = [conditions.drawn({}, seed) for seed in range(60)]
    assert {own["duration"] for own in drawn} == set(SECONDS)
    assert all(("label" in own) == ("pitch" in own) for own in drawn)  # the fourth clip has neither
    assert conditions.drawn({"label": 10, "type": "b"}, 3)["type"] == "b"  # there is no such clip
    assert conditions.drawn({"pitch": "440"}, 3)["pitch"] == 440.0


def test_a_text_says_what_the_sound_is() -> None:
    drawn = fitted(text="characters").drawn({"text": "a bell", "label": 2}, 1)
    assert drawn["text"] == "a bell"
    assert drawn["label"] == "2"
    assert "type" not in drawn


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"label": 7}, "unknown label '7'. Choices: 0, 2, 10"),
        ({"pich": 7}, "unknown condition 'pich'. Did you mean 'pitch'"),
        ({"text": "a bell"}, "unknown condition 'text'. Choices: label"),
        ({"reference": "a.wav"}, "unknown condition 'reference'"),
        ({"duration": -1}, "duration must be positive, got -1"),
        ({"duration": 0}, "duration must be positive, got 0"),
        ({"duration": float("nan")}, "duration must be a finite number, got nan"),
        ({"duration": "long"}, "duration must be a finite number, got 'long'"),
        ({"pitch": True}, "pitch must be a finite number, got True"),
    ],
)
def test_what_the_model_does_not_know_is_told(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fitted().drawn(asked, 0)


@pytest.mark.parametrize("text", ["characters", "test-words"])
def test_texts_reach_the_network_and_can_be_left_out(text: str) -> None:
    conditions = fitted(text=text)
    name = "context" if text == "test-words" else "text"
    options = conditions.network_options()
    assert options.get("context_dim") == (4 if name == "context" else None)
    assert options["vectors"] == ({} if name == "context" else {"text": 256})
    told = [{"text": "a low tone"}, {"text": "bells"}, {"text": ""}, {}]
    cond: dict[str, Any] = conditions.tensors(told)
    assert cond[name].shape == ((4, 3, 4) if name == "context" else (4, 256))
    assert given(cond[name]).flatten(1).any(1).tolist() == [True, True, False, False]
    if name == "text":
        assert cond["text"][0].square().mean() == pytest.approx(1)
    denoiser, x = network(conditions), torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(1))

    def made(cond: dict[str, Any]) -> Tensor:
        return denoiser(x, 0.5, cond).x0.detach()

    empty = made(conditions.tensors([{}] * 4))
    differs = (made(cond) - empty).abs().flatten(1).amax(1) > 1e-4
    assert differs.tolist() == [True, True, False, False]
    assert torch.allclose(made(null(cond)), empty, atol=1e-6)  # type: ignore[arg-type]
    alone = denoiser(x[1:2], 0.5, conditions.tensors(told[1:2])).x0
    assert torch.allclose(alone, made(cond)[1:2], atol=1e-5)  # neighbours' longer texts do not matter
    for spec in ("classifier_free", {"name": "per_condition", "scales": {name: 3.0}}):
        guided = GUIDANCE.build(spec, denoise=denoiser)(x, 0.5, cond).x0
        scale = 2.0 if spec == "classifier_free" else 3.0
        assert torch.allclose(guided, torch.lerp(empty, made(cond), scale), atol=1e-4)


@pytest.mark.parametrize("text", ["characters", "test-words"])
def test_conditions_are_dropped_by_their_own_rates(text: str) -> None:
    conditions = fitted(text=text, drop={"text": 0.5, "label": 0.0, "type": 1.0, "all": 0.0})
    name = "context" if text == "test-words" else "text"
    count = 400
    cond: dict[str, Any] = conditions.tensors([{"text": "bells ring", "label": 0, "type": "a", "pitch": 1.0}] * count)
    cond["mask"] = torch.ones(count, 3, dtype=torch.bool)
    kept = conditions.dropped(cond, sample_generators(0, range(count)))
    told = {key: given(value).reshape(count, -1).all(1) for key, value in kept.items() if key != "mask"}
    share = {key: own.double().mean().item() for key, own in told.items()}
    assert (share["label"], share["type"]) == (1.0, 0.0)
    assert share[name] == pytest.approx(0.5, abs=0.1)  # four standard errors
    assert share["pitch"] == pytest.approx(0.9, abs=0.06)
    assert kept["mask"].all()


def test_lists_are_walked_through_in_turn() -> None:
    assert [each("label", ["a", "b"], i) for i in range(3)] == ["a", "b", "a"]
    assert each("text", "ab", 1) == "ab"
    with pytest.raises(ValueError, match="label is an empty list"):
        each("label", [], 0)


def test_names_that_mean_something_else_are_refused() -> None:
    for name in ("mask", "context", "spacing", "given", "pad_mask"):
        with pytest.raises(ValueError, match=f"no condition can be called '{name}'"):
            Conditions.fitted({name: ["a", "b"]})
    odd = Conditions.fitted({"type": ["a", "b"], "keys": ["c", "d"], "a.b": ["e", "f"]})
    denoiser = network(odd)  # names that a module has for itself
    out = [denoiser(torch.ones(1, 2, 3), 0.5, odd.tensors([{name: value}])).x0 for name, value in
           (("type", "a"), ("type", "b"), ("keys", "c"), ("a.b", "f"))]  # fmt: skip
    assert all((a - b).abs().max() > 1e-4 for a, b in pairwise(out))


def test_a_text_encoder_needs_texts() -> None:
    with pytest.raises(ValueError, match="no column 'text'"):
        Conditions.fitted({"label": ["a"]}, text="characters")


def test_a_value_may_be_a_set_of_classes() -> None:
    conditions = sets()
    assert conditions.labels == {"label": ["3", "8", "10"]}
    assert conditions.slots == {"label": 3}
    assert conditions.rows["label"] == ["3", "3,8", "", "10", "8", "3,3,10", "3,8"]
    assert conditions.network_options()["labels"] == {"label": 4}  # one more: nothing
    assert Conditions(**conditions.config) == conditions
    told = [{"label": "10,3"}, {"label": 8}, {}, {"label": "3,3,3"}, {"label": "3,9"}, {"label": "3,3,3,3"}]
    assert conditions.tensors(told)["label"].tolist() == [
        [0, 2, 3],
        [1, 3, 3],
        [-1, -1, -1],
        [0, 0, 0],
        [-1, -1, -1],  # held out: a class, and a number of them, that training did not have
        [-1, -1, -1],
    ]


def test_classes_with_a_comma_are_one_where_the_parts_are_none() -> None:
    for values in (["dog", "dog, barking", "cat"], ["Bach, J", "Bach, C"], ["a", "b", "a,b", "a,c"]):
        conditions = sets(values)
        assert conditions.labels == {"label": sorted(values)}
        assert (conditions.slots, conditions.network_options()["labels"]) == ({}, {"label": len(values)})
        assert conditions.tensors([{"label": values[1]}])["label"].tolist() == [sorted(values).index(values[1])]
        assert conditions.checked({"label": values[1]}) == {"label": values[1]}


def test_classes_that_recur_in_pairs_need_not_occur_alone() -> None:
    pairs = [f"{a},{b}" for a in range(4) for b in range(a, 4)]
    conditions = sets(pairs)
    assert (conditions.labels, conditions.slots) == ({"label": ["0", "1", "2", "3"]}, {"label": 2})


@pytest.mark.parametrize("asked", ["3,8", "8, 3", [3, 8], (8.0, "3"), ["8", 3]])
def test_a_set_can_be_asked_for_in_several_ways(asked: Any) -> None:
    assert sets().checked({"label": asked}) == {"label": "3,8"}


def test_sets_are_asked_for_one_a_sample() -> None:
    asked = [each("label", [[3, 8], [10], 8, "10,3"], index) for index in range(5)]
    assert [sets().checked({"label": one})["label"] for one in asked] == ["3,8", "10", "8", "3,10", "3,8"]
    assert [each("label", "3,8", index) for index in range(2)] == ["3,8", "3,8"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("3,7", "unknown label '7'. Choices: 3, 8, 10"),
        ([3, 7], "unknown label '7'. Choices: 3, 8, 10"),
        ("3,", "unknown label ''"),
        ([], "unknown label ''"),
        ("3,3,8,8", "label holds at most 3 classes, not 4: '3,3,8,8'"),
        ([10, 10, 8, 3], "label holds at most 3 classes, not 4"),
    ],
)
def test_sets_that_cannot_be_told(asked: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sets().checked({"label": asked})


def test_what_is_not_asked_comes_from_an_item_with_that_set() -> None:
    conditions = sets(fps=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    assert {conditions.drawn({"label": [8, 3]}, seed)["fps"] for seed in range(30)} == {2.0, 7.0}
    assert {conditions.drawn({"label": 3}, seed)["fps"] for seed in range(30)} == {1.0}
    assert len({conditions.drawn({"label": "8,8"}, seed)["fps"] for seed in range(60)}) == 7  # there is none
    assert {conditions.drawn({}, seed).get("label") for seed in range(60)} == {"3", "8", "10", "3,8", "3,3,10", None}


def test_sets_reach_the_network_whatever_their_order_and_can_be_left_out() -> None:
    conditions = sets()
    denoiser, x = network(conditions), torch.randn(1, 6, 3, generator=torch.Generator().manual_seed(1))

    def made(value: Any) -> Tensor:
        return denoiser(x, 0.5, conditions.tensors([{"label": value}])).x0.detach()

    assert torch.equal(made("3,8"), made("8,3"))
    outputs = [made(value) for value in (None, "3", "3,3", "3,8", "8", "3,3,8")]
    assert all((a - b).abs().max() > 1e-4 for a, b in pairwise([*outputs, outputs[0]]))
    cond: dict[str, Any] = conditions.tensors([{"label": "3,8"}])
    assert torch.equal(null(cond)["label"], conditions.tensors([{}])["label"])  # type: ignore[index]
    gone = conditions.dropped({"label": cond["label"].expand(400, -1)}, sample_generators(0, range(400)))["label"]
    assert ((gone == -1).all(1) | (gone == cond["label"]).all(1)).all()
    assert (gone[:, 0] == -1).double().mean() == pytest.approx(0.19, abs=0.08)  # four standard errors


def test_nothing_but_a_text_or_nothing_at_all() -> None:
    assert Conditions.fitted({}).drawn({}, 0) == {}
    assert Conditions.fitted({"text": ["a", "b"]}, text="characters").drawn({"text": "c"}, 0) == {"text": "c"}
