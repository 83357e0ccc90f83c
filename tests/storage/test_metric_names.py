"""Tags of metrics."""

import pytest

from hjepa_jax.storage.metric_names import TAGS, name_of, tag_of, tagged


def test_tags_are_groups_with_readable_names_and_lead_back() -> None:
    assert tagged({"total": 1.0, "pred": 2.0, "q_pr": 3.0, "lr": 4.0}) == {
        "loss/total": 1.0,
        "loss/prediction": 2.0,
        "state/q_participation_ratio": 3.0,
        "optim/lr": 4.0,
    }
    groups = {tag.partition("/")[0] for tag in TAGS.values()}
    assert groups == {"loss", "state", "optim", "speed", "data", "method"}
    assert [name_of(tag) for tag in TAGS.values()] == list(TAGS)


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("invariance", "loss/invariance"),
        ("temperature", "method/temperature"),
        ("online/knn_top1", "online/knn_top1"),
    ],
)
def test_metrics_of_other_methods(name, tag) -> None:
    assert tag_of(name, {"invariance": 25.0}) == tag
    assert name_of(tag) == name
    assert name_of(name) == name
