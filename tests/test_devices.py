"""One reading of devices and precisions for trainings, networks of images and searches."""

import pytest

from scqfaiss.devices import PRECISIONS, Device, check_precision, parse_device, torch_device, torch_dtype
from scqfaiss.errors import ConfigError

NO_DEVICES = [
    "gpu",
    "CUDA",
    "cuda:",
    "cuda:-1",
    "cuda:x",
    "cuda:0:1",
    "cuda:²",
    "cuda:٣",
    "",
    "cuda:" + "9" * 5000,
    None,
]


def test_names_of_devices():
    names = ["cpu", "auto", "cuda", "cuda:0", "cuda:12"]
    assert [str(parse_device(name)) for name in names] == names
    assert parse_device("cuda:03") == Device("cuda", 3)


@pytest.mark.parametrize("name", NO_DEVICES)
def test_other_names_are_refused(name):
    with pytest.raises(ConfigError, match=r"^encoder device is .*, needs auto, cpu, cuda or cuda:N$"):
        parse_device(name, "encoder device")
    with pytest.raises(ConfigError, match=r"^device is .*, needs cpu, cuda or cuda:N$"):
        parse_device(name, auto=False)


def test_auto_is_refused_where_it_is_not_taken():
    with pytest.raises(ConfigError, match=r"^device is 'auto', needs cpu, cuda or cuda:N$"):
        parse_device("auto", auto=False)


def test_torch_is_asked_for_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert [torch_device(name) for name in ("auto", "cpu")] == ["cpu", "cpu"]
    with pytest.raises(
        ConfigError, match=r"^encoder device cuda was asked for, .* sees no GPU; use --encoder-device cpu$"
    ):
        torch_device("cuda", "encoder device")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [torch_device(name) for name in ("auto", "cuda", "cuda:1")] == ["cuda", "cuda", "cuda:1"]
    assert [torch_device(name, number=1) for name in ("auto", "cuda", "cuda:0")] == ["cuda:1", "cuda:1", "cuda:0"]
    for name, number in (("cuda:2", None), ("cuda", 2)):
        with pytest.raises(
            ConfigError, match=r"^device cuda:2 was asked for, but this torch sees 2 GPUs, from cuda:0 on$"
        ):
            torch_device(name, number=number)


def test_precisions():
    import torch

    assert [torch_dtype(name) for name in PRECISIONS] == [None, torch.bfloat16, torch.float16]
    with pytest.raises(
        ConfigError, match=r"^precision is 'float61', needs one of float32, bfloat16, float16; did you mean"
    ):
        check_precision("float61")
    with pytest.raises(
        ConfigError, match=r"^encoder precision is 'float16', needs one of float32, bfloat16; did you mean"
    ):
        check_precision("float16", "encoder precision", ("float32", "bfloat16"))
