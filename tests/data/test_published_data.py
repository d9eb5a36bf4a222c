"""Data sets in their published layouts, on small trees written in them."""

from __future__ import annotations

import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from umeta.data.celeba import CelebA
from umeta.data.cifar_fs import CIFARFS
from umeta.data.fashion_mnist import FashionMNIST
from umeta.data.images import Items
from umeta.data.mini_imagenet import MiniImageNet
from umeta.data.mnist import MNIST
from umeta.errors import UserError


def noise(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def drawn(path: Path, colour: int, size: tuple[int, int] = (32, 32)) -> None:
    """A picture of one colour, which says which one it is after any resizing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, 255 - colour, 0)).save(path)


def colours(items: Items) -> list[int]:
    """What `drawn` has drawn."""
    return np.median(items.pixels[:, 0].reshape(len(items.pixels), -1), axis=1).astype(int).tolist()


# MNIST and Fashion-MNIST


@pytest.fixture(params=[MNIST, FashionMNIST])
def mnist(request, tmp_path):
    """A source whose files hold 30 training images of digit i % 10 and 10 test images."""
    raw = tmp_path / request.param.__name__ / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 30), ("t10k", 10)):
        images, labels = noise(count, 28, 28, seed=count), np.arange(count, dtype=np.uint8) % 10
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())
    return request.param(str(tmp_path), held_out=10)


def raw(source: MNIST, name: str) -> Path:
    return Path(source.root) / type(source).__name__ / "raw" / name


def test_mnist_has_all_ten_classes_in_every_split(mnist):
    train, val, test = (mnist.read(split) for split in ("train", "val", "test"))
    np.testing.assert_array_equal(train.pixels[:, 0], noise(30, 28, 28, seed=30)[:20])
    np.testing.assert_array_equal(val.pixels[:, 0], noise(30, 28, 28, seed=30)[20:])
    np.testing.assert_array_equal(test.pixels[:, 0], noise(10, 28, 28, seed=10))
    for items in (train, val, test):
        assert items.labels.tolist() == [i % 10 for i in range(len(items.pixels))]
        assert items.labels.dtype == np.int64
        assert len(items.names) == 10
    assert train.names[3] == ("3 - three" if type(mnist) is MNIST else "Dress")


def test_mnist_is_read_alike_from_the_archive_that_keras_keeps(mnist, tmp_path):
    archive = tmp_path / f"{type(mnist).published.lower()}.npz"
    source = type(mnist)(str(tmp_path), held_out=10)
    expected = {split: source.read(split) for split in ("train", "val", "test")}
    kept = {part: (noise(n, 28, 28, seed=n), np.arange(n) % 10) for part, n in (("train", 30), ("test", 10))}
    arrays = {f"{kind}_{part}": array for part, pair in kept.items() for kind, array in zip("xy", pair, strict=True)}
    shutil.rmtree(tmp_path / type(mnist).published)
    np.savez_compressed(archive, **arrays)
    for split, items in expected.items():
        found = source.read(split)
        np.testing.assert_array_equal(found.pixels, items.pixels)
        np.testing.assert_array_equal(found.labels, items.labels)
        assert found.names == items.names
    for wrong, message in (
        ({"x_train": arrays["x_train"] / 255}, "28x28 bytes .* of float64"),
        ({"y_train": arrays["y_train"] - 1}, "a label below 10"),
    ):
        np.savez_compressed(archive, **{**arrays, **wrong})
        with pytest.raises(UserError, match=message):
            source.read("train")
    archive.write_bytes(b"PK")
    with pytest.raises(UserError, match=r"\.npz: not a readable"):
        source.read("train")


def test_all_training_images_may_be_learnt_from(mnist):
    source = type(mnist)(mnist.root, held_out=0)
    assert len(source.read("train").pixels) == 30
    with pytest.raises(UserError, match="0 of the 30 training images leave no val split"):
        source.read("val")
    with pytest.raises(UserError, match="30 of the 30 training images leave no train split"):
        type(mnist)(mnist.root, held_out=30).read("train")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train-labels-idx1-ubyte", None, r"raw: 'train-labels-idx1-ubyte' is missing; .*data\.download=true"),
        ("train-images-idx3-ubyte", struct.pack(">4i", 1234567, 30, 28, 28) + bytes(30 * 784), "not in the format"),
        ("train-images-idx3-ubyte", struct.pack(">4i", 2051, 30, 28, 28) + bytes(999), "not in the format"),
        ("train-images-idx3-ubyte", b"", "not in the format"),
        ("train-images-idx3-ubyte", struct.pack(">4i", 2051, 30, 8, 8) + bytes(30 * 64), r"28x28 .* \(30, 8, 8\)"),
        ("train-labels-idx1-ubyte", struct.pack(">2i", 2049, 7) + bytes(7), r"a label below 10 for each.*\(7,\)"),
        ("train-labels-idx1-ubyte", struct.pack(">2i", 2049, 30) + b"\x0a" * 30, "up to 10"),
    ],
)
def test_a_bad_mnist_file_is_named(mnist, file, content, message):
    raw(mnist, file).unlink() if content is None else raw(mnist, file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        mnist.read("train")


def test_mnist_is_downloaded_only_when_asked_to(mnist, monkeypatch):
    def download(self):
        raise RuntimeError("no network here")

    monkeypatch.setattr("torchvision.datasets.MNIST.download", download)
    source = type(mnist)(mnist.root, held_out=10, download=True)
    assert len(source.read("train").pixels) == 20  # they are there
    raw(mnist, "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(UserError, match=r"could not be downloaded .*no network here"):
        source.read("train")


# CIFAR-FS


def cifar_fs(root: Path, layout: str) -> CIFARFS:
    """Three classes of two images: apple to learn from, bear for validation, cup to test on."""
    for i, (split, name) in enumerate((("train", "apple"), ("val", "bear"), ("test", "cup"))):
        base = root / {"meta": f"meta-{split}", "bertinetto": "cifar100/data", "images": "images/test"}[layout] / name
        for j in range(2):
            drawn(base / f"{name}_s_{j:06}.png", 100 * i + j)
        if layout == "bertinetto":
            (root / "cifar100/splits/bertinetto").mkdir(parents=True, exist_ok=True)
            (root / f"cifar100/splits/bertinetto/{split}.txt").write_text(f"{name}\n")
        if layout == "images":
            (root / "splits").mkdir(exist_ok=True)
            (root / f"splits/cifar-fs-{split}.txt").write_text(f"{name}\n")
    return CIFARFS(str(root))


@pytest.mark.parametrize("layout", ["bertinetto", "meta", "images"])
def test_cifar_fs_is_read_from_any_layout(tmp_path, layout):
    source = cifar_fs(tmp_path, layout)
    for i, (split, name) in enumerate((("train", "apple"), ("val", "bear"), ("test", "cup"))):
        items = source.read(split)
        assert items.names == (name,)
        assert items.labels.tolist() == [0, 0]
        assert items.pixels.shape == (2, 3, 32, 32)
        assert colours(items) == [100 * i, 100 * i + 1]


def test_cifar_fs_may_be_named_by_the_folder_that_holds_data(tmp_path):
    cifar_fs(tmp_path, "bertinetto")
    assert CIFARFS(str(tmp_path / "cifar100"), size=16).read("val").pixels.shape == (2, 3, 16, 16)


def test_fc100_deals_the_same_classes_out_otherwise_and_they_may_be_in_a_zip(tmp_path):
    source = cifar_fs(tmp_path, "images")
    shutil.make_archive(str(tmp_path / "images"), "zip", tmp_path / "images")
    shutil.rmtree(tmp_path / "images")
    (tmp_path / "splits/fc100-val.txt").write_text("cup\napple\n")
    assert source.read("val").names == ("bear",)
    items = replace(source, classes="fc100").read("val")
    assert (items.names, colours(items)) == (("apple", "cup"), [0, 1, 200, 201])


def test_a_bad_cifar_fs_is_named(tmp_path):
    with pytest.raises(UserError, match=r"holds no images\.zip \(and splits/fc100-train\.txt\); set data\.root"):
        CIFARFS(str(tmp_path), classes="fc100").read("train")
    with pytest.raises(UserError, match="holds no data/CLASS"):
        CIFARFS(str(tmp_path)).read("train")
    source = cifar_fs(tmp_path, "bertinetto")
    (tmp_path / "cifar100/splits/bertinetto/test.txt").write_text("cap\n")
    with pytest.raises(UserError, match=r"test\.txt: class 'cap' is not in .*data"):
        source.read("test")
    (tmp_path / "cifar100/splits/bertinetto/val.txt").unlink()
    with pytest.raises(UserError, match=r"val\.txt"):
        source.read("val")
    (tmp_path / "cifar100/data/apple/apple_s_000001.png").write_text("not an image")
    with pytest.raises(UserError, match=r"'apple/apple_s_000001.png' is not a readable image"):
        source.read("train")
    assert len(CIFARFS(str(tmp_path), skip_bad=True).read("train").pixels) == 1


# miniImageNet


@pytest.fixture
def mini(tmp_path):
    """Two training classes, one for validation, one for test; the images of a class are not side by side."""
    lists = {"train": ["n02", "n01", "n02"], "val": ["n03"], "test": ["n04", "n04"]}
    for i, (split, labels) in enumerate(lists.items()):
        rows = []
        for j, label in enumerate(labels):
            drawn(tmp_path / "images" / f"{label}{j:08}.jpg", 60 * i + 20 * j, (90, 60))
            rows.append(f"{label}{j:08}.jpg,{label}")
        (tmp_path / f"{split}.csv").write_text("\r\n".join(["filename,label", *rows, ""]))
    return MiniImageNet(str(tmp_path), size=16)


def test_mini_imagenet_has_the_classes_its_lists_say(mini):
    train = mini.read("train")
    assert train.names == ("n01", "n02")
    assert train.labels.tolist() == [1, 0, 1]
    assert train.pixels.shape == (3, 3, 16, 16)
    np.testing.assert_allclose(colours(train), [0, 20, 40], atol=3)
    assert [mini.read(split).names for split in ("val", "test")] == [("n03",), ("n04",)]


def test_mini_imagenet_images_may_be_in_a_zip(mini, tmp_path):
    before = mini.read("train")
    shutil.make_archive(str(tmp_path / "images"), "zip", tmp_path, "images")
    shutil.rmtree(tmp_path / "images")
    after = mini.read("train")
    np.testing.assert_array_equal(before.pixels, after.pixels)
    assert before.labels.tolist() == after.labels.tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"train\.csv: expected a list of images"),
        ("", "expected a header with filename and label, found None"),
        ("file,label\na.jpg,x\n", r"expected a header with filename and label, found \['file', 'label'\]"),
        ("filename,label\n", "lists no image"),
        ("filename,label\nn0100000001.jpg,n01\nx.jpg\n", "line 3 lacks a filename or label"),
        ("filename,label\nx.jpg,n01\ny.jpg,n01\n", r"'x\.jpg' and 1 more are not in .*images"),
        (b"\xff\xfe\xfa", r"train\.csv: expected a list of images"),
    ],
)
def test_a_bad_list_of_mini_imagenet_is_named(mini, tmp_path, content, message):
    path = tmp_path / "train.csv"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        mini.read("train")


def test_a_bad_image_of_mini_imagenet_is_named_or_left_out(mini, tmp_path):
    (tmp_path / "images/n0200000000.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match=r"'n0200000000.jpg' is not a readable image"):
        mini.read("train")
    items = MiniImageNet(mini.root, size=16, skip_bad=True).read("train")
    assert [items.names[label] for label in items.labels] == ["n01", "n02"]
    (tmp_path / "images").rename(tmp_path / "pictures")
    with pytest.raises(UserError, match=r"images\.zip: no such"):
        mini.read("train")


# CelebA


@pytest.fixture
def celeba(tmp_path):
    """Nine faces, dealt out to the partitions 0 1 2 in turn; face i has attribute a if (i + a) % 3 == 0."""
    base = tmp_path / "celeba"
    faces = [f"{i:06}.jpg" for i in range(9)]
    for i, face in enumerate(faces):
        drawn(base / "img_align_celeba" / face, 20 * i, (18, 22))
    has = (np.arange(9)[:, None] + np.arange(40)) % 3 == 0
    rows = [f"{face} {' '.join(' 1' if one else '-1' for one in row)}" for face, row in zip(faces, has, strict=True)]
    names = " ".join(f"A{a}" for a in range(40))
    (base / "list_attr_celeba.txt").write_text("\n".join(["9", f"{names} ", *rows, ""]))
    (base / "list_eval_partition.txt").write_text("".join(f"{face} {i % 3}\n" for i, face in enumerate(faces)))
    return CelebA(str(tmp_path), size=16)


@pytest.mark.parametrize(
    ("split", "part", "attributes"), [("train", 0, range(20)), ("val", 1, range(20, 30)), ("test", 2, range(30, 40))]
)
def test_celeba_has_its_partitions_and_attributes(celeba, split, part, attributes):
    items = celeba.read(split)
    faces = np.arange(part, 9, 3)
    assert items.pixels.shape == (3, 3, 16, 16)
    np.testing.assert_allclose(colours(items), 20 * faces, atol=3)
    assert items.labels is None
    assert items.names == tuple(f"A{a}" for a in attributes)
    np.testing.assert_array_equal(items.attributes, (faces[:, None] + np.array(attributes)) % 3 == 0)


def test_celeba_may_be_in_its_zip(celeba, tmp_path):
    before = celeba.read("test")
    shutil.make_archive(str(tmp_path / "celeba/img_align_celeba"), "zip", tmp_path / "celeba", "img_align_celeba")
    shutil.rmtree(tmp_path / "celeba/img_align_celeba")
    np.testing.assert_array_equal(before.pixels, celeba.read("test").pixels)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("list_attr_celeba.txt", None, r"list_attr_celeba\.txt is missing; set data\.root, or data\.download=true"),
        ("list_attr_celeba.txt", lambda text: text.split("\n", 1)[1], "expected a line with the number of images"),
        ("list_attr_celeba.txt", lambda text: text.replace("A39", ""), "40 names of attributes, found 1 and 39 words"),
        ("list_attr_celeba.txt", lambda text: "", "found 0 and 0 words"),
        ("list_attr_celeba.txt", lambda text: f"\n{text}", "found 0 and 1 words"),
        ("list_attr_celeba.txt", lambda text: text.replace("  1", "  2"), "expected 1 or -1 .*, found '2'"),
        ("list_attr_celeba.txt", lambda text: text[:-4], "expected 41 words in line 11, found 40"),
        ("list_attr_celeba.txt", lambda text: text.replace("000003", "000033"), r"'000003.jpg' and 0 more are not in"),
        ("list_eval_partition.txt", lambda text: "", "lists no image"),
        ("list_eval_partition.txt", lambda text: f"{text}x\n", "expected 2 words in line 10, found 1"),
        ("list_eval_partition.txt", lambda text: f"{text}x.jpg 0\n", r"'x\.jpg' and 0 more are not in .*img_align"),
        ("list_eval_partition.txt", lambda text: text.replace(" 0", " 7"), "has no image of the train split"),
    ],
)
def test_a_bad_list_of_celeba_is_named(celeba, tmp_path, file, change, message):
    path = tmp_path / "celeba" / file
    path.unlink() if change is None else path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=message):
        celeba.read("train")


def test_a_bad_face_is_named_or_left_out_with_its_attributes(celeba, tmp_path):
    whole = celeba.read("test")
    (tmp_path / "celeba/img_align_celeba/000005.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match=r"'000005.jpg' is not a readable image"):
        celeba.read("test")
    items = CelebA(celeba.root, size=16, skip_bad=True).read("test")
    np.testing.assert_array_equal(items.attributes, whole.attributes[[0, 2]])


def test_celeba_is_downloaded_only_when_asked_to(tmp_path, monkeypatch):
    def download(self):
        raise ImportError("gdown is required")

    monkeypatch.setattr("torchvision.datasets.CelebA.download", download)
    with pytest.raises(UserError, match=r"could not be downloaded .*gdown"):
        CelebA(str(tmp_path), download=True).read("train")
