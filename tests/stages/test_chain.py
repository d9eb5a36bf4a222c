"""The whole chain through the command line, minutes long: the demo's digits, and real Omniglot drawings."""

import json

import pytest

from umeta.cli.main import main


@pytest.mark.slow
def test_the_demo_makes_one_table_and_its_pictures(tmp_path, capsys):
    names = ["digits_acai_kmeans_protonet", "digits_acai_kmeans_maml", "digits_oracle_protonet"]
    assert main(["run", *names, f"out={tmp_path}", "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {name: cells for result in found["results"] for name, cells in result["rows"].items()}
    assert {"chance", "raw pixels, 1-NN", "acai, 1-NN", "acai, linear", "from scratch"} <= set(rows)
    for name in ("CACTUs-ProtoNet", "CACTUs-MAML", "supervised oracle (ProtoNet)"):
        cell = rows[name]["5-way 1-shot"]
        assert cell["mean"] - cell["interval"] > 40, name  # chance is 20
    assert (tmp_path / "report.md").read_text().count("![") == 6
    for picture in ("tasks/digits_acai_kmeans_maml/preview.png", "runs/digits_acai_kmeans_maml/test_tasks.png"):
        assert (tmp_path / picture).exists()


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
