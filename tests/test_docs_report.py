"""docs/report.md says what the code does: sections, files, settings, marks, options, sentences."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from wiseft_dist.cli import app
from wiseft_dist.config import ReportConfig, load_config
from wiseft_dist.report.compare.comparison import DEFAULT_FILE
from wiseft_dist.report.compare.settings import OWN
from wiseft_dist.report.curves import MARKS
from wiseft_dist.report.thumbnails import SIDE
from wiseft_dist.run import CARD_FILE, FIGURE_FORMATS, FIGURES, Run

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
ONE, SEVERAL = TEXT.split("## Comparing runs")
COMMANDS = re.findall(r"^wiseft (.*?)(?: +#.*)?$", TEXT, re.MULTILINE)
SETTINGS = re.findall(r"^\| `(report\.\w+)` \| `([^`]*)` \|", TEXT, re.MULTILINE)
SENTENCES = re.findall(r"^\| `(.*?)` \| ", TEXT.split("| What it says |")[1], re.MULTILINE)
SOURCE = " ".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "wiseft_dist").rglob("*.py")))
JOINED = re.sub(r'"\s*f?"', "", SOURCE)
"""Sentences go over several lines there."""
PLACEHOLDER = r"\b(?:DATASET|GROUP|ALPHA|RUN)\b"
LEAST = "output: runs/mine\nmodel: {architecture: ViT-B-32}\ndata: {train: shards}\n"


def table_of(heading: str, text: str = TEXT) -> str:
    """The table under a heading row."""
    return text.split(f"| {heading} |")[1].split("\n\n")[0]


def sections_of(text: str) -> list[str]:
    """Every title that a table of sections names, also beside another one."""
    table = table_of("Section | What it shows", text)
    named = re.findall(r"^\| `(.*?)` \|", table, re.MULTILINE)
    beside = re.findall(r"(?:called|chosen,|;|also) `([A-Z][^`]*)`", table)
    return [*named, *beside]


def is_named(title: str, documented: list[str]) -> bool:
    patterns = [".+".join(map(re.escape, re.split(PLACEHOLDER, each))) for each in documented]
    return any(re.fullmatch(pattern, title) for pattern in patterns)


def titles_of(page: str) -> list[str]:
    found = re.findall(r"<h2[^>]*><bdi>(.*?)</bdi></h2>", page)
    assert len(found) > 5
    return [title.replace("&#39;", "'") for title in found]


@pytest.mark.parametrize("title", sections_of(ONE) + sections_of(SEVERAL))
def test_a_section_that_is_named_is_one_that_a_page_can_have(title):
    for part in re.split(PLACEHOLDER, title):
        assert part.strip(" ,:") in JOINED


def test_every_section_of_the_page_of_a_run_is_explained(finished):
    page = (finished.run.report / "index.html").read_text(encoding="utf-8")
    assert [title for title in titles_of(page) if not is_named(title, sections_of(ONE))] == []


def test_every_section_of_a_comparison_is_explained(finished):
    from wiseft_dist.report.compare.contents import page_of_runs
    from wiseft_dist.report.compare.given import read_runs
    from wiseft_dist.report.page.render import render

    (run, _) = read_runs([str(finished.run.path), str(finished.run.path)], ["a", "b"])
    page = render(page_of_runs([run, replace(run, name="b")]))
    titles = titles_of(page)
    assert [title for title in titles if not is_named(title, sections_of(SEVERAL))] == []
    assert [each for each in sections_of(SEVERAL) if not any(is_named(title, [each]) for title in titles)] == []


def test_every_file_of_a_report_is_named_and_there_is_no_other(tmp_path):
    table = table_of("File | What it is")
    named = re.findall(r"^\| `(\w+)(\.\w+)`((?:, `\.\w+`)*)", table, re.MULTILINE)
    files = {stem + suffix for stem, first, more in named for suffix in (first, *re.findall(r"`(\.\w+)`", more))}
    assert files == {path.name for path in Run(tmp_path).report_files}
    assert {f"{name}.{suffix}" for name in FIGURES for suffix in FIGURE_FORMATS} < files
    assert f"`RUN/merge/alpha_0.50/{CARD_FILE}`" in TEXT


def test_every_setting_has_one_row_with_its_default(tmp_path):
    assert [key for key, _ in SETTINGS] == [f"report.{name}" for name in ReportConfig.model_fields]
    (tmp_path / "least.yaml").write_text(LEAST)
    for key, default in SETTINGS:
        assert load_config(tmp_path / "least.yaml", [f"{key}={default}"]).report == ReportConfig()


def test_the_marks_are_those_of_the_figure():
    rows = dict(re.findall(r"^\| (square|diamond|star|plus) \| (.*?) \|", TEXT, re.MULTILINE))
    words = {"zero-shot": "zero-shot", "fine-tuned": "fine-tuned", "ensemble, fixed": "fixed"}
    words["ensemble, chosen on ID-val"] = "chosen on ID-val"
    assert len(rows) == len(MARKS) == 4
    for name, (_, shape) in MARKS.items():
        assert words[name] in rows[shape]
    assert f"at most {SIDE} pixels" in " ".join(TEXT.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_only_options_that_exist(command):
    name, *arguments = shlex.split(command)
    known = typer.main.get_command(app).commands[name]
    known.make_context(name, arguments)


def test_every_option_of_a_comparison_is_named():
    known = typer.main.get_command(app).commands["report"].params
    options = {option for parameter in known for option in parameter.opts if option.startswith("--")}
    assert options - {"--help"} == set(re.findall(r"`(--[a-z]+)`", table_of("Option | Meaning")))
    assert f"`{DEFAULT_FILE}` in the working directory" in TEXT


def test_the_settings_that_are_not_compared_are_named():
    told = re.findall(
        r"`(\w+)`", TEXT.split("leaves out where a run lies, is published and is tracked (")[1].split(")")[0]
    )
    assert told == [key.rstrip(".") for key in OWN]


@pytest.mark.parametrize("button", ["Logit axes", "Dark colours", "Light colours", "Only rows with", "The numbers"])
def test_what_the_page_is_said_to_have_is_written_on_it(button):
    assert f"`{button}`" in TEXT
    page = ROOT / "wiseft_dist" / "report" / "page"
    texts = [path.read_text(encoding="utf-8") for path in page.iterdir() if path.is_file()]
    assert any(button in text for text in texts)


@pytest.mark.parametrize("picture", re.findall(r"\]\((\w+\.png)\)", TEXT))
def test_a_picture_that_is_shown_is_there(picture):
    assert (ROOT / "docs" / picture).is_file()


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_sentence_of_the_table_is_one_that_the_program_says(sentence):
    assert sentence in JOINED
