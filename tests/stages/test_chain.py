"""The whole chain through the command line, minutes long, on real Omniglot drawings: the demo, and short runs."""

import json

import pytest

from umeta.cli.main import main


@pytest.mark.slow
def test_the_demo_wins_with_margins(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / "demo"), "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {name: cells for result in found["results"] for name, cells in result["rows"].items()}
    one = {name: cells["5-way 1-shot"]["mean"] for name, cells in rows.items()}
    pixels, embedding = one["raw pixels, 1-NN"], one["acai, 1-NN"]
    assert 40 < pixels < 50
    assert one["instance tasks (ProtoNet)"] > 95
    assert one["supervised oracle (ProtoNet)"] > 94
    for name in ("CACTUs-ProtoNet", "CACTUs-MAML"):
        assert one[name] > max(pixels, embedding) + 10, name
        assert one[name] > one["HOG, linear"] + 4, name
    assert found["characters"]["right"] > 0.85 * found["characters"]["drawings"]
    (navigation,) = found["navigation"]["results"]
    curve = navigation["adaptation"][navigation["title"]]
    assert curve["mean"][-1] > curve["mean"][0] + curve["interval"][0] + curve["interval"][-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes", "least"),
    [
        ("omniglot_acai_kmeans_protonet", ["embedding.steps=150", "proposer.partitions=5", "train.steps=150"], 52),
        ("omniglot_instances_protonet", ["train.steps=100", "train.way=64"], 70),
    ],
)
def test_a_short_run_on_omniglot_beats_raw_pixels(name, changes, least, tmp_path, capsys):
    common = [f"out={tmp_path}", "evaluate.baselines=[]", "evaluate.tasks=200"]
    changes = [*changes, "evaluate.episodes=[[5,1]]", *common]
    assert main(["run", name, *changes, "--device", "cpu", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])["results"][0]
    assert result["rows"][result["title"]]["5-way 1-shot"]["mean"] > least  # 1-nearest neighbour on pixels: 45
