from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from image_files import encode, noise, plain

from fastssl.data import reading
from fastssl.data.decode import UnreadableError
from fastssl.data.reading import decode_all
from fastssl.data.sources import Entry


def entries(count: int, bad: tuple[int, ...] = ()) -> list[Entry]:
    contents = [b"text" if i in bad else plain((i, i, i)) for i in range(count)]
    return [Entry(f"{i}.png", lambda content=content: content) for i, content in enumerate(contents)]


def test_images_come_back_in_order() -> None:
    images, kept, skipped = decode_all(entries(100), 8)
    assert images.shape == (100, 3, 8, 8)
    assert images[:, 2, 5, 3].tolist() == list(range(100))
    assert kept == list(range(100))
    assert skipped == []


def test_channels_come_first() -> None:
    image = noise(8, 8)
    images, _, _ = decode_all([Entry("x", lambda: encode(image))], 8)
    assert torch.equal(images[0], torch.tensor(np.asarray(image)).permute(2, 0, 1))


def test_unreadable_files_are_named_and_left_out() -> None:
    def fail() -> bytes:
        raise UnreadableError("gone")

    images, kept, skipped = decode_all([*entries(4, bad=(1,)), Entry("5.png", fail)], 8)
    assert images[:, 0, 0, 0].tolist() == kept == [0, 2, 3]
    assert [(item.name, item.reason) for item in skipped] == [
        ("1.png", "not an image in a format that can be read"),
        ("5.png", "gone"),
    ]


def test_progress_is_told_of_every_file() -> None:
    told: list[tuple[int, int]] = []
    decode_all(entries(5, bad=(2,)), 8, progress=lambda done, total: told.append((done, total)))
    assert told == [(i, 5) for i in range(1, 6)]


def test_files_are_read_by_one_thread_and_not_far_ahead() -> None:
    threads: set[int] = set()
    read: list[int] = []
    ahead: list[int] = []

    def content(i: int) -> bytes:
        threads.add(threading.get_ident())
        read.append(i)
        return plain()

    decode_all(
        [Entry(str(i), lambda i=i: content(i)) for i in range(300)],
        8,
        progress=lambda done, _: ahead.append(len(read) - done),
    )
    assert threads == {threading.get_ident()}
    assert read == list(range(300))
    assert max(ahead) <= (4 * torch.get_num_threads() + 1) * 32


def test_large_files_are_not_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_GROUP_BYTES", 100)
    content = [plain(), b"x" * 99, plain((9, 9, 9))]
    assert len(plain()) < 100 < 2 * len(plain())
    groups = list(reading._groups([Entry(str(i), lambda data=data: data) for i, data in enumerate(content)]))
    assert groups == [(0, content[:2]), (2, content[2:])]
