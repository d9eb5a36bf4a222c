"""Model cards of exports: what a learner is, what it was made from and how, what was measured, and its limits.

Markdown below YAML front matter, in the layout of the Hugging Face hub (https://huggingface.co/docs/hub/model-cards).
Everything in a card comes from the run's or the learner's own files; what they do not hold is said not to be known.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from umeta.config import registry
from umeta.config.reading import dump_yaml
from umeta.deploy.adapted import AdaptedLearner, MetaLearnt
from umeta.errors import UserError
from umeta.evaluation.result import Result
from umeta.metalearners.protonet import ProtoNet
from umeta.report import write
from umeta.runtime import artifacts
from umeta.stages.runs import Run

PLACES = ("root", "path", "run", "test", "val", "splits")  # options that say where files lie on somebody's machine
UNLIKE = (
    "It takes images prepared as above, of the kind it was trained on. It answers for any other image as well, without "
    "a warning."
)
BIASES = "What biases the training images carry was not examined."


def write_run_card(run: Run, model: dict[str, Any]) -> str:
    """Return the card of an exported run; `model` is the content of `model.json`."""
    report = run.folder / "report.json"
    result = cast(Result, artifacts.read_sealed(report)) if report.exists() else None
    how = "tasks made from true labels" if run.true_labels else "tasks that were proposed without any label"
    how += f", on a network pre-trained on {run.pretrained}" if run.pretrained else ""
    return render_card(
        build_front_matter(run, model, result),
        model["title"],
        f"A feature network for few-shot image classification, meta-trained on {how}. It turns images into vectors in "
        "which a new class can be told by a few labelled examples.",
        {
            "Model details": format_bullets(
                [
                    f"network: {format_options(model['network'])}",
                    f"learner: {format_options(model['learner'])}",
                    *describe_input_and_output(model),
                ]
            ),
            "How to use": write_run_usage(run, model),
            "Training data": describe_data(run, model),
            "Training": describe_training(run, result),
            "Evaluation": describe_evaluation(result),
            "Limitations": format_bullets(list_limits(run, result)),
        },
    )


def write_learner_card(learner: AdaptedLearner, model: dict[str, Any]) -> str:
    """Return the card of an exported adapted learner; `model` is the content of `model.json`."""
    source = learner.source
    tags = ["few-shot-learning", "meta-learning", name_supervision(source), source.options["name"]]
    counts = [f"{name}: {count} examples" for name, count in zip(learner.classes, learner.shots, strict=True)]
    return render_card(
        {"license": "unknown", "library_name": "umeta", "pipeline_tag": "image-classification", "tags": tags},
        f"A classifier for {len(learner.classes)} classes",
        f"A few-shot learner, adapted to {len(learner.classes)} classes by {len(learner.support)} labelled examples.",
        {
            "Model details": format_bullets(
                [
                    f"learner: {cite('metalearner', source.learner)}",
                    f"meta-trained as the run `{Path(source.run).name}`, with "
                    + ("true labels" if source.true_labels else "no labels")
                    + (f", after a network pre-trained on {source.pretrained}" if source.pretrained else ""),
                    *describe_input_and_output(model),
                    f"calibration: {describe_calibration(learner)}",
                ]
            ),
            "How to use": write_learner_usage(model),
            "Classes": format_bullets(counts),
            "Evaluation": "Not evaluated on these classes.",
            "Limitations": format_bullets(
                [
                    UNLIKE,
                    "Every answer is one of the classes above, whatever the image shows: these files do not tell the "
                    "unknown apart, as `umeta predict --unknown` does.",
                    "How often it is right on these classes is not known, nor how far to trust its probabilities.",
                    BIASES,
                    "The examples are not in these files. What was computed from them is, and may give some of them "
                    "away.",
                ]
            ),
        },
    )


def render_card(front: dict[str, Any], title: str, summary: str, sections: Mapping[str, str]) -> str:
    """Return a card: front matter for the hub, then text for people."""
    licence = "To be filled in: it follows from the licences of the images it was made from."
    body = "\n\n".join(f"## {name}\n\n{text}" for name, text in {**sections, "Licence": licence}.items())
    return f"---\n{dump_yaml(front)}---\n\n# {title}\n\n{summary}\n\n{body}\n"


def build_front_matter(run: Run, model: dict[str, Any], result: Result | None) -> dict[str, Any]:
    """Return what the hub reads: how to search for the model, and its accuracies as a `model-index`."""
    names = [model["learner"]["name"], model["network"]["name"]]
    front: dict[str, Any] = {
        "license": "unknown",
        "library_name": "umeta",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["few-shot-learning", "meta-learning", name_supervision(run), *names],
    }
    if result is None:
        return front
    source = run.config.plain["data"]["name"]
    results = [
        {
            "task": {"type": "image-classification", "name": f"few-shot image classification, {episode}"},
            "dataset": {"type": source, "name": f"{source}, {result['protocol']['split']}"},
            "metrics": [{"type": "accuracy", "value": round(cell["mean"], 2), "name": "accuracy (%)"}],
        }
        for episode, cell in result["rows"][result["title"]].items()
        if cell["mean"] is not None
    ]
    return {**front, "metrics": ["accuracy"], "model-index": [{"name": model["name"], "results": results}]}


def name_supervision(of: Run | MetaLearnt) -> str:
    return "supervised" if of.true_labels else "pre-trained" if of.pretrained else "unsupervised"


def describe_input_and_output(model: dict[str, Any]) -> list[str]:
    taken, given = model["input"], model["output"]
    unit = ", of unit length" if given.get("unit_length") else ""
    return [
        f"input: float32 [n, {', '.join(map(str, taken['shape'][1:]))}] in [0, 1]",
        f"preprocessing: {', '.join(f'{name}: {value}' for name, value in taken['preprocessing'].items())}",
        f"output: {given['name']}, float32 [n, {given['shape'][1]}]{unit}",
        f"exported by umeta {model['umeta']}",
    ]


def write_run_usage(run: Run, model: dict[str, Any]) -> str:
    """Code for torch alone, which classifies by prototypes, and for umeta, which adapts as the learner does."""
    size = ", ".join(map(str, model["input"]["shape"][1:]))
    if model["output"]["unit_length"]:
        answer = [
            "prototypes = torch.nn.functional.normalize(prototypes, dim=1)",
            f"logits = {model.get('scale', 1):.6g} * features(query) @ prototypes.T",
        ]
    else:
        answer = ["logits = -torch.cdist(features(query), prototypes).square()"]
    alone = [
        "import torch",
        "",
        'features = torch.export.load("features.pt2").module()',
        f"# support: [way, shot, {size}] in [0, 1], query: [n, {size}]",
        "prototypes = features(support.flatten(0, 1)).unflatten(0, support.shape[:2]).mean(1)",
        *answer,
        "predicted = logits.argmax(1)  # [n], the row of support",
    ]
    steps = f", steps={run.test_steps}" if run.test_steps else ""
    adapting = [
        "import torch",
        "import umeta",
        "",
        'learner, theta = umeta.load_export(".")',
        "y = torch.arange(len(support)).repeat_interleave(support.shape[1])[None]",
        "task = umeta.Batch(support.flatten(0, 1)[None], y, torch.ones_like(y, dtype=torch.bool), len(support))",
        f"logits = learner.predict(theta, learner.adapt(theta, task{steps}), query[None])[0]",
    ]
    by_umeta = f"With umeta, adapting as the learner does:\n\n{format_code(adapting)}"
    return f"With torch alone:\n\n{format_code(alone)}\n\n{by_umeta}"


def describe_calibration(learner: AdaptedLearner) -> str:
    found = learner.calibration
    if found is None:
        return "none, the probabilities are a plain softmax"
    return f"logits divided by the temperature {found.temperature:.3g}, fitted on {found.examples} examples"


def write_learner_usage(model: dict[str, Any]) -> str:
    """Code for torch alone."""
    size = ", ".join(map(str, model["input"]["shape"][1:]))
    return format_code(
        [
            "import json",
            "import torch",
            "",
            'classes = json.load(open("classes.json", encoding="utf-8"))',
            'classifier = torch.export.load("classifier.pt2").module()',
            f"probabilities = classifier(images)  # images: [n, {size}] in [0, 1]",
            "names = [classes[i] for i in probabilities.argmax(1)]",
        ]
    )


def describe_data(run: Run, model: dict[str, Any]) -> str:
    """Which images it saw, but not where they lie, which is nobody else's business."""
    tasks = artifacts.read_json(run.folder / "tasks.json")["manifest"]
    kept = drop_places({key: value for key, value in run.config.plain["data"].items() if key != "name"})
    named = ", ".join(f"{key} {value}" for key, value in kept.items())
    size = "x".join(map(str, model["input"]["shape"][1:]))
    return format_bullets(
        [
            f"source: {cite('data', run.config.data)}" + (f" Options: {named}." if named else ""),
            f"images: {tasks.get('images', 'number not recorded')}, {size} each, labels "
            + ("used" if run.true_labels else "not read"),
            f"fingerprint of the images: `{tasks['fingerprint']}`",
        ]
    )


def describe_training(run: Run, result: Result | None) -> str:
    """Return the parts with their papers, what was proposed, time and hardware, and the configuration."""
    config = run.config
    kinds = ("embedding", "proposer", "metalearner")
    parts = [line for kind in kinds for line in list_citations(kind, getattr(config, kind))]
    minutes = result["minutes"] if result else run.minutes()
    facts = [
        f"meta-steps: {config.train.steps}, each of {config.train.meta_batch} tasks, {config.train.episode}",
        f"seed: {config.seed}",
        f"minutes: {', '.join(f'{name} {value:g}' for name, value in minutes.items()) or 'not recorded'}",
        f"hardware: {result['hardware'] + ' (of the evaluation)' if result else 'not recorded'}",
    ]
    shown = {key: config.plain[key] for key in (*kinds, "train", "seed") if config.plain.get(key) is not None}
    settings = f"```yaml\n{dump_yaml(drop_places(shown)).strip()}\n```"
    proposing = f"Proposed tasks:\n\n{format_bullets(list_proposals(run))}"
    return "\n\n".join(
        [
            format_bullets([*parts, *list_citations("outer", config.train.outer)]),
            proposing,
            "Run:",
            format_bullets(facts),
            settings,
        ]
    )


def list_proposals(run: Run) -> list[str]:
    """Return what was proposed, in numbers, while the tasks that the run was trained on are still there."""
    folder = run.config.tasks_folder
    try:
        manifest = artifacts.read_manifest(folder, "tasks")
        if artifacts.hash_value(manifest) == artifacts.read_json(run.folder / "tasks.json")["hash"]:
            lines = (folder / "summary.md").read_text(encoding="utf-8").splitlines()
            return [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    except UserError:
        pass
    return ["numbers not known: the folder of the tasks is gone or was changed"]


def describe_evaluation(result: Result | None) -> str:
    if result is None:
        return "Not evaluated."
    about = "Accuracy in percent, mean and 95 % interval over tasks."
    return "\n\n".join(
        [about, write.format_markdown(write.tabulate([result])), format_bullets(write.list_facts(result))]
    )


def list_limits(run: Run, result: Result | None) -> Iterator[str]:
    """Plain sentences on what the features cannot be trusted with."""
    learner: Any = run.learner
    if run.true_labels:
        yield "Trained with true labels, as an upper reference: it says nothing about learning without them."
    else:
        yield (
            "Trained without labels: nothing told it which differences matter. Classes that differ only in what the "
            "proposed tasks passed over lie together."
        )
    if run.pretrained:
        yield f"Pre-trained on {run.pretrained}: its accuracies are no result of learning without labels alone."
    if result is None:
        yield "It was not evaluated: how well its features tell classes apart is not known."
    else:
        yield (
            f"Measured on the split `{result['protocol']['split']}` only. On other classes, and on images from "
            "elsewhere, its accuracy is not known."
        )
    yield UNLIKE
    yield BIASES
    yield "Inductive: the features of an image depend on no other image."
    if learner.normalisation == "support":
        yield (
            "umeta normalises a task by the statistics of its support, the exported network by their average over "
            "meta-training: its features differ a little from those that were measured."
        )
    if not isinstance(learner, ProtoNet) or run.test_steps:
        yield (
            "The exported network is the one that the learner starts from, before it adapts to a task in its own way. "
            "Its accuracies are those of the adapted learner, not of prototypes in these features."
        )
    elif learner.transductive:
        yield (
            "The accuracies are transductive, measured with queries that help each other; the code for torch alone "
            "answers each by itself."
        )


def list_citations(kind: str, part: Any) -> Iterator[str]:
    """Return a line for a part, and for every part it is built from."""
    if part is None:
        return
    yield f"{kind} {cite(kind, part)}"
    for f in dataclasses.fields(part):
        if f.name in registry.KINDS:
            yield from list_citations(f.name, getattr(part, f.name))
        elif f.name.removesuffix("s") in registry.KINDS:
            for one in getattr(part, f.name):
                yield from list_citations(f.name.removesuffix("s"), one)


def cite(kind: str, part: Any) -> str:
    """Return a part's name and the first paragraph of its docstring, which names the method and its paper."""
    first = (inspect.getdoc(type(part)) or "not documented").partition("\n\n")[0]
    return f"`{registry.name_of(kind, part)}`: {' '.join(first.split())}"


def drop_places(value: Any) -> Any:
    """Plain options, but for those that say where files lie."""
    if isinstance(value, dict):
        return {key: drop_places(one) for key, one in value.items() if key not in PLACES}
    return [drop_places(one) for one in value] if isinstance(value, list) else value


def format_options(options: Mapping[str, Any]) -> str:
    named = ", ".join(f"{name} {value}" for name, value in options.items() if name != "name" and value is not None)
    return f"`{options['name']}`" + (f" ({named})" if named else "")


def format_code(lines: Iterable[str]) -> str:
    return "\n".join(["```python", *lines, "```"])


def format_bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
