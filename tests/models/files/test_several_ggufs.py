"""A folder with several GGUF files: one is named by a part of its name, as on the hub."""

import pytest
from gguf_files import tiny, write

from models.checkpoints.weights import open_checkpoint
from models.files.locate import find_source, local_path
from protocols.errors import ModelError


@pytest.fixture
def folder(tmp_path):
    for name, size in (("m-Q4_K_M", 30), ("m-Q4_K_S", 2000), ("m-q8_0", 5_000_000)):
        (tmp_path / f"{name}.gguf").write_bytes(bytes(size))
    (tmp_path / "mmproj-f16.gguf").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("Q4_K_M", "m-Q4_K_M.gguf"),
        ("q4_k_s", "m-Q4_K_S.gguf"),
        ("Q8_0", "m-q8_0.gguf"),
        ("m-q8_0.gguf", "m-q8_0.gguf"),
    ],
)
def test_a_part_of_the_name_chooses(folder, tag, name):
    assert local_path(f"{folder}:{tag}") == folder / name


def test_all_are_listed_with_sizes_where_none_is_named(folder):
    with pytest.raises(ModelError, match="holds 3 GGUF files") as caught:
        find_source(folder)
    listed = "(m-Q4_K_M.gguf (30 B), m-Q4_K_S.gguf (2.0 kB), m-q8_0.gguf (5.0 MB))"
    assert f"{listed}; give the path of one, as {folder}:Q4_K_M" in str(caught.value)


@pytest.mark.parametrize("tag", ["Q5_0", "Q4_K", "m-q8"])
def test_all_are_listed_where_none_has_the_tag(folder, tag):
    with pytest.raises(ModelError, match=f"none whose name has '{tag}' .*m-q8_0"):
        local_path(f"{folder}:{tag}")


def test_two_with_the_same_tag(folder):
    (folder / "other-Q8_0.gguf").write_bytes(b"")
    with pytest.raises(ModelError, match="holds 2 GGUF files"):
        local_path(f"{folder}:Q8_0")


def test_a_folder_without_any(tmp_path):
    with pytest.raises(ModelError, match="holds no GGUF file, and 'Q8_0' names one of several"):
        local_path(f"{tmp_path}:Q8_0")
    assert local_path(f"{tmp_path}/none:Q8_0") is None
    assert local_path("lab/m:Q8_0") is None


def test_the_one_that_is_named_is_opened(folder):
    (folder / "m-F32.gguf").unlink(missing_ok=True)
    write(folder / "m-F32.gguf", tiny("llama"), "llama")
    with open_checkpoint(f"{folder}:F32") as checkpoint:
        assert checkpoint.path == folder / "m-F32.gguf"


def test_a_projector_for_images_is_no_model(tmp_path):
    (tmp_path / "mmproj.gguf").write_bytes(b"")
    write(tmp_path / "m.gguf", tiny("llama"), "llama")
    assert find_source(tmp_path).file.name == "m.gguf"
