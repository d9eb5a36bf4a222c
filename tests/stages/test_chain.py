"""The whole chain through the command line, minutes long, on real Omniglot drawings."""

import json

import pytest

from umeta.cli.main import main


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
