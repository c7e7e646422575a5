"""Files that are read tensor by tensor do not stay in this process's memory."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from models.files.gguf_reader import GgufFile
from models.files.safetensors_reader import SafetensorsFile

ROWS = np.random.default_rng(1).standard_normal((2048, 1024), dtype=np.float32)  # 8 MB


def mapped_kb(path):
    """Kilobytes of the file's pages in this process."""
    found, inside = 0, False
    with Path("/proc/self/smaps").open() as lines:
        for line in lines:
            if "-" in line.split(" ", 1)[0]:
                inside = line.rstrip().endswith(str(path))
            elif inside and line.startswith("Rss:"):
                found += int(line.split()[1])
    return found


def written(folder, kind):
    path = folder / f"model.{kind}"
    if kind == "safetensors":
        save_file({"a": ROWS, "b": ROWS + 1}, path)
        return path, SafetensorsFile(path)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("a", ROWS)
    writer.add_tensor("b", ROWS + 1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, GgufFile(path)


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_a_tensor_that_was_read_is_unmapped(tmp_path, kind):
    path, file = written(tmp_path, kind)
    for _ in range(2):
        for name, expected in (("a", ROWS), ("b", ROWS + 1)):
            np.testing.assert_array_equal(file.tensor(name), expected)
    assert mapped_kb(path) < 1024
    file.close()
