"""`wiseft report` with several runs: real runs, their cells and their reports, and one page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from browser import opened
from file_server import serve
from tiny_run import wiseft

from wiseft_dist.errors import UserError
from wiseft_dist.launch.sweep.directory import Member, Sweep
from wiseft_dist.launch.sweep.results import Point, Results, Row
from wiseft_dist.launch.sweep.states import RunState
from wiseft_dist.report.compare.comparison import MARK, is_comparison, write_comparison
from wiseft_dist.report.stage import report as write_report
from wiseft_dist.report_command import report
from wiseft_dist.run import Run
from wiseft_dist.sweep_command import compare_finished


@pytest.fixture(scope="module")
def runs(finished, tmp_path_factory) -> tuple[Run, Run]:
    """The finished run, and a copy of it that was reported at its ends alone: do not change them."""
    path = tmp_path_factory.mktemp("runs") / "ends"
    shutil.copytree(finished.run.path, path)
    other = Run(path)
    text = other.config_file.read_text().replace(str(finished.run.path), str(path))
    other.config_file.write_text(
        text.replace("  alphas:\n  - 0.0\n  - 0.5\n  - 1.0\n", "  alphas:\n  - 0.0\n  - 1.0\n")
    )
    write_report(other.load_config(), other)
    assert json.loads(other.statistics_file.read_text())["alphas"] == [0.0, 1.0]
    return finished.run, other


def cells_of_row(page, section: str, row: str) -> list[str]:
    return page.locator(f"#{section} tbody tr", has=page.locator("th", has_text=row)).locator("td").all_inner_texts()


def test_two_runs_become_one_page_with_a_curve_each_and_are_paired_sample_by_sample(runs, tmp_path):
    name = "<script>alert(1)</script>"
    done = wiseft("report", *(run.path for run in runs), "--output", tmp_path / "c.html", "--name", name, "--name", "b")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"Comparison: {tmp_path / 'c.html'}"
    with opened(tmp_path / "c.html") as page:
        assert page.locator("h1").inner_text() == f"{name} and b compared"
        legend = [text.strip() for text in page.locator(".lead .legend li").all_text_contents()]
        assert legend == [name, "b", "zero-shot", "chosen alpha", "fine-tuned"]
        numbers = page.locator(".lead details.numbers").first.locator("tbody th")
        assert [text.split(",")[0].strip() for text in numbers.all_text_contents()] == [name] * 3 + ["b"] * 2
        assert cells_of_row(page, "differences-chosen", "b, sketch")[-1] == "paired"
        assert cells_of_row(page, "zero-shot", "all runs")[0] == "0"
        assert cells_of_row(page, "settings-that-differ", "merge.alphas") == ["0.0, 0.5, 1.0", "0.0, 1.0", "no"]
        column = page.locator("#at-the-chosen-alpha tbody th")
        before = column.all_inner_texts()
        heading = page.locator("#at-the-chosen-alpha thead th button").first
        heading.click()
        once = column.all_inner_texts()
        heading.click()
        assert sorted(before) == sorted(once) and column.all_inner_texts() == once[::-1]


def test_a_run_without_a_report_is_refused_by_name_before_anything_is_written(runs, copied, tmp_path):
    shutil.rmtree(copied.report)
    done = wiseft("report", runs[0].path, copied.path, "--output", tmp_path / "c.html")
    assert done.returncode == 2
    assert done.stderr.startswith(f"wiseft: {copied.path}: no report yet.")
    assert "wiseft report RUN" in done.stderr
    assert not (tmp_path / "c.html").exists()


@pytest.mark.parametrize("content", ["{}", "[1", '{"reference": 3}', "null", '"text"'])
def test_a_report_that_cannot_be_read_is_to_be_written_again(runs, copied, tmp_path, content):
    copied.statistics_file.write_text(content)
    with pytest.raises(UserError, match=r"another version or damaged\. Write it again with `wiseft report RUN`"):
        write_comparison([str(runs[0].path), str(copied.path)], tmp_path / "c.html")
    assert not (tmp_path / "c.html").exists()


def test_what_is_no_run_is_refused(runs, tmp_path):
    with pytest.raises(UserError, match="is not a run directory"):
        write_comparison([str(runs[0].path), str(tmp_path / "nothing")], tmp_path / "c.html")


def test_a_file_that_is_something_else_is_replaced_only_by_force(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = [str(run.path) for run in runs]
    Path("comparison.html").write_text("my notes\n")
    with pytest.raises(UserError, match=r"comparison\.html is no comparison of runs\. --force replaces it"):
        report(places)
    assert Path("comparison.html").read_text() == "my notes\n"
    report(places, force=True)
    assert is_comparison(Path("comparison.html"))
    report(places)  # its own page it may write anew
    assert Path("comparison.html").read_text().endswith(f"{MARK}\n")


def test_a_folder_or_a_file_in_no_folder_is_no_place_for_a_page(runs, tmp_path):
    places = [str(run.path) for run in runs]
    with pytest.raises(UserError, match="is a folder: name a file in it"):
        report(places, output=tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        report(places, output=tmp_path / "nowhere" / "c.html")


def test_names_are_given_once_for_each_run_and_no_two_are_the_same(runs, tmp_path):
    places, file = [str(run.path) for run in runs], tmp_path / "c.html"
    with pytest.raises(UserError, match="--name was given 1 times for 2 runs"):
        report(places, output=file, names=["a"])
    with pytest.raises(UserError, match="--name a was given twice"):
        report(places, output=file, names=["a", "a"])
    with pytest.raises(UserError, match="needs a character that shows"):
        report(places, output=file, names=["a", " "])


def test_options_of_a_comparison_do_not_go_with_one_run(runs, tmp_path):
    with pytest.raises(UserError, match="go with a comparison"):
        report([str(runs[0].path)], output=tmp_path / "c.html")


def test_one_run_given_in_two_ways_is_one_run(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(runs[0].path.parent)
    with pytest.raises(UserError, match="a comparison needs two runs"):
        report([str(runs[0].path), runs[0].path.name], output=tmp_path / "c.html")


def test_a_published_report_is_compared_though_only_its_numbers_are_there(runs, tmp_path):
    folder = tmp_path / "bucket" / "published"
    shutil.copytree(runs[1].report, folder / "report")
    with serve(tmp_path / "bucket") as url:
        write_comparison([str(runs[0].path), f"{url}/published"], tmp_path / "c.html")
    with opened(tmp_path / "c.html") as page:
        told = page.locator(".cautions li").all_inner_texts()
        assert (
            f"published is not paired with {runs[0].path.name} on photo, sketch, clipart: only its report is there."
            in told
        )
        assert cells_of_row(page, "differences-chosen", "published, photo")[-1] == "unpaired"


def test_cells_that_the_report_was_not_made_of_are_not_paired(runs, copied, tmp_path):
    """As after a change of the report's file, or of the cells, that did not go through `wiseft report`."""
    content = json.loads(copied.statistics_file.read_text())
    for entry in content["datasets"]["photo"]["alphas"]:
        entry["num_correct"] -= 1
    copied.statistics_file.write_text(json.dumps(content))
    write_comparison([str(runs[1].path), str(copied.path)], tmp_path / "c.html", names=["a", "b"])
    assert "b is not paired with a on photo: its report is of other cells." in (tmp_path / "c.html").read_text()


def test_a_run_without_a_chosen_alpha_and_without_its_end_is_shown_and_not_paired(runs, copied, tmp_path):
    text = copied.config_file.read_text()
    copied.config_file.write_text(text.replace("  - 0.0\n  - 0.5\n  - 1.0\n", "  - 0.0\n"))
    content = json.loads(copied.statistics_file.read_text())
    content |= {"alphas": [0.0], "chosen": None, "choices": [], "oracles": {}}
    for entries in (content["datasets"][name] for name in content["datasets"]):
        entries["alphas"] = entries["alphas"][:1]
    content["shift_average"] = content["shift_average"][:1]
    copied.statistics_file.write_text(json.dumps(content))
    write_comparison([str(runs[0].path), str(copied.path)], tmp_path / "c.html", names=["a", "b"])
    text = (tmp_path / "c.html").read_text()
    assert "Differences from" not in text
    assert "b: none was chosen" in text


@pytest.fixture
def sweep(runs, tmp_path) -> Sweep:
    """Two finished runs, one that was not started, and no soup."""
    found = Sweep(
        tmp_path / "sweep", ("seed",), tuple(Member(f"seed={n}", {"seed": n}) for n in range(3)), "none", False
    )
    found.write()
    for number, run in enumerate(runs):
        (found.folder / f"seed={number}").symlink_to(run.path)
    return found


def test_the_folder_of_a_sweep_stands_for_its_runs_and_those_without_a_report_are_named(sweep, tmp_path, capsys):
    report([str(sweep.folder)], output=tmp_path / "c.html")
    assert capsys.readouterr().out == f"Comparison: {tmp_path / 'c.html'}\n"
    text = (tmp_path / "c.html").read_text()
    assert "seed=0 and seed=1 compared" in text
    assert "1 of 3 runs of the sweep sweep have no report and are left out: seed=2." in text


def test_a_sweep_with_one_report_has_nothing_to_compare(sweep, tmp_path):
    (sweep.folder / "seed=1").unlink()
    with pytest.raises(UserError, match=r"1 of its 3 runs have a report, and a comparison needs two\. `wiseft status"):
        report([str(sweep.folder)], output=tmp_path / "c.html")


@pytest.fixture
def results(sweep) -> Results:
    points = {"zero_shot": Point(0.0, 0.3, 0.2)}
    rows = (
        Row("seed=1", {}, RunState("seed=1", "finished"), 0.9, points),
        Row("seed=0", {}, RunState("seed=0", "finished"), 0.8, points),
        Row("seed=2", {}, RunState("seed=2", "failed")),
    )
    return Results(sweep, rows, is_at_work=False)


def test_a_sweep_ends_with_the_page_of_its_finished_runs_the_best_on_id_val_first(sweep, results, capsys):
    compare_finished(results)
    file = sweep.folder / "comparison.html"
    assert capsys.readouterr().err.endswith(f"Comparison: {file}\n")
    text = file.read_text()
    assert "seed=1 and seed=0 compared" in text
    assert "Left out, because they have no result: seed=2." in text


def test_a_page_that_cannot_be_written_does_not_stop_the_end_of_a_sweep(sweep, results, capsys):
    (sweep.folder / "comparison.html").write_text("mine")
    compare_finished(results)
    assert "no page that compares the runs: " in capsys.readouterr().err
    assert (sweep.folder / "comparison.html").read_text() == "mine"


def test_a_page_that_fails_in_a_way_nobody_thought_of_does_not_either(results, capsys, monkeypatch):
    def failing(*_: object, **__: object) -> None:
        raise TypeError("unsupported operand")

    monkeypatch.setattr("wiseft_dist.report.compare.comparison.page_of_runs", failing)
    compare_finished(results)
    assert "no page that compares the runs: unsupported operand" in capsys.readouterr().err
