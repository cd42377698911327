from __future__ import annotations

from pathlib import Path

import pytest
import torch
from davis_files import HEIGHT, WIDTH, numbers, write_davis

from fastssl.data.davis import is_davis, open_davis
from fastssl.data.decode import UnreadableError
from fastssl.errors import UserError


def test_sequences_have_the_frames_and_masks_of_their_folders(tmp_path: Path) -> None:
    davis = open_davis(str(write_davis(tmp_path, {"bear": (4, 1), "camel": (3, 2)})))
    assert [(sequence.name, len(sequence.video)) for sequence in davis.sequences] == [("bear", 4), ("camel", 3)]
    at, truth = davis.sequences[1].truth()
    assert at == [0, 1, 2]
    assert torch.equal(truth, torch.stack([torch.from_numpy(numbers(i, 2)) for i in range(3)]))
    assert davis.sequences[1].first().objects == [1, 2]
    assert davis.sequences[0].video.read([0, 3]).shape == (2, HEIGHT, WIDTH, 3)


def test_of_the_official_folders_480p_is_taken(tmp_path: Path) -> None:
    write_davis(tmp_path, {"bear": (3, 1), "camel": (3, 1)}, "480p")
    write_davis(tmp_path, {"bear": (5, 1)}, "Full-Resolution")
    davis = open_davis(str(tmp_path))
    assert [(sequence.name, len(sequence.video)) for sequence in davis.sequences] == [("bear", 3), ("camel", 3)]
    assert [sequence.name for sequence in open_davis(str(tmp_path), ["camel"]).sequences] == ["camel"]
    with pytest.raises(UserError, match="has no sequence 'dog': it has bear, camel"):
        open_davis(str(tmp_path), ["dog", "camel"])


def test_a_frame_without_a_mask_is_told_and_a_video_without_a_first_is_left_out(tmp_path: Path) -> None:
    write_davis(tmp_path, {"bear": (4, 1), "camel": (3, 1)})
    (tmp_path / "Annotations/bear/00002.png").unlink()
    (tmp_path / "Annotations/camel/00000.png").unlink()
    davis = open_davis(str(tmp_path))
    assert [sequence.name for sequence in davis.sequences] == ["bear"]
    assert davis.sequences[0].truth()[0] == [0, 1, 3]
    assert [(item.name, item.reason) for item in davis.skipped] == [("camel", "its first frame has no mask")]
    (tmp_path / "Annotations/bear/00001.png").write_bytes(b"no mask")
    with pytest.raises(UnreadableError, match=r"its mask 00001.png: no image"):
        davis.sequences[0].truth()
    (tmp_path / "Annotations/bear/00000.png").unlink()
    with pytest.raises(UserError, match="no sequence with a mask for its first frame"):
        open_davis(str(tmp_path))


def test_what_is_no_davis_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "JPEGImages").mkdir()
    assert not is_davis(str(tmp_path))
    with pytest.raises(UserError, match="has no folders JPEGImages and Annotations"):
        open_davis(str(tmp_path))
