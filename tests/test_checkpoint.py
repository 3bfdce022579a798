"""The checkpoint container: whole or refused, with its guards one by one."""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from teamvla.checkpoint import read_checkpoint, read_header, verify_digest, write_checkpoint
from teamvla.errors import CheckpointError, InputError

META = {
    "kind": "policy",
    "note": 'quotes " and ü and "sha256":"x"',
    "nested": {"a": [1, None, 0.5]},
}
TENSORS = {
    "model.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "model.empty": np.zeros((0, 4), np.float32),
    "ema.scale": np.float64(1.5).reshape(()),
    "rng.torch": np.arange(5, dtype=np.uint8),
    "optim.flags": np.array([True, False]),
}


@pytest.fixture
def checkpoint(tmp_path):
    return write_checkpoint(tmp_path / "a.ckpt", META, TENSORS)


def rewrite(path, change) -> None:
    """Apply ``change`` to the parsed header, leaving the tensors as they are."""
    content = path.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:end])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[end:])


def refusal(path, read=read_header) -> str | None:
    with pytest.raises(CheckpointError) as refused:
        read(path)
    return refused.value.code


def test_everything_comes_back(checkpoint):
    header, tensors = read_checkpoint(checkpoint)
    assert header.meta == {"format_version": 1, **META}
    assert set(tensors) == set(TENSORS)
    for name, array in TENSORS.items():
        assert tensors[name].dtype == array.dtype
        assert np.array_equal(tensors[name], array)


def test_the_header_describes_the_tensors(checkpoint):
    header = read_header(checkpoint)
    described = {t.name: (t.dtype, t.shape, t.numel, t.nbytes) for t in header.tensors}
    assert described["model.weight"] == ("F32", (2, 3), 6, 24)
    assert described["model.empty"] == ("F32", (0, 4), 0, 0)
    assert described["ema.scale"] == ("F64", (), 1, 8)
    assert header.file_bytes == checkpoint.stat().st_size


def test_it_is_an_ordinary_safetensors_file(checkpoint):
    assert np.array_equal(load_file(checkpoint)["model.weight"], TENSORS["model.weight"])


def test_the_digest_is_that_of_the_file_with_the_digest_as_zeros(checkpoint):
    digest = read_header(checkpoint).sha256.encode()
    content = checkpoint.read_bytes()
    assert content.count(digest) == 1
    assert hashlib.sha256(content.replace(digest, b"0" * 64)).hexdigest().encode() == digest


def test_equal_contents_are_equal_bytes(tmp_path):
    first = write_checkpoint(tmp_path / "0", META, TENSORS).read_bytes()
    tensors = dict(reversed(TENSORS.items()))
    for number in range(1, 9):
        again = write_checkpoint(tmp_path / str(number), META, tensors)
        assert again.read_bytes() == first


def test_the_order_of_arms_and_signals_comes_back(tmp_path):
    names = ["grid", "direction", "action"]
    meta = {"zeal": 1, "config": {"mapping": {"signals": {name: {} for name in names}}}}
    told = read_header(write_checkpoint(tmp_path / "a", meta, {})).meta
    assert [*told] == ["format_version", "zeal", "config"]
    assert [*told["config"]["mapping"]["signals"]] == names


def test_an_older_checkpoint_is_replaced_whole(checkpoint):
    write_checkpoint(checkpoint, {"kind": "other"}, {})
    assert read_header(checkpoint).meta["kind"] == "other"
    assert [path.name for path in checkpoint.parent.iterdir()] == ["a.ckpt"]


def test_a_view_is_written_as_its_values(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T[::2]
    path = write_checkpoint(tmp_path / "a", {}, {"model.view": array})
    assert np.array_equal(read_checkpoint(path)[1]["model.view"], array)


def test_nan_in_the_header_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_checkpoint(tmp_path / "a", {"loss": float("nan")}, {})
    assert list(tmp_path.iterdir()) == []


@given(st.data())
def test_any_flipped_bit_is_found(tmp_path_factory, data):
    path = write_checkpoint(tmp_path_factory.getbasetemp() / "flip.ckpt", META, TENSORS)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    refusal(path, read_checkpoint)


@given(st.data())
def test_any_truncation_is_found_from_the_header_alone(tmp_path_factory, data):
    path = write_checkpoint(tmp_path_factory.getbasetemp() / "cut.ckpt", META, TENSORS)
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    refusal(path)


@given(st.binary(max_size=200))
def test_any_other_bytes_are_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "noise.ckpt"
    path.write_bytes(content)
    refusal(path)


def test_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_header(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    "content",
    [b"", b"1234567", struct.pack("<Q", 1 << 62) + b"{}", struct.pack("<Q", 1000) + b"{}"],
)
def test_c101_no_header(tmp_path, content):
    path = tmp_path / "a"
    path.write_bytes(content)
    assert refusal(path) == "C101"


def test_c101_a_zip_archive(tmp_path):
    path = tmp_path / "torch.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"cos\nsystem\n(S'true'\ntR.")
    assert refusal(path) == "C101"


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.pop("__metadata__"),
        lambda header: header["__metadata__"].pop("sha256"),
        lambda header: header["__metadata__"].update(teamvla="{"),
        lambda header: header["__metadata__"].update(teamvla=3),
        lambda header: header["model.weight"].update(dtype="F31"),
        lambda header: header["model.weight"].update(shape=[2, 2]),
        lambda header: header["model.weight"].update(data_offsets=[0]),
        lambda header: header["model.weight"].update(data_offsets=[-24, 0]),
        lambda header: header.update({"model.weight": None}),
    ],
)
def test_c102_a_header_that_lies(checkpoint, change):
    rewrite(checkpoint, change)
    assert refusal(checkpoint) == "C102"


@pytest.mark.parametrize("content", [b"[]", b"{}", b"33", b"\xff\xff", b"[" * 100_000])
def test_c102_a_header_that_is_something_else(tmp_path, content):
    path = tmp_path / "a"
    path.write_bytes(struct.pack("<Q", len(content)) + content)
    assert refusal(path) == "C102"


@pytest.mark.parametrize("text", ["[]", '{"format_version": 2}', "{}"])
def test_c103_another_format_version(checkpoint, text):
    rewrite(checkpoint, lambda header: header["__metadata__"].update(teamvla=text))
    assert refusal(checkpoint) == "C103"


def test_c104_bytes_missing_or_too_many(checkpoint):
    content = checkpoint.read_bytes()
    for changed in (content[:-1], content + b"\0"):
        checkpoint.write_bytes(changed)
        assert refusal(checkpoint) == "C104"


def test_c105_another_content_under_the_same_digest(checkpoint):
    content = bytearray(checkpoint.read_bytes())
    content[-1] ^= 1
    checkpoint.write_bytes(content)
    assert read_header(checkpoint).meta["kind"] == "policy"
    assert refusal(checkpoint, verify_digest) == "C105"


def test_c107_two_digests_in_the_header(checkpoint):
    content = checkpoint.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    text = content[8:end].rstrip()
    at = text.index(b'"sha256":"')
    text = text[:at] + text[at : at + 76] + text[at:]
    checkpoint.write_bytes(struct.pack("<Q", len(text)) + text + content[end:])
    assert refusal(checkpoint, verify_digest) == "C107"
