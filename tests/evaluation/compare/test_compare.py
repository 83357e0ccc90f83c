"""The comparison page: reading runs, statistics, charts, and the page in a browser."""

import dataclasses
import json
import pathlib
import re
import shutil

import forked
import numpy as np
import pytest
import scipy.stats
from pages import ink_pixels, parse, screenshot
from PIL import Image

from hjepa_jax.errors import UserError
from hjepa_jax.evaluation.checkpoint_curves.stored import Evaluations, Point
from hjepa_jax.evaluation.compare import runs
from hjepa_jax.evaluation.compare.page import compare, page, warnings
from hjepa_jax.evaluation.page import ink
from hjepa_jax.runtime.writers.open import create_writer


def encoder_metrics(knn: float, probe: float, rng: np.random.Generator) -> dict:
    """Returns the metrics of an evaluation with the given accuracies."""
    classified = {
        "knn": {"k_values": [1, 5, 20], "top1": [knn - 0.1, knn - 0.05, knn], "top5": [1.0] * 3},
        "linear_probe": {"top1": probe, "top5": 0.9},
    }
    eigenvalues = np.sort(rng.exponential(size=12) ** 3)[::-1].tolist()
    return {
        "state_part": "q",
        **classified,
        "state_parts": {"q": classified, "p": classified},
        "diagnostics": {
            "covariance_spectrum_topq": {
                "eigenvalues": [*eigenvalues, 0.0],
                "effective_rank": 7.0,
                "participation_ratio": 3.0,
            },
            "alignment_uniformity": {"alignment": 0.5, "uniformity": -2.0},
        },
    }


def write_run(
    folder: pathlib.Path, name: str, *, seed: int, knn: float, lr: float = 1e-3, step: int = 60
) -> pathlib.Path:
    """Writes the workdir `folder/runs/name` and the report `folder/eval/name`."""
    workdir, report = folder / "runs" / name, folder / "eval" / name
    workdir.mkdir(parents=True)
    report.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    config = {"seed": seed, "train": {"lr": lr, "epochs": 3}, "data": {"root": f"/disk{seed}"}}
    (workdir / "config.json").write_text(json.dumps(config))
    metrics = {
        "schema_version": 1,
        "info": {"run": name, "step": step, "data": "digits", "device": "cpu"},
        "num_classes": 10,
        "headline_k": 20,
        "encoders": {
            "trained": encoder_metrics(knn, knn / 2, rng),
            "random": encoder_metrics(0.3, 0.2, rng),
        },
    }
    (report / "metrics.json").write_text(json.dumps(metrics))
    Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(
        report / "neighbors.png"
    )
    writer = create_writer(workdir)
    for at in range(0, step + 1, 10):
        writer.write_scalars(at, {"loss/total": 2.0 - at / 100 + seed / 10, "optim/lr": lr})
    writer.close()
    return workdir


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory) -> list[pathlib.Path]:
    """Three seeds of a method, and three of a better one."""
    folder = tmp_path_factory.mktemp("compare")
    plain = [
        write_run(folder, f"plain-seed{s}", seed=s, knn=knn)
        for s, knn in enumerate((0.50, 0.52, 0.57))
    ]
    better = [
        write_run(folder, f"better-seed{s}", seed=s, knn=knn, lr=2e-3)
        for s, knn in enumerate((0.70, 0.71, 0.75))
    ]
    return plain + better


def load(workdirs):
    return runs.group_runs([runs.load_result(path, pathlib.Path("none")) for path in workdirs])


def test_seeds_are_grouped_and_differences_are_named(workdirs) -> None:
    groups = load(workdirs)
    assert [group.name for group in groups] == ["plain", "better"]
    assert [len(group.runs) for group in groups] == [3, 3]
    assert runs.differing_fields(groups) == {"train.lr": [1e-3, 2e-3]}
    mixed = load([workdirs[3], *workdirs[:2]])
    assert [group.name for group in mixed] == ["better-seed0", "plain"]
    reports = [path.parent.parent / "eval" / path.name for path in workdirs[:2]]
    alone = load(reports)
    assert [group.name for group in alone] == ["plain-seed0", "plain-seed1"]
    assert alone[0].runs[0].curves == {}


def test_groups_with_the_same_name_are_distinguished(tmp_path) -> None:
    paths = [
        write_run(tmp_path / place, f"x-seed{seed}", seed=seed, knn=0.5, lr=lr)
        for place, lr in (("a", 0.1), ("b", 0.2))
        for seed in (0, 1)
    ]
    assert [group.name for group in load(paths)] == ["x", "x (2)"]


def test_latest_report_of_a_run_is_used(tmp_path) -> None:
    workdir = write_run(tmp_path, "x", seed=0, knn=0.5, step=60)
    eval_dir = tmp_path / "elsewhere"
    for name, run, step in (
        ("x", "x", 10),
        ("x-2", "x", 20),
        ("x-3", "other", 90),
        ("x-y", "x", 99),
        ("x-step95-digits-0123abcd", "other", 95),
    ):
        (eval_dir / name).mkdir(parents=True)
        metrics = json.loads((tmp_path / "eval/x/metrics.json").read_text())
        metrics["info"].update(run=run, step=step)
        (eval_dir / name / "metrics.json").write_text(json.dumps(metrics))
    assert runs.load_result(workdir, eval_dir).report == tmp_path / "eval/x"
    shutil.rmtree(tmp_path / "eval")
    assert runs.load_result(workdir, eval_dir).report == eval_dir / "x-2"
    # The first of two reports at the same step; otherwise the one at the later step.
    for step in (20, 30):
        folder = eval_dir / f"x-step{step}-digits-0123abcd"
        folder.mkdir()
        metrics["info"].update(run="x", step=step)
        (folder / "metrics.json").write_text(json.dumps(metrics))
        expected = eval_dir / "x-2" if step == 20 else folder
        assert runs.load_result(workdir, eval_dir).report == expected


def test_a_report_in_the_folder_of_the_run_comes_first(tmp_path) -> None:
    workdir = write_run(tmp_path, "x", seed=0, knn=0.5)
    inside = shutil.copytree(tmp_path / "eval" / "x", workdir / "evaluation")
    assert runs.load_result(workdir, tmp_path / "eval").report == inside


def test_bootstrap_agrees_with_scipy() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(1.0, 0.5, 9), rng.normal(0.0, 1.0, 7)
    difference, interval = runs.bootstrap_difference(ours, theirs)
    assert difference == pytest.approx(ours.mean() - theirs.mean())
    reference = scipy.stats.bootstrap(
        (ours, theirs),
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert interval == pytest.approx((reference.low, reference.high), abs=0.03)
    turned = runs.bootstrap_difference(theirs, ours)[1]
    assert turned == pytest.approx((-interval[1], -interval[0]), abs=0.03)


def test_bootstrap_interval_has_its_nominal_coverage() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(200):
        ours, theirs = rng.normal(0.3, 1.0, 30), rng.normal(0.0, 1.0, 30)
        _, interval = runs.bootstrap_difference(ours, theirs, resamples=1000, seed=trial)
        hits += interval[0] <= 0.3 <= interval[1]
    assert 0.89 <= hits / 200 <= 0.99


def test_one_seed_has_no_interval() -> None:
    assert runs.bootstrap_difference([0.7], [0.5, 0.6]) == (pytest.approx(0.15), None)
    assert runs.bootstrap_difference([0.5, 0.5], [0.5, 0.5]) == (0.0, (0.0, 0.0))


def test_page_is_complete_and_needs_no_network(workdirs) -> None:
    text = page(load(workdirs))
    parser = parse(text)
    assert sum(link.startswith("data:image/png;base64,") for link in parser.links) == 2
    shown = parser.shown
    for words in ("kNN@20 %", "53.00", "72.00", "± 3.61", "+19.00", "train.lr", "random encoder"):
        assert words in shown, words
    for heading in ("Summary", "Differences", "Neighbors and spectra", "Training", "Pictures"):
        assert f"<h2>{heading}</h2>" in text
    # All runs of the better group are above those of the other, so the interval excludes zero.
    assert 'class="difference better">+19.00<br>[+1' in text
    assert 'class="difference worse"' not in text
    assert "fewer than five seeds" in shown
    turned = page(load(workdirs[3:] + workdirs[:3]))
    assert 'class="difference worse">−19.00<br>[−2' in turned


def test_optional_parts_are_tabulated_if_measured(tmp_path) -> None:
    paths = [write_run(tmp_path, f"x-seed{s}", seed=s, knn=0.5) for s in (0, 1)]
    paths.append(write_run(tmp_path, "y", seed=0, knn=0.5, lr=0.2))
    for position, path in enumerate(paths):
        file = tmp_path / "eval" / path.name / "metrics.json"
        metrics = json.loads(file.read_text())
        probe = {"linear_probe": {"top1": 0.25 + position / 100}}
        metrics["encoders"]["trained"]["coarse"] = {"superclass": probe}
        if position == 2:
            metrics["encoders"]["trained"]["few_shot"] = {"5": {"top1": 0.125}}
        file.write_text(json.dumps(metrics))
    text = page(load(paths))
    assert "superclass labels</th><td>25.50 <small>± 0.71</small></td><td>27.00</td>" in text
    assert "5 images per class</th><td></td><td>12.50</td>" in text


def test_single_runs_are_compared_without_intervals(workdirs) -> None:
    text = page(load([workdirs[0], workdirs[3]]))
    assert "+20.00</div>" in text
    assert "Only one run of plain-seed0, better-seed0" in text
    alone = page(load(workdirs[:1]))
    assert "<h2>Differences</h2>" not in alone
    assert "<h2>Configuration differences</h2>" not in alone


def test_maps_and_flows_of_reports_are_embedded_with_the_wide_one_in_its_own_row(tmp_path) -> None:
    workdir = write_run(tmp_path, "x", seed=0, knn=0.5)
    report = tmp_path / "eval" / "x"
    for name in ("map.png", "flow.png"):
        shutil.copy(report / "neighbors.png", report / name)
    text = page(load([workdir]))
    assert text.count("data:image/png;base64,") == 3
    assert text.count('<figure class="wide">') == 1
    (caption,) = re.findall('<figure class="wide"><figcaption>(.*?)</figcaption>', text)
    assert caption.endswith("x: States of test images under the learned Hamiltonian flow")
    assert "principal axes and t-SNE" in text


def test_missing_values_raise_no_error(tmp_path) -> None:
    workdirs = [write_run(tmp_path, f"{n}-seed0", seed=0, knn=0.5, lr=lr) for n, lr in NAMED_RATES]
    path = tmp_path / "eval" / "b-seed0" / "metrics.json"
    metrics = json.loads(path.read_text())
    one = metrics["encoders"]["trained"]
    one["knn"]["top1"] = [None] * 3
    one["linear_probe"] = {"top1": None, "top5": None}
    one["diagnostics"]["covariance_spectrum_topq"]["eigenvalues"][0] = None
    path.write_text(json.dumps(metrics))
    assert "nan" not in parse(page(load(workdirs))).shown


def test_collapse_intervals_and_notes_are_on_the_page(tmp_path) -> None:
    paths = [
        write_run(tmp_path, f"{n}-seed{seed}", seed=seed, knn=0.5, lr=lr)
        for n, lr in NAMED_RATES
        for seed in range(2)
    ]
    for path in paths:
        file = tmp_path / "eval" / path.name / "metrics.json"
        metrics = json.loads(file.read_text())
        one = metrics["encoders"]["trained"]
        one["knn"]["top1_interval"] = [[0.1, 0.2], [0.3, 0.4], [0.451, 0.549]]
        one["linear_probe"]["top1_interval"] = None
        share = 0.999 if path.name.startswith("b") else 0.5
        rank = 31.5 if path.name.startswith("b") else 24.25
        found = one["diagnostics"]["covariance_spectrum_topq"]
        found |= {"rankme": 3.25 if share > 0.9 else 33.5, "mean_share": share}
        found |= {"effective_rank": rank}
        metrics |= {"schema_version": 2, "notes": ["A note of <both>."]}
        file.write_text(json.dumps(metrics))
    text = page(load(paths))
    shown = parse(text).shown
    assert "[45.1, 54.9]" in shown
    assert "RankMe" in shown
    assert "energy in mean %" in shown
    assert "99.9" in shown
    # For one point, a higher effective rank is no gain, while RankMe shows the loss.
    assert "31.5" in shown
    assert "+7.2" not in shown
    assert "−30.2" in shown
    assert "A note of <both>. (a-seed0, a-seed1, b-seed0, b-seed1)" in shown
    assert "different versions" not in shown
    assert "as published" not in shown
    file = tmp_path / "eval" / "a-seed0" / "metrics.json"
    metrics = json.loads(file.read_text())
    metrics["info"]["settings"] = {"evaluation.reference_evaluation": True}
    file.write_text(json.dumps(metrics))
    assert "count votes and pairs as published" in page(load(paths))
    old = write_run(tmp_path, "old", seed=0, knn=0.5)
    assert "These reports come from different versions" in page(load([*paths, old]))


def test_a_report_in_an_earlier_layout_is_one_sentence(tmp_path) -> None:
    path = write_run(tmp_path, "old", seed=0, knn=0.5)
    file = tmp_path / "eval" / "old" / "metrics.json"
    metrics = json.loads(file.read_text())
    metrics["encoders"]["trained"]["variant"] = metrics["encoders"]["trained"].pop("state_part")
    file.write_text(json.dumps(metrics))
    with pytest.raises(UserError, match=r"metrics\.json was written by an earlier version"):
        load([path])


def test_meaningless_accuracies_in_several_seeds(tmp_path) -> None:
    paths = [
        write_run(tmp_path, f"{n}-seed{seed}", seed=seed, knn=0.5, lr=lr)
        for n, lr in NAMED_RATES
        for seed in range(3)
    ]
    for path in paths[3:]:
        file = tmp_path / "eval" / path.name / "metrics.json"
        metrics = json.loads(file.read_text())
        one = metrics["encoders"]["trained"]
        one["knn"] |= {"top1": [None] * 3, "top1_interval": [None] * 3}
        one["linear_probe"] = {"top1": None, "top1_interval": None, "top5": None}
        file.write_text(json.dumps(metrics))
    assert "nan" not in parse(page(load(paths))).shown


NAMED_RATES = (("a", 0.1), ("b", 0.2))


@pytest.mark.parametrize("name", ["a <b>&amp; 'c'", "<img src=x onerror=alert(1)>", '"><script>'])
def test_names_cannot_break_the_page(name, tmp_path) -> None:
    parser = parse(page(load([write_run(tmp_path, name, seed=0, knn=0.5)])))
    assert name in parser.texts


def test_errors_are_one_sentence(workdirs, tmp_path) -> None:
    out, none = tmp_path / "page.html", pathlib.Path("none")
    with pytest.raises(UserError, match="name one or more runs"):
        compare([], out, none)
    with pytest.raises(UserError, match="named more than once"):
        compare([workdirs[0], workdirs[0] / ".." / workdirs[0].name], out, none)
    with pytest.raises(UserError, match=r"has no evaluation in .*'hjepa eval'"):
        compare([tmp_path / "nothing"], out, none)
    (tmp_path / "metrics.json").write_text('{"encoders": {}}')
    with pytest.raises(UserError, match=r"metrics\.json is not an evaluation of a trained run"):
        compare([tmp_path], out, none)
    with pytest.raises(UserError, match="cannot be written"):
        compare(workdirs[:1], tmp_path / "metrics.json" / "x.html", none)
    assert not out.exists()


def test_script_writes_a_page_that_a_browser_shows(workdirs, tmp_path) -> None:
    out = tmp_path / "new" / "page.html"
    done = forked.run("scripts/compare.py", *workdirs, f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert "better: better-seed0, better-seed1, better-seed2" in done.stdout
    assert out.read_text() == page(load(workdirs))
    pixels = screenshot(out, 1280, 2400)
    # Both groups' colors are drawn, as lines and not as a handful of pixels.
    for style in (0, 1):
        assert ink_pixels(pixels, ink.COLORS[style]) > 700
    # Nothing extends to the right of the page's column.
    assert (pixels[:, -12:] == pixels[0, 0]).all()


def test_different_images_and_settings_give_warnings(tmp_path) -> None:
    workdirs = [write_run(tmp_path, f"{n}-seed0", seed=0, knn=0.5, lr=lr) for n, lr in NAMED_RATES]
    told = []
    for images, epochs in (("x", 50), ("x", 5), ("y", 50)):
        path = tmp_path / "eval" / "b-seed0" / "metrics.json"
        for name, one, two in (("a-seed0", "x", 50), ("b-seed0", images, epochs)):
            path = tmp_path / "eval" / name / "metrics.json"
            metrics = json.loads(path.read_text())
            metrics["info"]["test_images"] = {"fingerprint": one}
            metrics["info"]["settings"] = {"evaluation.probe_epochs": two, "seed": len(name)}
            path.write_text(json.dumps(metrics))
        told.append(" ".join(warnings(load(workdirs))))
    assert "images" not in told[0]
    assert "settings" not in told[0]
    assert "different settings: evaluation.probe_epochs." in told[1]
    assert "tested on different images" in told[2]


def test_curves_of_checkpoints_are_shown_by_the_protocol_of_most_runs(workdirs, tmp_path) -> None:
    def evaluations(folder: str, probe_epochs: int, *values: float) -> Evaluations:
        points = [Point(10 * i, float(i), {"knn": value}) for i, value in enumerate(values)]
        settings = {"evaluation.probe_epochs": probe_epochs}
        return Evaluations(
            tmp_path / folder, settings, points, {"knn": "kNN@20 %"}, "", frozenset()
        )

    def section(*checkpoints: list[Evaluations]) -> str:
        found = [runs.load_result(path, tmp_path / "none") for path in workdirs[: len(checkpoints)]]
        results = [
            dataclasses.replace(one, checkpoints=own) for one, own in zip(found, checkpoints)
        ]
        text = page(runs.group_runs(results))
        parse(text)
        if 'id="checkpoints"' not in text:
            return ""
        return text[text.index('<section id="checkpoints">') :].partition("</section>")[0]

    assert section([], []) == ""
    common = [evaluations("a", 50, 0.1, 0.3)], [evaluations("b", 50, 0.2, 0.6)]
    other = [evaluations("c", 5, 0.9, 0.9, 0.9)]
    text = section([*other, *common[0]], common[1], [])
    # The mean of the two seeds that have it, and their band.
    assert 'data-y="0.15 0.45"' in text
    assert 'data-low="0.1 0.3" data-high="0.2 0.6"' in text
    assert "(2 seeds)" in text
    assert "0.9" not in text
