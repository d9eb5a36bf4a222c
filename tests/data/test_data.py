"""Sources, decoding and the label-free view, against files and arrays made by hand."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import shutil
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from umeta.data import archives, decode, omniglot
from umeta.data.arrays import Arrays
from umeta.data.digits import Digits
from umeta.data.folder import Folder, read_class_list
from umeta.data.images import UnlabelledImages, to_float, to_pixels
from umeta.data.omniglot import Omniglot
from umeta.errors import LeftOut, UserError

PUBLISHED = Path(__file__).parents[3] / "shared" / "data"
needs_omniglot = pytest.mark.skipif(not (PUBLISHED / "omniglot-py").is_dir(), reason="the Omniglot files are not here")


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def zipped(folder: Path, archive: Path, prefix: str = "") -> Path:
    """The files of a folder in a zip, in reverse order."""
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*"), reverse=True):
            file.write(path, prefix + path.relative_to(folder).as_posix())
    return archive


def coded(picture: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def outcome(call: Callable[[], Any]) -> tuple[Any, str]:
    """What a call returns, or the message of its UserError; any other exception passes."""
    try:
        return call(), ""
    except UserError as error:
        return None, str(error)


# folders and zips


def test_a_flat_folder_gives_its_images_sorted_by_name_and_no_labels(tmp_path, draw):
    items = Folder(str(draw(tmp_path / "f", flat=5)), size=16, channels=1).read("train")
    by_hand = [np.asarray(Image.open(tmp_path / "f" / f"{i:02}.png"))[None] for i in range(5)]
    np.testing.assert_array_equal(items.pixels, by_hand)
    assert items.labels is None


def test_a_folder_per_class_gives_labels_to_the_test_split_only(tmp_path, draw):
    root = str(draw(tmp_path, cat=3, dog=2))
    source = Folder(root, test=root, size=16)
    assert source.read("train").labels is None
    assert source.read("test").names == ("cat", "dog")
    assert source.read("test").labels.tolist() == [0, 0, 0, 1, 1]


def test_a_zip_gives_the_same_items_as_the_folder(tmp_path, draw):
    root = draw(tmp_path / "f", **{"a": 2, "a-b": 3, "a b": 1, "a/b": 2})  # '-' and ' ' sort before '/'
    archive = zipped(root, tmp_path / "f.zip")
    folder, packed = (Folder("-", test=str(path), size=16).read("test") for path in (root, archive))
    np.testing.assert_array_equal(folder.pixels, packed.pixels)
    assert folder.labels.tolist() == packed.labels.tolist()
    assert folder.names == packed.names == ("a", "a b", "a-b")
    assert np.bincount(folder.labels).tolist() == [4, 1, 3]


def test_class_lists_choose_the_classes_of_a_split(tmp_path, draw):
    root = draw(tmp_path / "f", cat=3, dog=2, eel=4)
    (tmp_path / "train.txt").write_text("eel\n\ncat\r\n")
    (tmp_path / "test.txt").write_text("dog\n")
    source = Folder(str(root), splits=str(tmp_path), size=16)
    assert source.read("train").names == ("cat", "eel")
    assert np.bincount(source.read("train").labels).tolist() == [3, 4]
    assert source.read("test").names == ("dog",)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"cat": 2, "dolphin": 1, "dolphin/deep": 2}, ("cat", "dolphin")),
        ({"cat": 2, "dolphin/deep": 2, "dolphin/shore/left": 1}, ("cat", "dolphin")),
        ({"Greek/alpha": 1, "Greek/beta": 2, "Latin/alpha": 2}, ("Greek/alpha", "Greek/beta", "Latin/alpha")),
        ({"Greek/alpha/old": 1, "Greek/alpha": 2, "Latin/alpha": 2}, ("Greek/alpha", "Latin/alpha")),
    ],
)
def test_classes_are_the_folders_of_the_uppermost_pictures(tmp_path, draw, given, names):
    items = Folder("-", test=str(draw(tmp_path, **given)), size=16).read("test")
    assert items.names == names
    assert np.bincount(items.labels).sum() == sum(given.values())


def test_a_listed_class_has_the_pictures_in_folders_below_it_but_for_those_of_listed_ones(tmp_path, draw):
    root = draw(tmp_path / "f", **{"a": 1, "a/b": 2, "a/c": 3, "d/e": 4})
    (tmp_path / "train.txt").write_text("a\na/b\nd/e\n")
    items = Folder(str(root), splits=str(tmp_path), size=16).read("train")
    assert dict(zip(items.names, np.bincount(items.labels).tolist(), strict=True)) == {"a": 4, "a/b": 2, "d/e": 4}


@pytest.mark.parametrize("skip_bad", [True, False])
@pytest.mark.parametrize("name", ["Thumbs.db", "desktop.ini", "notes.txt", "README", "._a.png", "clip.mp4"])
def test_what_is_no_picture_is_passed_over_without_a_word(tmp_path, draw, recwarn, name, skip_bad):
    root = draw(tmp_path, cat=3, dog=2)
    before = Folder("-", test=str(root), size=16).read("test")
    (root / name).write_text("hello")
    if name != "README":
        (root / "cat" / name).write_text("hello")
    (root / "cat" / "deep").mkdir()
    (root / "cat" / "deep" / "notes.txt").write_text("hello")
    source = Folder(str(root), test=str(root), size=16, skip_bad=skip_bad)
    after = source.read("test")
    np.testing.assert_array_equal(after.pixels, before.pixels)
    assert (after.names, after.labels.tolist()) == (before.names, before.labels.tolist())
    if name != "README":  # which might be a picture
        assert len(source.read("train").pixels) == 5
    assert not [warning for warning in recwarn if issubclass(warning.category, LeftOut)]


def test_hidden_files_are_passed_over(tmp_path, draw):
    root = draw(tmp_path, cat=2)
    (root / ".DS_Store").write_text("x")
    (root / ".git").mkdir()
    (root / ".git" / "x").write_text("x")
    assert [file.name for file in archives.list_files(root)] == ["cat/00.png", "cat/01.png"]


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ("cat\ncta\n", "'cta' is not in .*did you mean 'cat'"),
        ("cat\ncat\n", "'cat' twice"),
        ("\n", "lists no class"),
        (None, "train.txt"),
    ],
)
def test_bad_class_lists_are_named(tmp_path, draw, lists, message):
    root = draw(tmp_path / "f", cat=2)
    if lists is not None:
        (tmp_path / "train.txt").write_text(lists)
    with pytest.raises(UserError, match=message):
        Folder(str(root), splits=str(tmp_path)).read("train")


@pytest.mark.parametrize(
    ("split", "source"),
    [("test", Folder("x")), ("val", Folder("x", test="y")), ("test", Arrays("x.npy")), ("val", Digits())],
)
def test_a_split_that_is_not_there_is_named(split, source):
    with pytest.raises(UserError, match=split):
        source.read(split)


def test_labelled_images_in_no_class_folder_are_refused(tmp_path, draw):
    with pytest.raises(UserError, match=r"'00.png' lies in no class folder"):
        Folder("-", test=str(draw(tmp_path, flat=1))).read("test")


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such"):
        Folder(str(tmp_path / "nowhere")).read("train")
    with pytest.raises(UserError, match="holds no files"):
        Folder(str(tmp_path)).read("train")


# archives


@pytest.mark.parametrize("name", ["../out.png", "/etc/out.png", "a/../../out.png", "..\\out.png", "C:\\out.png"])
def test_a_member_that_leaves_the_target_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("good.png", coded(Image.new("L", (9, 9))))
        file.writestr(name, b"x")
    with pytest.raises(UserError, match=r"out\.png' would leave"):
        archives.list_files(tmp_path / "x.zip")


def test_a_symbolic_link_in_an_archive_is_refused(tmp_path):
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match=r"'link.png' is a symbolic link"):
        archives.list_files(tmp_path / "x.zip")


def test_an_archive_bomb_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST_FILE", 1000)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb.png", bytes(1001))
    with pytest.raises(UserError, match=r"'bomb.png' unpacks to 1001"):
        archives.list_files(tmp_path / "x.zip")


def test_an_encrypted_member_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("locked.png", coded(Image.new("L", (9, 9))))
    data = bytearray((tmp_path / "x.zip").read_bytes())
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(header) + flags] |= 1
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(UserError, match=r"'locked.png'.*encrypted"):
        Folder(str(tmp_path / "x.zip")).read("train")


# one image


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (33, 20), (20, 20), (8, 8), (12, 8), (5, 9)])
def test_an_image_becomes_its_centred_square_resized(size):
    picture = Image.fromarray(noise(size[1], size[0]))
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    filter = Image.Resampling.LANCZOS if side > 8 else Image.Resampling.BICUBIC
    by_hand = np.asarray(square if side == 8 else square.resize((8, 8), filter))
    found = decode.open_image(coded(picture), decode.Rule(8, 1))
    np.testing.assert_array_equal(found, by_hand[None])


def test_nothing_outside_the_square_shows():
    pixels = np.zeros((20, 60), np.uint8)
    pixels[:, :20] = pixels[:, 40:] = 255
    assert decode.open_image(coded(Image.fromarray(pixels)), decode.Rule(8, 1)).max() == 0


def palette(**options: object) -> Image.Image:
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.info.update(options)
    return picture


RED, WHITE, GREY = (255, 0, 0), (255, 255, 255), (128, 128, 128)
MODES = {
    "RGB": (Image.new("RGB", (8, 8), RED), "PNG", RED),
    "RGBA, transparent": (Image.new("RGBA", (8, 8), (0, 0, 0, 0)), "PNG", WHITE),
    "RGBA, half": (Image.new("RGBA", (8, 8), (0, 0, 0, 127)), "PNG", GREY),
    "P": (palette(), "PNG", RED),
    "P, transparent": (palette(transparency=1), "PNG", WHITE),
    "L, transparent": (Image.new("L", (8, 8), 7), "PNG", WHITE),
    "LA": (Image.new("LA", (8, 8), (0, 127)), "PNG", GREY),
    "CMYK": (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF", RED),
    "16 bits": (Image.fromarray(np.full((8, 8), 0x80FF, np.uint16)), "PNG", GREY),
    "32 bits, 8 in use": (Image.fromarray(np.full((8, 8), 128, np.int32)), "TIFF", GREY),
    "32 bits, 16 in use": (Image.fromarray(np.full((8, 8), 0x80FF, np.int32)), "TIFF", GREY),
    "floats": (Image.fromarray(np.full((8, 8), 0.5, np.float32)), "TIFF", GREY),
    "1 bit": (Image.new("1", (8, 8), 1), "PNG", WHITE),
    "GIF": (palette(), "GIF", RED),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_the_colour_it_shows_on_white(mode, channels):
    picture, format, colour = MODES[mode]
    data = coded(picture, format, **({"transparency": 7} if mode == "L, transparent" else {}))
    luma = round(0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2])
    found = decode.open_image(data, decode.Rule(8, channels))
    expected = np.array(colour if channels == 3 else [luma])[:, None, None]
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_floats_beyond_one_are_refused():
    picture = Image.fromarray(np.full((8, 8), 200, np.float32))
    with pytest.raises(ValueError, match="floats from 200 to 200, expected 0 to 1"):
        decode.open_image(coded(picture, "TIFF"), decode.Rule(8, 1))


def test_links_are_followed_and_a_circle_of_them_once(tmp_path):
    (tmp_path / "all" / "cats").mkdir(parents=True)
    (tmp_path / "dogs").mkdir()
    for folder in ("all/cats", "dogs"):
        Image.fromarray(noise(8, 8)).save(tmp_path / folder / "0.png")
    (tmp_path / "all" / "dogs").symlink_to(tmp_path / "dogs")
    (tmp_path / "dogs" / "back").symlink_to(tmp_path / "all")
    assert [file.name for file in archives.list_files(tmp_path / "all")] == ["cats/0.png", "dogs/0.png"]


def test_a_photograph_is_turned_as_its_exif_says():
    pixels = np.zeros((8, 8), np.uint8)
    pixels[0] = 255  # a bright row at the top, which orientation 6 turns to the right
    picture = Image.fromarray(pixels)
    picture.getexif()[0x0112] = 6
    found = decode.open_image(coded(picture, exif=picture.getexif()), decode.Rule(8, 1))
    np.testing.assert_array_equal(found[0], np.rot90(pixels, -1))


@pytest.mark.parametrize("size", [(40, 10), (10, 40), (33, 20), (20, 20), (8, 3), (300, 1)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("invert", [False, True])
def test_padding_shows_the_whole_picture_on_its_own_ground(size, channels, invert):
    width, height = size
    picture = Image.new("RGB", size, (200, 120, 40))
    picture.paste((0, 0, 255), (width // 4, height // 4, width - width // 4, height - height // 4))
    picture = picture.convert("L" if channels == 1 else "RGB")
    found = decode.open_image(coded(picture), decode.Rule(20, channels, invert, pad=True))
    filter = Image.Resampling.LANCZOS if max(size) > 20 else Image.Resampling.BICUBIC
    whole = picture.resize([max(1, round(20 * side / max(size))) for side in size], filter)
    expected = Image.new(picture.mode, (20, 20), picture.getpixel((0, 0)))
    expected.paste(whole, ((20 - whole.width) // 2, (20 - whole.height) // 2))
    expected = np.asarray(expected, int).reshape(20, 20, channels)
    expected = 255 - expected if invert else expected
    np.testing.assert_array_equal(np.moveaxis(found, 0, -1), expected)


def test_the_ground_is_the_median_of_all_four_borders():
    draw = np.random.default_rng(0)
    for _ in range(20):
        height, width = draw.integers(2, 9, 2)
        pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
        border = [*pixels[0], *pixels[-1], *pixels[:, 0], *pixels[:, -1]]
        found = decode.border_colour(Image.fromarray(pixels))
        assert found.tolist() == np.median(border, axis=0).astype(int).tolist()


@pytest.mark.parametrize(("share", "colour"), [(0.0, False), (0.005, False), (0.02, True)])
def test_a_picture_is_coloured_where_a_hundredth_of_it_is(share, colour):
    pixels = np.broadcast_to(np.linspace(0, 255, 10_000, dtype=np.uint8), (3, 10_000)).reshape(3, 100, 100).copy()
    pixels.reshape(3, -1)[:, : int(share * 10_000)] = [[200], [30], [30]]
    assert decode.has_colour(pixels) == colour


def test_invert_makes_ink_bright():
    pixels = noise(8, 8)
    np.testing.assert_array_equal(
        decode.open_image(coded(Image.fromarray(pixels)), decode.Rule(8, 1, True))[0], 255 - pixels
    )


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_bytes_decode_or_are_a_user_error(data):
    format = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", None]))
    content = bytearray(coded(Image.fromarray(noise(9, 9, 3)), format) if format else data.draw(st.binary(max_size=60)))
    for _ in range(data.draw(st.integers(0, 4)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(0, len(content)))])
    file = archives.File("some.png", (len(content), zlib.crc32(content)), lambda: content)
    found, message = outcome(lambda: decode.decode([file], decode.Rule(8, 3), root=Path("x")))
    assert "some.png" in message or (found[0].shape, found[1]) == ((1, 3, 8, 8), [0])


def test_decompression_bombs_are_named_and_warning_filters_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (15, 15)).save(tmp_path / "bomb.png")
    before = list(warnings.filters)
    with pytest.raises(UserError, match=r"bomb.png.*million pixels; make it smaller"):
        Folder(str(tmp_path)).read("train")
    assert warnings.filters == before


# bad files


def spoil(path: Path, how: str) -> None:
    data = path.read_bytes()
    path.write_bytes({"truncated": data[: len(data) // 2], "text": b"hello", "empty": b""}[how])


@pytest.mark.parametrize("how", ["truncated", "text", "empty"])
def test_a_bad_file_is_named_or_left_out(tmp_path, draw, how):
    root = draw(tmp_path, cat=3, dog=2)
    good = np.delete(Folder("-", test=str(root), size=16).read("test").pixels, 1, axis=0)
    spoil(root / "cat" / "01.png", how)
    with pytest.raises(UserError, match=r"'cat/01.png' is not a readable image.*skip_bad=true"):
        Folder(str(root), size=16, skip_bad=False).read("train")
    for _ in range(2):  # decoded, and from the cache
        with pytest.warns(LeftOut, match=r"1 left out, not readable as an image: cat/01.png \(\w+"):
            items = Folder("-", test=str(root), size=16).read("test")
    np.testing.assert_array_equal(items.pixels, good)
    assert items.labels.tolist() == [0, 0, 1, 1]


def test_a_folder_of_bad_files_alone_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="none of its 1 files"):
        Folder(str(tmp_path), skip_bad=True).read("train")


# the cache of decoded images


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """Grows by one with every image that is decoded."""
    calls: list[int] = []
    original = decode.open_image
    monkeypatch.setattr(decode, "open_image", lambda data, rule: calls.append(1) or original(data, rule))
    return calls


def test_images_are_decoded_once(tmp_path, draw, decoded):
    source = Folder(str(draw(tmp_path, cat=4)), size=16)
    first = source.read("train").pixels
    assert len(decoded) == 4
    np.testing.assert_array_equal(source.read("train").pixels, first)
    assert len(decoded) == 4
    assert isinstance(first, np.memmap)
    dataclasses.replace(source, size=20).read("train")
    assert len(decoded) == 8


def test_a_changed_file_is_decoded_again(tmp_path, draw):
    source = Folder(str(draw(tmp_path, cat=2)), size=16, channels=1)
    source.read("train")
    Image.new("L", (16, 16), 77).save(tmp_path / "cat" / "01.png")
    assert (source.read("train").pixels[1] == 77).all()


def test_files_alike_in_name_size_and_time_below_two_roots_are_not_confused():
    for name, colour in (("a", 10), ("b", 20)):
        data = coded(Image.new("L", (16, 16), colour))
        file = archives.File("x.png", (1, 1, 1), lambda data=data: data)
        assert (decode.decode([file], decode.Rule(16, 1), root=Path(name))[0] == colour).all()


def test_a_replaced_file_of_the_same_size_and_time_is_decoded_again(tmp_path):
    for colour in (10, 20):
        Image.new("L", (16, 16), colour).save(tmp_path / "new.bmp")
        os.utime(tmp_path / "new.bmp", ns=(1, 1))
        os.replace(tmp_path / "new.bmp", tmp_path / "x.bmp")
        assert (Folder(str(tmp_path), size=16).read("train").pixels == colour).all()


@pytest.mark.parametrize("name", ["pixels.npy", "kept.json", "manifest.json"])
def test_a_damaged_cache_is_made_again(tmp_path, draw, monkeypatch, decoded, name):
    monkeypatch.setenv("UMETA_CACHE", str(tmp_path / "cache"))
    source = Folder(str(draw(tmp_path / "f", cat=2)), size=16)
    before = np.array(source.read("train").pixels)
    (damaged,) = (tmp_path / "cache").rglob(name)
    content = damaged.read_bytes()
    damaged.unlink()  # the memory map above keeps the old one
    damaged.write_bytes(content[:-2] + b"\x01\x01")
    np.testing.assert_array_equal(source.read("train").pixels, before)
    assert len(decoded) == 4


# arrays


@pytest.mark.parametrize(
    ("shape", "channels_last"),
    [((6, 9, 8), False), ((6, 1, 9, 8), False), ((6, 3, 9, 8), False), ((6, 9, 8, 1), True), ((6, 9, 8, 3), True)],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_of_any_usual_shape_and_type(tmp_path, shape, channels_last, dtype, suffix):
    pixels = noise(*shape)
    array = pixels if dtype == np.uint8 else (pixels / 255).astype(dtype)
    path = tmp_path / f"x{suffix}"
    np.save(path, array) if suffix == ".npy" else np.savez(path, images=array)
    expected = pixels.transpose(0, 3, 1, 2) if channels_last else pixels.reshape(6, -1, 9, 8)
    found = Arrays(str(path)).read("train").pixels
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [np.int64, np.int16, np.uint16, np.uint32])
def test_whole_numbers_up_to_255_are_pixels_whatever_their_type(dtype):
    pixels = noise(4, 8, 8, 3)
    np.testing.assert_array_equal(to_pixels(pixels.astype(dtype)), np.moveaxis(pixels, -1, 1))


def test_truth_values_are_black_and_white():
    np.testing.assert_array_equal(to_pixels(noise(4, 1, 8, 8) > 99), 255 * (noise(4, 1, 8, 8) > 99))


@pytest.mark.parametrize("labels", [[7, 7, 3, 9], ["b", "b", "a", "c"]])
def test_labels_of_arrays_are_numbered_by_name(tmp_path, labels):
    np.savez(tmp_path / "x.npz", images=noise(4, 8, 8), labels=labels)
    items = Arrays("-", test=str(tmp_path / "x.npz")).read("test")
    assert items.labels.tolist() == [1, 1, 0, 2]
    assert items.names == tuple(sorted({str(label) for label in labels}))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (noise(4, 8), r"\(4, 8\)"),
        (noise(4, 2, 8, 8), r"\(4, 2, 8, 8\)"),
        (noise(4, 1, 0, 8), r"\(4, 1, 0, 8\)"),
        (np.full((2, 8, 8), 1.5), "to 1.5"),
        (np.full((2, 8, 8), np.nan), "nan"),
        (np.full((2, 8, 8), -1.0), "from -1"),
        (np.full((2, 8, 8), 256), r"int64 from 256 to 256; give images / 256"),
        (np.full((2, 8, 8), 40_000, np.uint16), r"uint16 .*; give images / 65535"),
        (np.eye(8, dtype=np.uint8)[None], r"uint8 from 0 to 1; of integers 255 is white"),
        (np.linspace(-1, 1, 64).reshape(1, 8, 8), r"from -1 to 1; give \(images \+ 1\) / 2"),
        (np.full((2, 8, 8), -3), "from -3 to -3"),
        (noise(4, 8, 8, 4), r"\(4, 8, 8, 4\); with transparency, give images\[..., :3\]"),
        (noise(4, 8, 8, 100), r"\(4, 8, 8, 100\)"),
        (np.zeros((2, 8, 8), complex), "complex128"),
        (np.full((2, 8, 8), "x"), "<U1"),
    ],
)
def test_arrays_that_are_not_images_are_refused(array, message):
    with pytest.raises(UserError, match=message):
        to_pixels(array)


def npz(path: Path, **arrays: object) -> None:
    with open(path, "wb") as file:
        np.savez(file, **arrays)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "x.npz: not a readable"),
        (lambda path: path.write_text("hello"), "x.npz: not a readable"),
        (lambda path: np.save(open(path, "wb"), np.array([{}]), allow_pickle=True), "x.npz: not a readable"),  # noqa: SIM115
        (lambda path: npz(path, pictures=noise(2, 8, 8)), "no array 'images'; it has pictures"),
        (lambda path: npz(path, images=noise(2, 8, 8)), "no array 'labels'"),
        (lambda path: npz(path, images=noise(2, 8, 8), labels=[1, 2, 3]), r"shape \(2,\), one per image, got \(3,\)"),
    ],
)
def test_bad_array_files_are_named(tmp_path, write, message):
    write(tmp_path / "x.npz")
    with pytest.raises(UserError, match=message):
        Arrays("-", test=str(tmp_path / "x.npz")).read("test")


@settings(max_examples=200, deadline=None)
@given(st.booleans(), st.integers(0, 2**20), st.integers(0, 255), st.integers(0, 2**20))
def test_any_damage_to_an_array_file_is_a_user_error_or_harmless(tmp_path_factory, packed, place, value, length):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=noise(3, 8, 8)) if packed else np.save(buffer, noise(3, 8, 8))
    content = bytearray(buffer.getvalue())
    content[place % len(content)] = value
    path = tmp_path_factory.getbasetemp() / "damaged.npy"
    path.write_bytes(content[: length % (2 * len(content))])
    found, message = outcome(lambda: Arrays(str(path)).read("train"))
    assert "damaged.npy" in message or "images: expected" in message or found.pixels.dtype == np.uint8


# digits and Omniglot


def test_digits_are_those_of_scikit_learn_enlarged():
    digits = load_digits()
    for split, chosen in (("train", digits.target < 5), ("test", digits.target >= 5)):
        items = Digits().read(split)
        assert items.pixels.shape == (chosen.sum(), 1, 28, 28)
        assert [items.names[label] for label in items.labels] == [str(label) for label in digits.target[chosen]]
        small = np.stack([np.asarray(Image.fromarray(p[0]).resize((8, 8), Image.Resampling.BOX)) for p in items.pixels])
        assert np.corrcoef(small.ravel(), digits.images[chosen].ravel())[0, 1] > 0.98


def omniglot_tree(root: Path) -> Path:
    """The published layout with two background alphabets and one evaluation alphabet."""
    generator = np.random.default_rng(0)
    for part, alphabets in (("images_background", ("Latin", "Greek")), ("images_evaluation", ("Angelic",))):
        for alphabet in alphabets:
            for character in ("character01", "character02"):
                folder = root / "omniglot-py" / part / alphabet / character
                folder.mkdir(parents=True)
                for i in range(3):
                    ink = np.full((35, 35), True)
                    ink[generator.integers(0, 30) :, 10:13] = False  # black strokes on white
                    Image.fromarray(ink).convert("1").save(folder / f"0001_{i:02}.png")
    return root


def test_the_omniglot_layout_is_read_from_folders_and_from_zips_alike(tmp_path):
    folders = omniglot_tree(tmp_path / "folders")
    (tmp_path / "zips" / "omniglot-py").mkdir(parents=True)
    for part in ("images_background", "images_evaluation"):
        base = folders / "omniglot-py" / part
        zipped(base, tmp_path / "zips" / "omniglot-py" / f"{part}.zip", prefix=f"{part}/")
    for split, names in (("train", ["Greek", "Latin"]), ("test", ["Angelic"])):
        read = [Omniglot(str(root), split="alphabets").read(split) for root in (folders, tmp_path / "zips")]
        np.testing.assert_array_equal(read[0].pixels, read[1].pixels)
        for items in read:
            assert items.names == tuple(f"{name}/character0{i}" for name in names for i in (1, 2))
            assert items.labels.tolist() == [label for label in range(2 * len(names)) for _ in range(3)]
            assert items.pixels.min() == 0
            assert items.pixels.max() > 200
            assert np.median(items.pixels) == 0  # paper
    with pytest.raises(UserError, match="no val characters"):
        Omniglot(str(folders), split="alphabets").read("val")
    with pytest.raises(UserError, match=r"character .* missing"):
        Omniglot(str(folders), split="vinyals").read("train")


def test_a_root_without_omniglot_is_named(tmp_path):
    with pytest.raises(UserError, match=r"omniglot-py/images_background\.zip; set data.root"):
        Omniglot(str(tmp_path)).read("train")


SPLITS = [("cactus", (1100, 100, 423)), ("vinyals", (1028, 172, 423)), ("alphabets", (964, 0, 659))]


def test_the_packed_drawings_are_complete():
    """Counts of the paper, and a hash of the arrays, so that no drawing, name or order changes unnoticed."""
    pixels, labels, names, background = Omniglot().read_all()
    assert pixels.shape == (32_460, 1, 28, 28)
    assert (len(names), background) == (1_623, 964)
    assert len({name.partition("/")[0] for name in names}) == 50
    assert len({name.partition("/")[0] for name in names[:background]}) == 30
    assert (np.bincount(labels) == 20).all()
    digest = hashlib.sha256(np.ascontiguousarray(pixels)).hexdigest()
    assert digest == "255fbb66efe334ae4ffdf873a5d430b6232d966a38612f804baa3297751298c5"
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    assert digest == "fb697c7dbe6cc84333b7b3e2841332da1d35015a1cf446f482444b14647235c4"


@pytest.mark.parametrize("how", ["truncated", "text", "empty", "missing"])
def test_a_damaged_package_is_named(tmp_path, monkeypatch, how):
    path = Path(shutil.copy(omniglot.PACKED, tmp_path))
    path.unlink() if how == "missing" else spoil(path, how)
    monkeypatch.setattr(omniglot, "PACKED", path)
    omniglot.unpack.cache_clear()
    with pytest.raises(UserError, match=r"omniglot\.xz: missing or damaged .*; install umeta again, or set data\.root"):
        Omniglot().read("train")


def test_omniglot_is_downloaded_only_when_asked_to(tmp_path, monkeypatch):
    asked = []

    def published(root, background, download):
        asked.append((root, background, download))
        if not background:
            raise RuntimeError("no network here")
        omniglot_tree(tmp_path)
        shutil.rmtree(tmp_path / "omniglot-py" / "images_evaluation")

    monkeypatch.setattr("torchvision.datasets.Omniglot", published)
    with pytest.raises(UserError, match=r"data\.download=true"):
        Omniglot(str(tmp_path)).read("train")
    assert not asked
    with pytest.raises(UserError, match=r"could not be downloaded \(no network here\)"):
        Omniglot(str(tmp_path), split="alphabets", download=True).read("train")
    assert asked == [(str(tmp_path), True, True), (str(tmp_path), False, True)]


@needs_omniglot
@pytest.mark.parametrize("split", [name for name, _ in SPLITS])
def test_the_packed_drawings_are_those_of_the_published_files(split):
    published, packed = Omniglot(str(PUBLISHED), split=split), Omniglot(split=split)
    for part in ("train", "test") if split == "alphabets" else ("train", "val", "test"):
        theirs, ours = published.read(part), packed.read(part)
        assert ours.names == theirs.names
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        np.testing.assert_array_equal(ours.pixels, theirs.pixels)
        assert ours.pixels.strides == theirs.pixels.strides


def test_another_size_needs_the_published_files():
    with pytest.raises(UserError, match=r"data\.size=32: .* has 28 pixels; .* set data\.root"):
        Omniglot(size=32).read("train")


@pytest.mark.parametrize(("split", "sizes"), SPLITS)
def test_omniglot_splits_are_complete_and_disjoint(split, sizes):
    source = Omniglot(split=split)
    parts = {}
    for part, size in zip(("train", "val", "test"), sizes, strict=True):
        if size:
            items = source.read(part)
            assert len(items.names) == size
            assert (np.bincount(items.labels) == 20).all()
            assert items.pixels.shape == (20 * size, 1, 28, 28)
            assert items.pixels.mean() < 50  # a few bright strokes on black
            parts[part] = set(items.names)
    assert len(set.union(*parts.values())) == 1623 == sum(sizes)
    if split == "vinyals" and (PUBLISHED / "omniglot-py").is_dir():
        lists = PUBLISHED / "omniglot-py" / "splits"
        assert parts == {part: set(read_class_list(lists / f"vinyals-{part}.txt")) for part in parts}
    if split == "alphabets" and (PUBLISHED / "omniglot-py").is_dir():
        with zipfile.ZipFile(PUBLISHED / "omniglot-py" / "images_evaluation.zip") as file:
            assert {"/".join(name.split("/")[1:3]) for name in file.namelist()} == parts["test"]
    if split == "cactus":
        other = set(dataclasses.replace(source, split_seed=1).read("val").names)
        assert other != parts["val"] == set(source.read("val").names)


@needs_omniglot
def test_omniglot_pictures_are_those_of_the_archive():
    items = Omniglot(str(PUBLISHED), split="alphabets").read("train")
    with zipfile.ZipFile(PUBLISHED / "omniglot-py" / "images_background.zip") as file:
        data = file.read("images_background/Greek/character05/0398_07.png")
    ink = Image.fromarray(~np.asarray(Image.open(io.BytesIO(data)).convert("L")))
    by_hand = np.asarray(ink.resize((28, 28), Image.Resampling.LANCZOS)).astype(int)
    drawings = items.pixels[items.labels == items.names.index("Greek/character05"), 0].astype(int)
    assert np.abs(drawings - by_hand).max(axis=(1, 2)).min() <= 1


# the label-free view


def test_order_depends_on_content_only():
    pixels = noise(50, 1, 8, 8)
    pixels[7] = pixels[3]  # a duplicate
    images = UnlabelledImages.of(pixels)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(50)
        permuted = UnlabelledImages.of(pixels[order])
        np.testing.assert_array_equal(permuted.pixels, images.pixels)
        assert permuted.fingerprint == images.fingerprint
        np.testing.assert_array_equal(pixels[order][permuted.rows], images.pixels)
    assert images.rows.tolist() != list(range(50))
    assert sorted(images.rows) == list(range(50))


def test_the_fingerprint_sees_every_pixel_and_the_shape():
    pixels = noise(5, 1, 4, 4)
    changed = pixels.copy()
    changed[2, 0, 1, 1] ^= 1
    variants = (pixels, changed, pixels[:4], pixels.reshape(5, 1, 2, 8))
    assert len({UnlabelledImages.of(array).fingerprint for array in variants}) == 4


def test_the_view_has_no_labels_names_or_paths():
    public = {name for name in dir(UnlabelledImages.of(noise(2, 8, 8))) if not name.startswith("_")}
    assert public == {"pixels", "rows", "of", "item_shape", "fingerprint", "floats"}


def test_floats_are_pixels_over_255():
    images = UnlabelledImages.of(noise(6, 8, 8))
    expected = images.pixels[2:4].astype(np.float32) / 255
    np.testing.assert_allclose(images.floats(slice(2, 4)).numpy(), expected, rtol=1e-6)
    already = images.floats(slice(0, 1))
    assert to_float(already) is already


def test_no_images_is_an_error():
    with pytest.raises(UserError, match="no images"):
        UnlabelledImages.of(np.zeros((0, 8, 8), np.uint8))


def test_a_copied_folder_has_the_same_fingerprint(tmp_path, draw):
    shutil.copytree(draw(tmp_path / "a", cat=4), tmp_path / "b")
    (tmp_path / "b" / "cat").rename(tmp_path / "b" / "renamed")
    prints = [UnlabelledImages.of(Folder(str(tmp_path / n)).read("train").pixels).fingerprint for n in ("a", "b")]
    assert prints[0] == prints[1]


def png_of(path: Path, side: int, left: bytes, right: bytes, kind: int, chunks: bytes = b"") -> Path:
    """Write a square PNG in two halves of a pixel each, row by row, so that it is nowhere in memory."""
    compressor = zlib.compressobj(1)
    row = b"\0" + left * (side // 2) + right * (side // 2)
    data = b"".join([*(compressor.compress(row) for _ in range(side)), compressor.flush()])

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", side, side, 8, kind, 0, 0, 0)
    parts = [chunk(b"IHDR", head), chunks and chunk(b"PLTE", chunks), chunk(b"IDAT", data), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


@pytest.mark.parametrize(
    ("side", "kind", "left", "right", "palette", "each"),
    [
        (12_000, 2, b"\xc8\x00\x00", b"\x00\x00\xc8", b"", 4),  # RGB, of which Pillow takes four bytes a pixel
        (9_500, 3, b"\x00", b"\x02", b"\xc8\x00\x00\x07\x07\x07\x00\x00\xc8", 1),  # a palette
    ],
)
def test_a_picture_of_144_million_pixels_takes_the_memory_of_one(tmp_path, side, kind, left, right, palette, each):
    path = png_of(tmp_path / "large.png", side, left, right, kind, palette)
    code = (
        "import resource, sys; from pathlib import Path; import numpy as np; from umeta.data import decode\n"
        "rule = decode.Rule(28, 3)\n"
        "decode.known_formats()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "np.save(sys.argv[2], decode.open_image(Path(sys.argv[1]).read_bytes(), rule))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    out = tmp_path / "item.npy"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, path, out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < (each + 0.5) * side**2
    item = np.load(out)
    assert (item[:, :, :10] == [[[200]], [[0]], [[0]]]).all()
    assert (item[:, :, 18:] == [[[0]], [[0]], [[200]]]).all()


def test_a_large_picture_is_turned_as_its_orientation_says(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    pixels = np.zeros((120, 110), np.uint8)
    pixels[:60] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the picture is on its right
    for ending in ("png", "jpg", "tif"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, Image.registered_extensions()[f".{ending}"], exif=exif)
        item = decode.open_image(buffer.getvalue(), decode.Rule(8, 1))[0]
        assert (item[:, :3] < 20).all(), ending
        assert (item[:, 5:] > 180).all(), ending


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("size", "decoded"), [(8, 64), (32, 128), (100, 512)])
def test_a_large_jpeg_is_decoded_at_no_less_than_four_times_its_size(monkeypatch, size, decoded, turned):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300_000)  # by halves, as often as that leaves enough; three at most
    seen = []
    shrink = decode.shrink
    monkeypatch.setattr(decode, "shrink", lambda picture, side: [seen.append(picture.size), shrink(picture, side)][1])
    buffer = io.BytesIO()
    Image.new("L", (512, 1024) if turned else (1024, 512), 90).save(buffer, "JPEG")
    assert abs(int(decode.open_image(buffer.getvalue(), decode.Rule(size, 1)).mean()) - 90) < 3
    assert [(min(sides), max(sides)) for sides in seen] == [(decoded, 2 * decoded)]
