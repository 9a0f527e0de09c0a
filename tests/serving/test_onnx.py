"""Images through the ONNX form of a model: the hits of the model itself."""

import io
import warnings

import numpy as np
import pytest
from images import draw, photos
from images import model as image_model

import scqfaiss
from scqfaiss.errors import ConfigError, ScqWarning
from scqfaiss.galleries.exporting import export_file
from scqfaiss.galleries.onnx_export import export_encoder

pytest.importorskip("fastapi")

from scqfaiss.serving.galleries import OpenGallery
from scqfaiss.serving.queries import Asked
from scqfaiss.serving.settings import Served, Settings

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("folded", [False, True])
def test_images_through_onnx_find_what_the_model_finds(tmp_path, folded):
    from PIL import Image

    model, onnx = str(tmp_path / "m.safetensors"), str(tmp_path / "e.onnx")
    path = str(tmp_path / "g.faissindex")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScqWarning)
        image_model(folded).save(model)
        export_encoder(model, onnx)
        export_file(model, photos(tmp_path / "photos", each=3), path, keys={})
    file = io.BytesIO()
    Image.fromarray(draw("red", 7)).save(file, "PNG")
    found = []
    for used in (None, onnx):
        served = Served("g", path, model=model, onnx=used)
        g = OpenGallery(served, Settings((served,)))
        rows = g.images.rows([file.getvalue()])
        (answer,) = g.search([Asked(k=9, rows=rows, encoded=g.images.encoded)])
        found.append(answer)
    np.testing.assert_allclose(found[0].D, found[1].D, rtol=1e-3, atol=1e-3)
    other = str(tmp_path / "other.faissindex")
    x = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScqWarning)
        scqfaiss.export(scqfaiss.train(x, method="pq", bits=8, nbits=4), x, path=other)
    served = Served("o", other, onnx=onnx)
    with pytest.raises(ConfigError, match="the gallery was made by"):
        OpenGallery(served, Settings((served,)))
