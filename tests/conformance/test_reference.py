"""Are the vectors themselves what their manifests say, and is the public set whole?"""

import json

import pytest
import torch

from . import vectors


def test_the_public_set_has_every_kind_of_vector(reference):
    """Discovery works: in the public folder there is at least one case for every kind of conformance test."""
    manifests = [json.loads(path.read_text()) for path in reference.rglob("manifest.json")]
    assert manifests, f"there is no manifest.json under {reference}"
    if all(manifest.get("set", "public") != "public" for manifest in manifests if "entries" in manifest):
        pytest.skip("This is not the public set: it may lack some kinds.")
    assert [kind for kind, find in vectors.KINDS.items() if not find(reference)] == []


def test_entry_is_the_file_that_the_manifest_describes(entry):
    """Every attack entry: its file has the sha256, the arrays, the shapes and the types that the manifest gives."""
    assert vectors.sha256((entry.folder / entry.info["file"]).read_bytes()) == entry.info["sha256"]
    found = {name: {"shape": list(a.shape), "dtype": str(a.dtype)} for name, a in entry.arrays.items()}
    assert found == entry.info["arrays"]


def test_rebuilt_network_gives_the_stored_logits(baseline_folder):
    """The bench's network with the stored weights: the same logits on clean and triggered images, in eval mode."""
    model, data = baseline_folder.network(), baseline_folder.arrays("data.npz")
    stored = torch.tensor(baseline_folder.arrays("baseline.npz")["logits"])
    part = slice(0, 100)
    with torch.no_grad():
        for images, logits in zip(vectors.chw(data["x_eval"]), stored, strict=True):
            torch.testing.assert_close(model(images[part].float() / 255), logits[part], rtol=0, atol=1e-3)


def test_stored_trigger_makes_the_stored_images(baseline_folder):
    """Our overlay of the stored pattern gives exactly the triggered test images that the authors' code gave."""
    data = baseline_folder.arrays("data.npz")
    clean, triggered = vectors.chw(data["x_eval"])
    assert baseline_folder.trigger.stamp(clean).equal(triggered)
