"""Images as rows: on the way into galleries and searches, and in files of features."""

import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
from close import assert_as_good, assert_close, roundings
from faults.conftest import run, write_h5  # noqa: F401

import scqfaiss
from scqfaiss.data import ArraySource, open_rows
from scqfaiss.errors import ConfigError, DataError, ScqWarning
from scqfaiss.features.source import FeatureSource, InferenceOptions, as_rows
from scqfaiss.galleries.reading import read_gallery
from scqfaiss.modality import ROWS

pytest.importorskip("PIL", reason="images need Pillow")

from images import NETWORK, SIZE, draw, model, network, photos, plain

# ruff: noqa: F811  (fixtures are imported by name)
pytestmark = pytest.mark.filterwarnings("ignore::scqfaiss.errors.ScqWarning")
SEEN = 500  # roundings of a feature: ten layers of windows, whose sums are long and average out


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """db/ (18 images of 3 classes), q/ (6 of the last two), m.safetensors, folded.safetensors, and their features."""
    folder = tmp_path_factory.mktemp("pictures")
    photos(folder / "db")
    photos(folder / "q", 3, ("green", "red"), seed=1)
    model().save(folder / "m.safetensors")
    model(folded=True).save(folder / "folded.safetensors")
    for name in ("db", "q"):
        with open_rows(folder / name) as source:
            source.shaped(SIZE, "crop")
            x = network().features(source.read(0, len(source)))
            write_h5(folder / f"{name}.h5", x, source.labels.y, source.ids, source.labels.class_names)
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """The folder of `made` seen from a folder of its own."""
    for path in made.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ----------------------------------------------------------------------------------------------------------- the source
def test_a_feature_source_is_its_images_seen(made, monkeypatch):
    monkeypatch.setattr("scqfaiss.features.source.BATCH", 5)
    with open_rows(made / "db") as source, open_rows(made / "db.h5") as rows:
        seen = as_rows(source, model())
        assert isinstance(seen, FeatureSource)
        assert (len(seen), seen.d, seen.name, seen.path) == (18, 512, source.name, source.path)
        np.testing.assert_array_equal(seen.ids, source.ids)
        np.testing.assert_array_equal(seen.labels.y, source.labels.y)
        assert seen.names == source.names
        assert seen.modality == ROWS
        want = rows.read(0, 18)
        np.testing.assert_allclose(seen.read(0, 18), want, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(seen.read(3, 17), want[3:17], rtol=1e-4, atol=1e-5)
        assert seen.read(4, 4).shape == (0, 512)
        blocks = list(seen.blocks())
        assert [i for i, _ in blocks] == [0, 5, 10, 15]
        np.testing.assert_allclose(np.concatenate([x for _, x in blocks]), want, rtol=1e-4, atol=1e-5)
        assert [len(x) for _, x in seen.blocks(7)] == [7, 7, 4]


def test_rows_stay_as_they_are():
    rows = ArraySource(np.zeros((3, 512), np.float32))
    assert as_rows(rows, model()) is rows


def test_images_for_a_model_that_has_no_network(made):
    with open_rows(made / "db") as source, pytest.raises(ConfigError) as error:
        as_rows(source, plain(512), name="m.safetensors")
    assert str(error.value) == (
        f"{source.name} holds images, m.safetensors takes rows of d=512: make rows with `scqfaiss features`"
    )


def test_a_foreign_network_is_imported_only_where_the_user_says_so(made, tmp_path, monkeypatch):
    code = "from scqfaiss.encoders.squeezenet import squeezenet1_0\ndef f():\n    return squeezenet1_0()\n"
    (tmp_path / "foreign_net.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    m = model()
    record = m.config["backbone"] | {"factory": "foreign_net:f"}
    foreign = scqfaiss.Model(m.chain, m.codebooks, m.config | {"backbone": record}, m.backbone)
    with open_rows(made / "db") as source:
        for encoder in (None, "squeezenet", "foreign_net:g"):
            with pytest.raises(ConfigError, match="built by foreign_net:f; name it with --encoder foreign_net:f"):
                as_rows(source, foreign, InferenceOptions(encoder))
            assert "foreign_net" not in sys.modules
        seen = as_rows(source, foreign, InferenceOptions("foreign_net:f"))
        np.testing.assert_array_equal(seen.read(0, 2), as_rows(source, m).read(0, 2))


def test_features_that_are_not_finite_name_the_image(made, monkeypatch):
    with open_rows(made / "db") as source:
        seen = as_rows(source, model())
        whole = type(seen.encoder).features

        def broken(self, images):
            x = whole(self, images)
            x[7] = np.nan
            return x

        monkeypatch.setattr(type(seen.encoder), "features", broken)
        with pytest.raises(DataError, match=r"db: the network gives features of green/p1.png that are not finite$"):
            seen.read(0, 18)


@pytest.mark.parametrize(
    "inference_options, message",
    [
        (InferenceOptions(device="tpu"), "encoder device is 'tpu', needs auto, cpu, cuda or cuda:N"),
        (
            InferenceOptions(precision="bfloat"),
            "encoder precision is 'bfloat', needs one of float32, bfloat16; did you mean",
        ),
    ],
)
def test_seeing_is_checked(made, inference_options, message):
    with open_rows(made / "db") as source, pytest.raises(ConfigError) as error:
        as_rows(source, model(), inference_options)
    assert str(error.value).startswith(message)


def test_bfloat16_is_near(made):
    with open_rows(made / "db") as source:
        x, rough = (
            as_rows(source, model(), InferenceOptions(precision=p)).read(0, 18) for p in ("float32", "bfloat16")
        )
    assert not np.array_equal(x, rough)
    np.testing.assert_allclose(rough, x, atol=0.05 * np.abs(x).max())


def test_naming_features_loads_no_torch():
    code = "import scqfaiss.features.files, sys; print('torch' in sys.modules or 'PIL' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# ------------------------------------------------------------------------------------------------------ files of features
def test_a_file_of_features(run, here, made):
    found = run("features", "db", "-o", "f.h5", "--model", "m.safetensors")
    assert (found.code, found.err) == (0, "features: 18 of 18, " + found.err.partition("features: 18 of 18, ")[2])
    assert found.out.startswith("f.h5: 18 images, features of d=512, ")
    assert not Path("f.h5.parts").exists()
    with open_rows("f.h5") as rows, open_rows("db") as source:
        assert rows.sealed
        np.testing.assert_array_equal(rows.labels.y, source.labels.y)
        assert rows.labels.class_names == ("blue", "green", "red")
        np.testing.assert_array_equal(rows.ids, source.ids)
        with open_rows("db.h5") as want:
            np.testing.assert_allclose(rows.read(0, 18), want.read(0, 18), rtol=1e-4, atol=1e-5)
    with h5py.File("f.h5") as f:
        assert [n.decode() for n in f["names"]] == [f"{c}/p{i}.png" for c in ("blue", "green", "red") for i in range(6)]
        assert {k: f.attrs[k] for k in ("size", "precision", "model_sha256")} == {
            "size": SIZE,
            "precision": b"float32",
            "model_sha256": model().sha256.encode(),
        }
        assert f.attrs["encoder"] == b"scqfaiss.encoders.squeezenet:squeezenet1_0"
        assert (f.attrs["layers"], f.attrs["pool"], f.attrs["fit"]) == (b"features.12", b"average", b"crop")
        assert f["features"].fletcher32 and f["names"].fletcher32
    first = Path("f.h5").read_bytes()
    assert run("features", "db", "-o", "f.h5", "--model", "m.safetensors").code == 0
    assert Path("f.h5").read_bytes() == first
    assert run("info", "f.h5").code == 0


def test_features_of_a_network_by_name_with_weights(run, here):
    from safetensors.numpy import save_file

    tensors, _ = network().record()
    save_file({k.removeprefix("net."): t for k, t in tensors.items() if k.startswith("net.")}, "w.safetensors")
    found = run("features", "db", "-o", "f.h5", *NETWORK, "--weights", "w.safetensors", "--dtype", "float16")
    assert (found.code, found.warnings) == (0, [])
    with open_rows("f.h5") as rows, open_rows("db.h5") as want, h5py.File("f.h5") as f:
        assert f["features"].dtype == np.float16
        assert len(f.attrs["weights_sha256"]) == 64
        np.testing.assert_allclose(rows.read(0, 18), want.read(0, 18), rtol=2e-3, atol=1e-3)
    found = run("features", "db", "-o", "g.h5", *NETWORK)
    assert found.warnings == ["squeezenet has random weights; --weights FILE gives it trained ones"]


def test_features_of_flat_folders_and_lists(run, here):
    Path("flat").mkdir()
    for i in range(3):
        (Path("flat") / f"x{i}.png").symlink_to(here / "db" / "red" / f"p{i}.png")
    assert run("features", "flat", "-o", "f.h5", "--model", "m.safetensors").code == 0
    with open_rows("f.h5") as rows, open_rows("db.h5") as want, h5py.File("f.h5") as f:
        assert rows.labels is None
        assert sorted(f) == ["features", "names"]
        assert not rows.has_ids
        np.testing.assert_allclose(rows.read(0, 3), want.read(12, 15), rtol=1e-4, atol=1e-5)
    for i in range(3):
        (Path("flat") / f"x{i}.png").rename(Path("flat") / f"{40 - i}.png")
    assert run("features", "flat", "-o", "f.h5", "--model", "m.safetensors").code == 0
    with open_rows("f.h5") as rows:
        assert rows.has_ids and rows.ids.tolist() == [38, 39, 40]


def test_bad_images_are_left_out(run, here):
    Path("some").mkdir()
    for i in range(3):
        (Path("some") / f"x{i}.png").symlink_to(here / "db" / "red" / f"p{i}.png")
    (Path("some") / "x1.png").unlink()
    (Path("some") / "x1.png").write_bytes(b"no image")
    asked = ("features", "some", "-o", "f.h5", "--model", "m.safetensors")
    assert run(*asked).code == 3
    assert run(*asked, "--skip-bad-rows").out.startswith("f.h5: 2 images, ")
    with open_rows("f.h5") as rows, h5py.File("f.h5") as f:
        assert [n.decode() for n in f["names"]] == ["x0.png", "x2.png"]
        assert rows.ids.tolist() == [0, 2]  # as in a gallery of the images themselves


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (("db", "-o", "f.h5"), 2, "features need a network: give --encoder, or --model of a model for images"),
        (("db", "-o", "f.npy", *NETWORK), 2, "f.npy: files of features end in one of .h5 .hdf5 .hdf"),
        (("db.h5", "-o", "f.h5", *NETWORK), 2, "db.h5 holds rows already, needs images"),
        (("db.h5", "-o", "db.h5", *NETWORK), 2, "db.h5 is an input of this command; choose another output"),
        (("db", "-o", "f.h5", *NETWORK, "--dtype", "int8"), 2, "dtype is 'int8', needs one of float32, float16"),
        (("none", "-o", "f.h5", *NETWORK), 2, "none: no such file"),
        (
            ("db", "-o", "f.h5", "--model", "m.safetensors", "--set", "size=64"),
            2,
            "--set goes with --encoder; with --model the network is as the model has it",
        ),
        (("db", "-o", "f.h5", *NETWORK, "--set", "pol=hybrid"), 2, "unknown key 'pol'; did you mean 'pool'?"),
        (("db", "-o", "no/f.h5", *NETWORK), 4, "no/f.h5: folder"),
    ],
)
def test_requests_that_are_refused(run, here, arguments, code, message):
    before = sorted(p.name for p in here.iterdir())
    found = run("features", *arguments)
    assert found.code == code
    assert found.error.startswith(f"Error: {message}")
    assert sorted(p.name for p in here.iterdir()) == before


def test_features_too_large_for_float16(run, here, monkeypatch):
    from scqfaiss.encoders.backbone import Backbone

    whole = Backbone.features
    monkeypatch.setattr(Backbone, "features", lambda self, images: whole(self, images) + np.float32(1e5))
    found = run("features", "db", "-o", "f.h5", "--model", "m.safetensors", "--dtype", "float16")
    assert (found.code, found.error) == (
        3,
        "Error: db: features of blue/p0.png are too large for float16; use --dtype float32",
    )
    assert run("features", "db", "-o", "f.h5", "--model", "m.safetensors").code == 0


@pytest.mark.slow
# ------------------------------------------------------------------------------------------------------------- galleries
@pytest.mark.parametrize("name", ["m", "folded"])
def test_a_gallery_of_images_is_that_of_their_features(run, here, name):
    m = f"{name}.safetensors"
    assert run("export", m, "db", "-o", "pictures.faissindex").code == 0
    assert run("export", m, "db.h5", "-o", "rows.faissindex").code == 0
    a, b = (read_gallery(f"{kind}.faissindex") for kind in ("pictures", "rows"))
    (codebooks, codes, ids), (_, of_rows, ids_of_rows) = (g.target.unpack(g.index, g.shape) for g in (a, b))
    np.testing.assert_array_equal(ids, ids_of_rows)
    whole = model(folded=name == "folded")
    with open_rows("db.h5") as rows:
        z = whole.embed(rows.read(0, 18))
    assert_as_good(codes, of_rows, codebooks, z, terms=SEEN + roundings(whole.chain))
    assert a.metadata == b.metadata
    assert a.metadata["pictures"] is True

    by_image = run("search", "pictures.faissindex", "q", "--model", m, "-k", "3", "-o", "a.h5")
    by_row = run("search", "pictures.faissindex", "q.h5", "--model", m, "-k", "3", "-o", "b.h5")
    assert (by_image.code, by_row.code) == (0, 0)
    with h5py.File("a.h5") as f, h5py.File("b.h5") as g:
        assert_close(f["scores"], g["scores"][:], SEEN + roundings(whole.chain))
        np.testing.assert_array_equal(f["query_ids"], g["query_ids"])
    lines = by_image.out.splitlines()
    assert lines[0] == "6 queries, 3 hits each, written to a.h5"
    assert [line.split("  ")[0] for line in lines[1:]] == [f"query {n}.png" for n in
        ("green/p0", "green/p1", "green/p2", "red/p0", "red/p1")]  # fmt: skip

    measured = [
        run("evaluate", "pictures.faissindex", q, d, "--model", m, "--json").out
        for q, d in (("q", "db"), ("q", "db.h5"))
    ]
    assert measured[0] == measured[1] != ""
    with open_rows("q.h5", labels_key="labels") as q:  # whose classes are numbered by their own folders
        write_h5("aligned.h5", q.read(0, 6), q.labels.y + 1, q.ids, ("blue", "green", "red"))
    assert run("evaluate", "pictures.faissindex", "aligned.h5", "db", "--model", m, "--json").out == measured[0]
    assert run("evaluate", "pictures.faissindex", "q.h5", "db.h5", "--model", m).error == (
        "Error: class 0 is 'green' in q.h5 and 'blue' in db.h5"
    )


def test_one_photo_prints_its_hits(run, here):
    run("export", "m.safetensors", "db", "-o", "g.faissindex")
    found = run("search", "g.faissindex", "q/red/p1.png", "--model", "m.safetensors", "-k", "2")
    assert found.code == 0
    first, second = found.out.splitlines()
    assert first == "1 queries, 2 hits each"
    assert second.startswith("query p1.png  ")


def test_images_come_to_a_gallery_later(run, here):
    for name in ("m", "folded"):
        m, g = f"{name}.safetensors", f"{name}.faissindex"
        run("export", m, "db", "-o", g)
        assert run("append", g, "q", "--model", m).out.startswith(f"{g}: 6 vectors added (ids 18 to 23), 24 in all")
        gallery = scqfaiss.open(g, model=m)
        with open_rows("q.h5") as q:
            x = q.read(0, 6)
        z, want, terms = gallery.model.embed(x), gallery.model.encode(x), SEEN + roundings(gallery.model.chain)
        assert_as_good(gallery.unpack()[1][18:], want, gallery.model.codebooks, z, terms=terms)


def test_what_a_network_sees_is_never_folded_into_a_gallery(run, here):
    """Images, features of them, and z by ONNX: all need one and the same gallery."""
    run("export", "folded.safetensors", "db", "-o", "g.faissindex")
    whole = model(folded=True)
    assert whole.chain.foldable and scqfaiss.open("g.faissindex").metadata["encoder"] == "model"
    assert scqfaiss.open("g.faissindex").d == whole.codebooks.d
    sha = whole.sha256[:12]
    assert run("search", "g.faissindex", "q.h5").error == (
        f"Error: g.faissindex: queries need the model its codes came from ({sha}); give --model"
    )
    why = f" holds images, which only the model of g.faissindex can see ({sha}); give --model"
    for arguments in (
        ("search", "g.faissindex", "q"),
        ("append", "g.faissindex", "q"),
        ("evaluate", "g.faissindex", "q", "db"),
    ):
        found = run(*arguments)
        assert (found.code, found.error) == (2, f"Error: q{why}")
    found = run("search", "g.faissindex", "q", "--model", "m.safetensors")
    assert (
        found.error == f"Error: m.safetensors is {model().sha256[:12]}, g.faissindex was made by {sha}; give that model"
    )


def test_images_for_a_gallery_of_rows(run, here):
    plain(8).save("plain.safetensors")
    scqfaiss.export("plain.safetensors", np.zeros((3, 8), np.float32), path="plain.faissindex")
    why = "takes rows of d=8: make rows with `scqfaiss features`"
    assert run("search", "plain.faissindex", "q").error == f"Error: q holds images, plain.faissindex {why}"
    assert run("append", "plain.faissindex", "q").error == f"Error: q holds images, plain.faissindex {why}"
    assert run("export", "plain.safetensors", "q", "-o", "x.faissindex").error == (
        f"Error: q holds images, plain.safetensors {why}"
    )
    found = run("export", "plain.safetensors", "q", "-o", "x.faissindex", "--dry-run")
    assert found.error == f"Error: q holds images, plain.safetensors {why}"


def test_dry_run_of_an_export_of_images(run, here):
    found = run("export", "m.safetensors", "db", "-o", "x.faissindex", "--dry-run")
    assert found.out.startswith("images: 18, to features of d=512\nfile: about ")


def test_scripts_search_with_images_through_as_rows(here):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScqWarning)
        with open_rows("db") as source:
            rows = as_rows(source, model())
            scqfaiss.export(model(), rows.read(0, len(rows)), path="g.faissindex")
            D, I = scqfaiss.open("g.faissindex", model=model()).search(rows.read(0, 3), k=1)
    assert D.shape == I.shape == (3, 1)
    assert draw("red", 0).shape == (40, 40, 3)
