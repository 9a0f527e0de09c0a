"""Encoders as ONNX: what onnxruntime computes where there is no torch is what the model computes."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from encoders.test_torch_chain import ALL, CHAINS, LINEAR
from faults.conftest import run, start  # noqa: F401

import scqfaiss
from scqfaiss.codebooks import Codebooks
from scqfaiss.encoders.chain import OPERATIONS, Chain
from scqfaiss.encoders.torch_chain import TorchChain
from scqfaiss.errors import ConfigError

for part in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(
        part, reason="exporting an encoder needs onnx, onnxscript and onnxruntime", exc_type=ImportError
    )

import onnx  # noqa: E402
from images import SIZE, model, network  # noqa: E402

from scqfaiss.galleries import onnx_export as portable  # noqa: E402

# ruff: noqa: F811  (fixtures are imported by name)
TOLERANCE = 1e-3

# A process that has nothing of ours, and no torch: reads {name: file, x}, writes z and what the file says of itself.
READER = """
import sys, json
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
out = {}
for name in sys.argv[1:]:
    session = onnxruntime.InferenceSession(name + ".onnx", options, providers=["CPUExecutionProvider"])
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    (z,) = session.run(None, {given.name: np.load(name + ".npy")})
    np.save(name + ".z.npy", z)
    out[name] = [given.name, given.shape, given.type, made.name, made.shape, made.type,
                 session.get_modelmeta().custom_metadata_map]
assert "torch" not in sys.modules and "scqfaiss" not in sys.modules
print(json.dumps(out))
"""


def read(folder, *names):
    """What a fresh process makes of NAME.onnx and NAME.npy -> the facts by name; z lies in NAME.z.npy."""
    done = subprocess.run(
        [sys.executable, "-c", READER, *names], capture_output=True, text=True, check=True, cwd=folder, timeout=50
    )
    return json.loads(done.stdout)


def f(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def of_layers(*layers, d_in=12):
    chain = Chain(d_in, layers)
    codebooks = Codebooks("product", f(2, 16, chain.d_out // 2), "ip")
    return scqfaiss.Model(chain, codebooks, {"method": "pq", "rule": "l2", "encoder": "linear"})


def test_what_is_exported_is_the_chain_itself():
    x = torch.from_numpy(f(7, 12, seed=1))
    with torch.no_grad():
        assert torch.equal(portable.Portable(Chain(12, ALL))(x), TorchChain(Chain(12, ALL))(x))
        z = portable.Portable(Chain(12))(x)
    assert torch.equal(z, x) and z is not x  # an output of its own


@pytest.mark.slow
def test_every_layer_without_torch(tmp_path):
    x = f(7, 12, seed=1)
    x[2] = 0
    models = {f"m{i}": of_layers(*layers) for i, layers in enumerate(CHAINS.values())}
    for name, m in models.items():
        (tmp_path / f"{name}.onnx").write_bytes(portable.to_bytes(m))
        np.save(tmp_path / f"{name}.npy", x)
    facts = read(tmp_path, *models)
    for name, m in models.items():
        z, want = np.load(tmp_path / f"{name}.z.npy"), m.embed(x)
        assert (z.dtype, z.shape) == (np.float32, want.shape)
        np.testing.assert_allclose(z, want, atol=TOLERANCE * np.abs(want).max(), err_msg=name)
        d = m.codebooks.d
        assert facts[name] == [
            "rows", ["n", 12], "tensor(float)", "z", ["n", d], "tensor(float)",
            {"scqfaiss.model_sha256": m.sha256, "scqfaiss.method": "pq", "scqfaiss.d": str(d)},
        ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["hybrid", "pyramid"])
def test_images_without_torch(pool, tmp_path):
    how = {"pool": pool, "layers": "features.5,features.12"}
    m, net = model(**how), network(**how)
    m.save(tmp_path / "m.safetensors")
    said = portable.export_encoder(tmp_path / "m.safetensors", tmp_path / "p.onnx")
    assert f": images (n, 3, {SIZE}, {SIZE}) uint8 to z (n, 8), " in said and said.endswith("checked with onnxruntime")
    x = np.random.default_rng(1).integers(0, 256, (3, 3, SIZE, SIZE), np.uint8)
    np.save(tmp_path / "p.npy", x)
    facts = read(tmp_path, "p")["p"]
    assert facts[:6] == ["images", ["n", 3, SIZE, SIZE], "tensor(uint8)", "z", ["n", 8], "tensor(float)"]
    assert facts[6] == {
        "scqfaiss.model_sha256": m.sha256, "scqfaiss.method": "pq", "scqfaiss.d": "8", "scqfaiss.size": str(SIZE),
        "scqfaiss.fit": "crop",
    }  # fmt: skip
    want = m.embed(net.features(x))
    np.testing.assert_allclose(np.load(tmp_path / "p.z.npy"), want, atol=TOLERANCE * np.abs(want).max())
    first = (tmp_path / "p.onnx").read_bytes()
    portable.export_encoder(tmp_path / "m.safetensors", tmp_path / "p.onnx")
    assert (tmp_path / "p.onnx").read_bytes() == first
    found = onnx.load(tmp_path / "p.onnx")
    assert {o.domain for o in found.opset_import} == {""}  # nothing but what every runtime has
    assert str(Path(scqfaiss.__file__).parent).encode() not in first and b".py" not in first


@pytest.mark.slow
def test_a_prefix_names_the_whole_model(tmp_path):
    config = {"method": "dpq", "rule": "l2", "encoder": "linear", "nested": True}
    m = scqfaiss.Model(Chain(12, [LINEAR, ("tanh", {})]), Codebooks("additive", f(2, 16, 8), "ip"), config)
    m.prefix(4).save(tmp_path / "cut.safetensors")
    portable.export_encoder(tmp_path / "cut.safetensors", tmp_path / "c.onnx")
    props = {p.key: p.value for p in onnx.load(tmp_path / "c.onnx").metadata_props}
    assert props["scqfaiss.model_sha256"] == m.sha256


@pytest.mark.slow
def test_the_command_says_one_line(tmp_path, start):
    model().save(tmp_path / "m.safetensors")
    found = start("export-encoder", "m.safetensors", "-o", "m.onnx", cwd=tmp_path)
    assert (found.code, found.err) == (0, "")
    assert found.out.count("\n") == 1 and found.out.startswith("m.onnx: images (n, 3, ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.safetensors"]


@pytest.mark.slow
def test_a_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    of_layers(LINEAR, ("tanh", {})).save(tmp_path / "m.safetensors")
    (tmp_path / "m.onnx").write_bytes(b"before")
    monkeypatch.setitem(OPERATIONS, "linear", replace(OPERATIONS["linear"], torch=lambda x, a: x[:, :8] * 1.01))
    with pytest.raises(ConfigError) as error:
        portable.export_encoder(tmp_path / "m.safetensors", tmp_path / "m.onnx")
    assert "m.onnx: onnxruntime differs from the model by " in str(error.value)
    assert str(error.value).endswith(" of the largest |z|, at most 0.001 is let through; nothing was written")
    assert (tmp_path / "m.onnx").read_bytes() == b"before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.safetensors"]


@pytest.mark.parametrize("z", [np.zeros((2, 3)), np.full((2, 4), np.nan), np.full((2, 4), 1.0011)])
def test_the_check_sees(z):
    want = np.ones((2, 4), np.float32)
    portable._compare(want + np.float32(9e-4), want, "x")
    with pytest.raises(ConfigError):
        portable._compare(z, want, "x")


@pytest.mark.slow
def test_a_network_that_cannot_be_written(tmp_path, monkeypatch):
    of_layers(LINEAR, ("tanh", {})).save(tmp_path / "m.safetensors")
    data_dependent = replace(OPERATIONS["linear"], torch=lambda x, a: x if float(x.sum()) > 0 else -x)
    monkeypatch.setitem(OPERATIONS, "linear", data_dependent)
    with pytest.raises(ConfigError, match=r"m\.safetensors: torch cannot write this encoder as ONNX \(\w+: "):
        portable.export_encoder(tmp_path / "m.safetensors", tmp_path / "m.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.safetensors"]


def test_where_galleries_hold_their_encoder_there_is_none_to_export(tmp_path):
    """They are searched with rows as they are: z would be encoded a second time."""
    of_layers(LINEAR, ("normalize", {})).save(tmp_path / "m.safetensors")
    with pytest.raises(ConfigError, match="hold their encoder: they are searched with rows as they are"):
        portable.export_encoder(tmp_path / "m.safetensors", tmp_path / "m.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.safetensors"]


def test_requests_that_are_refused(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    of_layers(LINEAR, ("tanh", {})).save("m.safetensors")
    assert (
        run("export-encoder", "m.safetensors", "-o", "m.pb").error
        == "Error: m.pb: these files end in .onnx; write m.onnx"
    )
    assert run("export-encoder", "none.safetensors", "-o", "m.onnx").error == "Error: none.safetensors: no such file"
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    found = run("export-encoder", "m.safetensors", "-o", "m.onnx")
    assert (found.code, found.error) == (2, 'Error: onnxscript is not installed: pip install "scqfaiss[onnx]"')
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.safetensors"]
