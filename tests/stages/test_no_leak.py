"""Labels never reach `propose` or `metatrain`: permuting them changes no byte of what the two stages write."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from umeta.config import build
from umeta.stages import metatrain, propose

COMMON = """
data: {name: folder, root: photos, splits: splits, size: 16, channels: 1}
embedding: EMBEDDING
proposer: PROPOSER
metalearner: LEARNER
train: {outer: adam, steps: 3, way: 3, shot: 1, query: 2, meta_batch: 2}
rounds: ROUNDS
"""
KMEANS = "{name: kmeans, k: 6, partitions: 3, smallest: 3}"
PROTONET = "{name: protonet, model: {name: conv4, filters: 4}}"
CASES = {  # embedding, learner, and where they differ from k-means in one round: proposer and rounds
    "acai-protonet": ("{name: acai, steps: 3, depth: 2, dimensions: 16}", PROTONET),
    "pixels-maml": ("{name: pixels, whiten: 5}", "{name: maml, model: {name: conv4, filters: 4}, steps: 2}"),
    "random-maml": ("random_network", "{name: maml, model: {name: conv4, filters: 4}, normalisation: batch}"),
    "simclr-protonet": (
        "{name: simclr, steps: 3, batch: 16, model: {name: conv4, filters: 4}}",
        PROTONET,
    ),
    "hyperplanes": (
        "{name: pixels, contrast: true, zca: 0.1}",
        PROTONET,
        "{name: hyperplanes, zones: 4, partitions: 3, smallest: 3}",
    ),
    "random-labels": ("null", PROTONET, "{name: random_labels, k: 6, partitions: 3}"),
    "bigan-protonet": ("{name: bigan, steps: 3, batch: 16, depth: 2, dimensions: 8}", PROTONET),
    "deepcluster-protonet": (
        "{name: deepcluster, steps: 3, batch: 16, every: 2, k: 6, dimensions: 4, model: {name: conv4, filters: 4}}",
        PROTONET,
    ),
    "instances": ("null", PROTONET, "{name: instances, rotations: true}"),
    "mixture": ("pixels", PROTONET, f"{{name: mixture, proposers: [instances, {KMEANS}]}}"),
    "progressive": (
        "null",
        PROTONET,
        "instances",
        "[{proposer: {name: progressive, neighbours: [8], similarity: 0.2, k: [6]}, train: {steps: 2}}, {}]",
    ),
}


def written_config(embedding: str, learner: str, proposer: str = KMEANS, rounds: str = "[]") -> str:
    text = COMMON.replace("EMBEDDING", embedding).replace("LEARNER", learner)
    return text.replace("PROPOSER", proposer).replace("ROUNDS", rounds)


def make_tree(root: Path, shuffle: bool) -> None:
    """Five training classes of eight images and one test class; `shuffle` deals the training images out anew."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (48, 16, 16), dtype=np.uint8)
    labels = np.repeat(np.arange(6), 8)
    if shuffle:
        labels[:40] = rng.permutation(labels[:40])
    for label in range(6):
        folder = root / "photos" / f"class{label}"
        folder.mkdir(parents=True)
        for position, image in enumerate(images[labels == label]):
            Image.fromarray(image).save(folder / f"{position}.png")
    (root / "splits").mkdir()
    (root / "splits/train.txt").write_text("\n".join(f"class{label}" for label in range(5)))
    (root / "splits/test.txt").write_text("class5")


def artefacts(root: Path) -> dict[str, bytes]:
    """Every written file but those of wall-clock times."""
    clock = {"seconds.json", "meta.json"}
    return {
        str(path.relative_to(root)): path.read_bytes()
        for part in ("tasks", "runs")
        for path in sorted((root / part).rglob("*"))
        if path.is_file() and path.name not in clock
    }


@pytest.mark.parametrize("case", CASES)
def test_permuting_the_training_labels_changes_no_byte(case, tmp_path, monkeypatch):
    written = []
    for shuffle in (False, True):
        root = tmp_path / str(shuffle)
        make_tree(root, shuffle)
        (root / "config.yaml").write_text(written_config(*CASES[case]))
        monkeypatch.chdir(root)
        monkeypatch.setenv("UMETA_CACHE", str(root / "cache"))
        for run in build.build_rounds(build.load("config.yaml")):
            propose.propose(run, device="cpu")
            metatrain.metatrain(run, device="cpu")
        written.append(artefacts(root))
    assert {"tasks/config/manifest.json", "runs/config/model.safetensors"} <= set(written[0])
    assert any(name.startswith("tasks/config/partitions") for name in written[0]) == (case != "instances")
    assert written[0].keys() == written[1].keys()
    assert [name for name in written[0] if written[0][name] != written[1][name]] == []


def test_the_same_images_in_other_classes_do_change_the_oracle(tmp_path, monkeypatch):
    """The comparison above can fail: an oracle, which sees labels, writes other bytes."""
    written = []
    for shuffle in (False, True):
        root = tmp_path / str(shuffle)
        make_tree(root, shuffle)
        text = written_config("pixels", PROTONET, "umeta.benchmarks.oracle:Oracle")
        (root / "config.yaml").write_text(text)
        monkeypatch.chdir(root)
        run = build.load("config.yaml")
        propose.propose(run, device="cpu")
        written.append((root / "tasks/config/partitions.npy").read_bytes())
    assert written[0] != written[1]


def test_propose_and_metatrain_never_import_the_benchmarks(tmp_path):
    make_tree(tmp_path, False)
    (tmp_path / "config.yaml").write_text(written_config("pixels", PROTONET))
    program = (
        "import sys; from umeta.cli.main import main\n"
        "assert main(['propose', 'config.yaml']) == 0 and main(['metatrain', 'config.yaml']) == 0\n"
        "assert not [name for name in sys.modules if name.startswith('umeta.benchmarks')]\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
