"""VBench's totals, the videos it asks for, and the results it writes."""

import csv
import json
import math
from collections import Counter
from pathlib import Path

import pytest

from distill.errors import UserError
from distill.evaluate import vbench
from distill.evaluate.vbench import layout, results, suites
from distill.evaluate.vbench.suites import VBENCH, VBENCH2
from tests.test_cli import distill

# Of 36 printed scores three do not follow from their row's own dimensions: what they come to instead.
MISPRINTED = {
    ("Ours-720P(544P)*", "total"): 82.737,
    ("Ours-720P(544P)*", "quality"): 84.337,
    ("HunyuanVideo-544P*", "total"): 82.660,
}


# Scores


@pytest.fixture(scope="module")
def table(shared) -> list[dict[str, str]]:
    with (shared / "data/references/accvideo_table1.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_scores_of_a_published_table(table):
    """AccVideo's Table 1, to what it prints."""
    assert len(table) == 12
    for row in table:
        scores = vbench.scores({name: float(row[name]) / 100 for name in VBENCH.dimensions})
        for name in ("total", "quality", "semantic"):
            printed, misprint = float(row[f"printed_{name}"]), MISPRINTED.get((row["model"], name))
            assert 100 * scores[name] == pytest.approx(misprint or printed, abs=0.001 if misprint else 0.01)
            assert 100 * scores[name] == pytest.approx(float(row[f"recomputed_{name}"]), abs=1e-4)
        assert scores["partial"] == []


def test_the_constants_are_the_official_ones(shared):
    official = json.loads((shared / "data/references/vbench_constants.json").read_text())
    for ranges, group in ((suites.QUALITY, "quality"), (suites.SEMANTIC, "semantic")):
        theirs = {name: official["vbench"]["dims"][name] for name in official["vbench"][group]}
        assert {n: {"min": r.low, "max": r.high, "weight": r.weight} for n, r in ranges.items()} == theirs
    assert (suites.QUALITY_WEIGHT, suites.SEMANTIC_WEIGHT) == (4, 1)
    assert {name: list(some) for name, some in suites.CATEGORIES.items()} == official["vbench2"]["categories"]


def test_the_ends_of_the_ranges_are_0_and_1_and_nothing_is_clipped():
    ranges = suites.QUALITY | suites.SEMANTIC
    for share in (0.0, 1.0):
        means = {name: r.low + share * (r.high - r.low) for name, r in ranges.items()}
        scores = vbench.scores(means)
        assert [scores[name] for name in ("quality", "semantic", "total")] == pytest.approx([share] * 3)
    below = vbench.scores(means | {"motion_smoothness": 0.0})
    assert below["quality"] == pytest.approx(1 + (-0.706 / 0.2915 - 1) / 6.5)


def test_a_missing_dimension_makes_the_total_partial_and_never_a_zero():
    means = dict.fromkeys(VBENCH.dimensions, 0.5)
    del means["color"]
    scores = vbench.scores(means)
    assert scores["semantic"] is scores["total"] is None
    assert scores["quality"] == vbench.scores(dict.fromkeys(VBENCH.dimensions, 0.5))["quality"]
    assert scores["partial"] == ["color"]
    assert vbench.scores({}) == {"quality": None, "semantic": None, "total": None, "partial": list(VBENCH.dimensions)}


def test_vbench2_is_the_mean_of_five_plain_means():
    means = {name: i / 20 for i, name in enumerate(VBENCH2.dimensions)}
    scores = vbench.scores2(means)
    by_hand = [(0 + 1) / 2, (2 + 3) / 2, sum(range(4, 11)) / 7, (11 + 12 + 13) / 3, (14 + 15 + 16 + 17) / 4]
    names = ("creativity", "commonsense", "controllability", "human_fidelity", "physics")
    assert [20 * scores[name] for name in names] == pytest.approx(by_hand)
    assert 20 * scores["total"] == pytest.approx(sum(by_hand) / 5)
    del means["Multi-View_Consistency"]
    scores = vbench.scores2(means)
    assert scores["physics"] is scores["total"] is None and scores["creativity"] is not None
    assert scores["partial"] == ["Multi-View_Consistency"]


@pytest.mark.parametrize(
    ("scores", "means", "line"),
    [
        (vbench.scores, {"colour": 0.5}, "VBench has no dimension 'colour', did you mean 'color'?"),
        (
            vbench.scores2,
            {"Multi_View_Consistency": 0.5},
            "VBench-2.0 has no dimension 'Multi_View_Consistency', did you mean 'Multi-View_Consistency'?",
        ),
        (vbench.scores, {"color": 92.55}, "color is 92.55; means go from 0 to 1: divide percentages by 100"),
        (vbench.scores, {"color": math.nan}, "color is nan, no mean; leave out a dimension that was not measured"),
    ],
)
def test_what_is_no_mean_is_refused(scores, means, line):
    with pytest.raises(UserError) as error:
        scores(means)
    assert str(error.value) == line


# Videos that are asked for


@pytest.fixture(scope="module")
def lists(shared) -> Path:
    return shared / "data/prompts"


def read(lists: Path, suite: str = "vbench", **options) -> layout.Layout:
    files = {"vbench": "vbench/VBench_full_info.json", "vbench2": "vbench2/VBench2_full_info.json"}
    return layout.read(lists / files[suite], **options)


def test_vbench_asks_for_five_videos_and_25_of_still_scenes(lists):
    asked = read(lists)
    wanted = asked.wanted(asked.dimensions)
    assert asked.suite is VBENCH and asked.dimensions == VBENCH.dimensions and not asked.faults
    counts = Counter(each.file.split("/")[0] for each in wanted)
    assert counts["temporal_flickering"] == 25 * 75 and counts["overall_consistency"] == 5 * 93
    assert len(counts) == 11 and sum(counts.values()) == 5 * (946 - 75) + 25 * 75 == len({each.file for each in wanted})
    folders = json.loads((lists / "vbench/dimension_to_folder.json").read_text())
    assert {dimension: VBENCH.folder(dimension) for dimension in VBENCH.dimensions} == folders
    assert "scene/alley-4.mp4" in {each.file for each in wanted}


def test_vbench2_asks_for_three_videos_and_20_for_diversity(lists):
    asked = read(lists, "vbench2")
    wanted = asked.wanted(asked.dimensions)
    counts = Counter(each.file.split("/")[0] for each in wanted)
    assert asked.suite is VBENCH2 and counts["Diversity"] == 200 and counts["Human_Anatomy"] == 360
    assert len(counts) == 18 and len({each.file for each in wanted}) == 3860
    assert max(len(Path(each.file).stem.rpartition("-")[0]) for each in wanted) == 180
    long = next(each for each in wanted if len(each.prompt) > 180)
    assert Path(long.file).name == f"{long.prompt[:180]}-0.mp4" and long.text == long.prompt


def test_every_video_has_a_seed_of_its_own_whichever_dimensions_are_asked_for(lists):
    asked = read(lists)
    wanted = asked.wanted(asked.dimensions, seed=7)
    seeds = {}
    for each in wanted:
        seeds.setdefault(each.seed, set()).add((each.text, each.file.rpartition("-")[2]))
    assert all(len(texts) == 1 for texts in seeds.values())
    assert min(seeds) >= 7 and len(seeds) == len(wanted) - 10  # two prompts are there twice, five videos each
    some = {each.file: each.seed for each in asked.wanted(["color"], seed=7)}
    assert some.items() <= {each.file: each.seed for each in wanted}.items() and len(some) == 425


def test_the_same_prompt_twice_is_the_same_video_in_two_folders_unless_extended_otherwise(lists):
    twice = "The bund Shanghai, oil painting"
    plain = [each for each in read(lists).wanted(VBENCH.dimensions) if each.prompt == twice]
    assert len(plain) == 10 and len({(each.text, each.seed) for each in plain}) == 5
    longer = read(lists, extended=lists / "vbench/all_dimension_aug_wanx_seed42.txt")
    extended = [each for each in longer.wanted(VBENCH.dimensions) if each.prompt == twice]
    assert len({each.seed for each in extended}) == 5 * len({each.text for each in extended})


def test_files_are_named_by_the_short_prompt_and_made_of_the_extended_one(lists):
    asked = read(lists, extended=lists / "vbench/all_dimension_longer.txt")
    shorter = (lists / "vbench/all_dimension.txt").read_text().splitlines()
    longer = (lists / "vbench/all_dimension_longer.txt").read_text().split("\n")
    texts = dict(zip(shorter, longer, strict=False))
    for each in asked.wanted(["color", "scene"]):
        assert each.text == texts[each.prompt].strip() != each.prompt
        assert Path(each.file).name.startswith(each.prompt)
    assert asked.extended and not read(lists).extended and asked.digest != read(lists).digest


def test_extensions_of_vbench2_are_of_a_list_in_another_order(lists):
    extended, short = lists / "vbench2/Wanx_full_text_aug.txt", lists / "vbench2/VBench2_full_text.txt"
    asked = read(lists, "vbench2", extended=extended, short=short)
    lines = short.read_text().split("\n").index("Garden, zoom out.")
    (garden,) = [each for each in asked.prompts if each.prompt == "Garden, zoom out."]
    assert garden.text == extended.read_text().split("\n")[lines].strip()
    with pytest.raises(UserError, match=r"1013 lines for the 1230 prompts of .*; name the prompts .* --short FILE"):
        read(lists, "vbench2", extended=extended)


def test_prompts_that_differ_in_case_need_a_disk_that_tells_them_apart(lists):
    assert not read(lists).faults
    asked = read(lists, same_case=True)
    assert asked.faults == ("no videos of 'A fantasy landscape': its files would be those of 'a fantasy landscape'",)
    assert len(asked.wanted(asked.dimensions)) == 6230 - 5


def write(folder: Path, entries, **files: str) -> Path:
    (folder / "info.json").write_text(entries if isinstance(entries, str) else json.dumps(entries))
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return folder / "info.json"


def entry(prompt: str, *dimensions: str) -> dict:
    return {"prompt_en": prompt, "dimension": list(dimensions)}


def test_a_prompt_that_cannot_name_a_file_does_not_stop_the_rest(tmp_path):
    same = "x" * 180
    bad = [entry("one/other", "Diversity"), entry("\u732b" * 100, "Diversity"), entry(" ", "Diversity")]
    good = [entry(f"{same} a", "Composition"), entry("fine", "Composition", "Diversity")]
    asked = layout.read(write(tmp_path, [*bad, *good, entry(f"{same} b", "Composition")]))
    assert [each.prompt for each in asked.prompts] == [f"{same} a", "fine"]
    for line, reason in zip(
        asked.faults, ["'/' cannot be", "at most 255 bytes", "begins like", "files would be those"], strict=True
    ):
        assert line.startswith("no videos of ") and reason in line and "\n" not in line


def test_a_prompt_that_is_listed_twice_for_a_dimension_has_its_videos_once(tmp_path):
    asked = layout.read(write(tmp_path, [entry("a", "color"), entry("b", "color"), entry("a", "color")]))
    assert len(asked.wanted(["color"])) == 10 and not asked.faults


def test_seeds_follow_texts_and_files_prompts(tmp_path):
    """Two prompts with one text are one video; two texts of one prompt are two, and need two folders."""
    names = [("a", "color"), ("b", "color"), ("a", "scene"), ("a", "color")]
    info = write(tmp_path, [entry(*each) for each in names], extended="same\nsame\nother\nthird")
    asked = layout.read(info, tmp_path / "extended.txt")
    first = {
        each.file: (each.text, each.seed) for each in asked.wanted(["color", "scene"]) if each.file.endswith("-0.mp4")
    }
    assert first == {"color/a-0.mp4": ("same", 0), "color/b-0.mp4": ("same", 0), "scene/a-0.mp4": ("other", 50)}
    assert asked.faults == ("no videos of 'third': its files would be those of 'same'",)


@pytest.mark.parametrize(
    ("entries", "options", "line"),
    [
        ("[", {}, "info.json: not JSON"),
        ({"a": 1}, {}, "info.json: expected a list of prompts with dimensions"),
        ([entry("a", "color"), {"prompt": "b"}], {}, "info.json: entry 1 is {'prompt': 'b'}; expected prompt_en"),
        ([entry("a", "color"), entry("b", "colour")], {}, "has no dimension 'colour', did you mean 'color'?"),
        ([entry("a", "color"), entry("b", "color")], {"extended": "one"}, "extended.txt has 1 lines for the 2 prompts"),
        ([entry("a", "color"), entry("b", "color")], {"extended": "x\n\ny"}, "extended.txt: line 2 is empty"),
        ([entry("a", "color")], {"short": "a"}, "has no effect without --extended FILE"),
        ([entry("a", "color")], {"short": "b", "extended": "x"}, "short.txt lacks 1 prompts of"),
    ],
)
def test_a_list_that_cannot_be_used_is_one_line(tmp_path, entries, options, line):
    info = write(tmp_path, entries, **options)
    with pytest.raises(UserError) as error:
        layout.read(info, **{name: tmp_path / f"{name}.txt" for name in options})
    assert line in str(error.value) and "\n" not in str(error.value)


def test_a_dimension_without_prompts_is_refused(tmp_path):
    asked = layout.read(write(tmp_path, [entry("a", "color")]))
    assert asked.chosen(()) == ("color",)
    with pytest.raises(UserError, match="no dimension 'colr', did you mean 'color'"):
        asked.chosen(["colr"])
    with pytest.raises(UserError, match="has no prompts of scene; color"):
        asked.chosen(["scene"])


# Results


def result(folder: Path, name: str, content) -> Path:
    path = folder / f"{name}_eval_results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def videos(*values) -> list[dict]:
    return [{"video_path": f"/there/color/a, b-{i}.mp4", "video_results": value} for i, value in enumerate(values)]


def test_results_are_read_as_the_official_package_writes_them(tmp_path):
    """Names with colons, several files, values from 0 to 100 beside a mean from 0 to 1, booleans."""
    result(tmp_path, "results_2025-01-01-10:00:00", {"imaging_quality": [0.66, videos(64.0, 70.0)], "color": [0.1, []]})
    result(tmp_path / "deep", "results_2025-01-02-09:00:00", {"dynamic_degree": [0.5, videos(True, False)]})
    result(tmp_path, "results_2025-01-03-09:00:00", {"color": [0.9, videos(0.9)]})
    suite, found, notes = results.read([tmp_path])
    assert suite is VBENCH and list(found) == ["imaging_quality", "dynamic_degree", "color"]
    assert found["imaging_quality"].mean == 0.66 and list(found["imaging_quality"].videos.values()) == [0.64, 0.7]
    assert found["dynamic_degree"].videos == {"a, b-0.mp4": 1.0, "a, b-1.mp4": 0.0}
    assert found["color"].mean == 0.9 and len(notes) == 1 and notes[0].startswith("color is in results_2025-01-01")


def test_results_of_vbench2(tmp_path):
    result(tmp_path, "a", {"Multi-View_Consistency": [0.25, videos(0.5, -1, 0.0)]})
    suite, found, notes = results.read([tmp_path])
    assert suite is VBENCH2 and not notes
    assert found["Multi-View_Consistency"].videos == {"a, b-0.mp4": 0.5, "a, b-2.mp4": 0.0}


def test_a_result_that_cannot_be_used_is_a_line_and_the_rest_counts(tmp_path):
    result(tmp_path, "a", {"color": [math.nan, []], "scene": {"mean": 1}, "human_action": [0.9, []]})
    (tmp_path / "b_eval_results.json").write_text("{")
    _, found, notes = results.read([tmp_path])
    assert list(found) == ["human_action"]
    assert "not JSON" in notes[0] and "scene: a_eval_results.json is not understood" in notes[2]
    assert notes[1] == "color: its mean is nan in a_eval_results.json; it counts as missing"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"colour": [0.5, []]}, "a_eval_results.json: VBench has no dimension 'colour', did you mean 'color'?"),
        ({"color": [0.5, []], "Material": [0.5, []]}, "VBench has no dimension 'Material'; it has"),
        (
            {"color": [55.0, []]},
            "color is 55; means go from 0 to 1: divide percentages by 100 (from a_eval_results.json)",
        ),
        ({}, "expected files *_eval_results.json"),
    ],
)
def test_results_that_make_no_table_are_one_line(tmp_path, content, line):
    result(tmp_path, "a", content)
    done = distill("vbench", "scores", tmp_path)
    assert done.returncode == 2 and line in done.stderr and len(done.stderr.splitlines()) == 1 and not done.stdout


def test_the_command_prints_a_published_row(table, tmp_path):
    row = table[0]
    for name in VBENCH.dimensions:
        result(tmp_path / name, f"results_{name}", {name: [float(row[name]) / 100, []]})
    said = distill("vbench", "scores", tmp_path).stdout.splitlines()
    shown = {line.split()[0]: line.split()[1] for line in said}
    assert [shown[name] for name in ("quality", "semantic", "total")] == ["82.20", "73.42", "80.44"]
    assert shown["scene"] == "55.29" and not any(line.startswith("partial") for line in said)
    (tmp_path / "scene/results_scene_eval_results.json").unlink()
    said = distill("vbench", "scores", tmp_path).stdout.splitlines()
    shown = {line.split()[0]: line.split()[1] for line in said}
    assert (shown["quality"], shown["total"], shown["scene"]) == ("82.20", "partial", "-")
    assert said[-1] == "partial: 1 of 16 dimensions are missing: scene"
