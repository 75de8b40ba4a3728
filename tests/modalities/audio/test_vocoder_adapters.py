"""Other people's vocoders: small ones with random weights, from folders like theirs."""

import importlib
import json

import pytest
import torch
from safetensors.torch import save_file

from noiseloom.modalities.audio.mel import PRESETS
from noiseloom.modalities.audio.representation import build_representation
from noiseloom.modalities.audio.vocoder_adapters import VOCODERS
from noiseloom.modalities.extras import MissingExtra

SMALL_HIFIGAN = {
    "model_in_dim": 64,
    "sampling_rate": 16000,
    "upsample_initial_channel": 16,
    "upsample_rates": [5, 4, 4, 2],
    "upsample_kernel_sizes": [16, 8, 8, 4],  # 16 for a stride of 5: some samples too many, as in AudioLDM's
    "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [[1, 3], [1, 2]],
    "normalize_before": False,
}
SMALL_UNIVNET = {"model_in_channels": 8, "model_hidden_channels": 4, "kernel_predictor_hidden_channels": 8}
MELS = {"sample_rate": 24000, "n_fft": 1024, "hop_length": 256, "n_mels": 100, "padding": "center"}
SMALL_VOCOS = {
    "backbone": {"input_channels": 100, "dim": 8, "intermediate_dim": 16, "num_layers": 2},
    "head": {"dim": 8, "n_fft": 1024, "hop_length": 256, "padding": "center"},
}
ARCHITECTURES = {"hifigan": SMALL_HIFIGAN, "univnet": SMALL_UNIVNET, "vocos": SMALL_VOCOS}
PACKAGES = {"hifigan": "transformers", "univnet": "transformers", "vocos": "vocos.models"}

adapters = pytest.mark.parametrize("name", ARCHITECTURES)


def small(name, **options):
    """An adapter with random weights that are not too small to hear."""
    pytest.importorskip(PACKAGES[name], reason="needs the extra 'audio-vocoders'")
    torch.manual_seed(0)
    adapter = VOCODERS.build({"name": name, "architecture": {**ARCHITECTURES[name], **options}})
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.5 if name == "vocos" else 0.1))
    return adapter


def write(folder, adapter, pickled=False):
    """A folder as the adapter's own project publishes it, with tensors that are of no use here."""
    parts = {
        "feature_extractor": ("vocos.feature_extractors.MelSpectrogramFeatures", MELS),
        "backbone": ("vocos.models.VocosBackbone", SMALL_VOCOS["backbone"]),
        "head": ("vocos.heads.ISTFTHead", SMALL_VOCOS["head"]),
    }
    if adapter.name == "vocos":  # JSON is YAML
        content = {part: {"class_path": path, "init_args": options} for part, (path, options) in parts.items()}
    else:
        content = {"architectures": ["Model"], "torch_dtype": "float32", **adapter.architecture}
    (folder / adapter.config_file).write_text(json.dumps(content))
    tensors = {**adapter.model.state_dict(), "feature_extractor.window": torch.ones(3)}
    if pickled:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "model.safetensors")


def log_mel(adapter, frames, batch=2):
    preset = PRESETS[adapter.preset]
    return torch.randn(batch, frames, preset.bands, generator=torch.Generator().manual_seed(1))


@adapters
def test_frames_become_their_samples(name):
    adapter = small(name)
    preset = PRESETS[adapter.preset]
    for frames in (4, 11):
        mel = log_mel(adapter, frames)
        audio = adapter(mel)
        assert audio.shape == (2, (frames - preset.centred) * preset.hop)
        assert audio.std() > 0
        assert audio.equal(adapter(mel))
        assert torch.allclose(adapter(mel[1:])[0], audio[1], atol=1e-5)


@adapters
def test_it_serves_a_representation_of_its_preset_only(name):
    adapter = small(name)
    representation = build_representation({"name": "mel", "preset": adapter.preset, "vocoder": adapter})
    frames = log_mel(adapter, 130, batch=1)
    samples = 128 * representation.hop + 7
    whole = representation.decode(frames, [samples])[0]
    assert whole.shape == (1, samples)
    pieces = torch.cat(list(representation.decode_chunks(frames[0], samples, chunk=10)), dim=1)
    assert (pieces - whole).abs().max() < 1e-4 * whole.abs().max()

    again = build_representation(json.loads(json.dumps(representation.config)))
    again.load_state_dict(representation.state_dict())
    assert again.decode(frames, [samples])[0].equal(whole)

    with pytest.raises(ValueError, match=f"'{adapter.preset}'.*'speech-8k'"):
        build_representation({"name": "mel", "preset": "speech-8k", "vocoder": adapter})


@adapters
@pytest.mark.parametrize("pickled", [False, True])
def test_a_folder_gives_architecture_and_weights(name, pickled, tmp_path):
    adapter = small(name)
    (tmp_path / "vocoder").mkdir()
    write(tmp_path / "vocoder", adapter, pickled)
    again = VOCODERS.build({"name": name, "source": str(tmp_path), "subfolder": "vocoder"})
    mel = log_mel(adapter, 5)
    assert again(mel).equal(adapter(mel))
    assert "source" not in again.spec()  # what is stored needs neither the folder nor the net


@adapters
def test_a_broken_folder_is_refused(name, tmp_path):
    adapter = small(name)
    with pytest.raises(FileNotFoundError, match=adapter.config_file):
        VOCODERS.build({"name": name, "source": str(tmp_path)})
    write(tmp_path, adapter)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        VOCODERS.build({"name": name, "source": str(tmp_path)})
    save_file({"other": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="weights lack"):
        VOCODERS.build({"name": name, "source": str(tmp_path)})
    with pytest.raises(ValueError, match="source or an architecture"):
        VOCODERS.build({"name": name})


@pytest.mark.parametrize(
    "name, options, found",
    [
        ("hifigan", {"model_in_dim": 80, "upsample_rates": [4, 4, 4, 4]}, "bands 80, hop 256"),  # SpeechT5's own
        ("univnet", {"num_mel_bins": 80}, "bands 80"),
        ("vocos", {"head": {**SMALL_VOCOS["head"], "hop_length": 320}}, "hop 320"),
    ],
)
def test_a_model_for_other_mels_is_refused(name, options, found):
    with pytest.raises(ValueError, match=f"preset.*{found}"):
        small(name, **options)


def test_a_class_path_is_not_imported(tmp_path):
    adapter = small("vocos")
    write(tmp_path, adapter)
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("vocos.heads.ISTFTHead", "os.system"))
    with pytest.raises(ValueError, match=r"head is 'os\.system'"):
        VOCODERS.build({"name": "vocos", "source": str(tmp_path)})
    for content in ("!!python/object/apply:os.getcwd []", "backbone: 3", "{"):
        (tmp_path / "config.yaml").write_text(content)
        with pytest.raises(ValueError, match=r"config\.yaml is none of a Vocos model"):
            VOCODERS.build({"name": "vocos", "source": str(tmp_path)})


def test_code_in_the_weights_is_not_run(tmp_path):
    adapter = small("hifigan")
    write(tmp_path, adapter)
    (tmp_path / "model.safetensors").unlink()
    reached = []

    class Payload:
        def __reduce__(self):
            return reached.append, (1,)

    torch.save({"weight": Payload()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        VOCODERS.build({"name": "hifigan", "source": str(tmp_path)})
    assert not reached


def test_a_missing_package_names_its_extra(monkeypatch):
    def absent(module):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(importlib.import_module("noiseloom.modalities.extras"), "import_module", absent)
    for name, architecture in ARCHITECTURES.items():
        with pytest.raises(MissingExtra, match=r"noiseloom\[audio-vocoders\]"):
            VOCODERS.build({"name": name, "architecture": architecture})
