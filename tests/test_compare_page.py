"""The comparison page without a browser: what it says of compare.json; the blind test and its votes."""

import json
import math
import os
import re

import numpy as np
import pytest
from PIL import Image

from distill import plot, scatter, video
from distill.compare import blind, figures, page, stills, tradeoff, votes
from distill.errors import UserError

from . import comparisons
from .test_report import Page as Parsed

RMSE = {"name": "rmse", "kind": "pair", "better": "lower", "unit": "", "about": ""}
SHARE = {"name": "all", "kind": "world", "better": "higher", "unit": "", "about": ""}

POINT = {"steps": 4, "own": True, "evaluations": 4.0, "metrics": {"rmse": {"mean": 0.2, "low": 0.1, "high": 0.3}}}
STUDENT = {"key": "s", "label": "S", "kind": "student", "points": [POINT], "training": {"days": 0.0025}}


class Page(Parsed):
    EMPTY = (*Parsed.EMPTY, "img", "link", "rect")


def made(folder, rows=1, **changes):
    comparisons.write(folder, comparisons.counting(3), rows=rows, **changes)
    return folder


def shown(folder):
    return Page(page.write(folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    prompts = ["a <b>red</b> circle & more", "a blue square"]
    shown = {"prompts": prompts, "seed": 5, "fps": 8}
    found = made(tmp_path_factory.mktemp("page"), rows=2, shown=shown, failures=["avd: motion: no finite flow"])
    (found / "clips/avd_4_01.mp4").unlink()
    (found / "clips/gpd_4_00.mp4").write_bytes(b"torn")
    return found


@pytest.fixture(scope="module")
def finished(folder):
    return shown(folder)


def test_the_page_is_well_formed_and_everything_it_names_is_in_the_folder(finished, folder):
    assert finished.wrong == [] and finished.open == []
    named = [a[k] for _, a in finished.elements for k in ("src", "href", "data-source") if k in a]
    files = [name for name in named if not name.startswith(("#", "data:"))]
    assert len(files) > 20 and all((folder / name).is_file() for name in files)
    anchors = [name[1:] for name in named if name.startswith("#")]
    assert anchors and set(anchors) <= {a.get("id") for _, a in finished.elements}


def test_a_missing_or_torn_clip_is_a_labelled_gap_and_the_rest_is_shown(finished):
    assert "avd_4_01.mp4: no such clip" in finished.text and "gpd_4_00.mp4: cannot be decoded" in finished.text
    samplers = 2 + sum(map(len, comparisons.STUDENT_STEPS.values()))
    assert len(in_rows(finished)) == 2 * samplers - 2
    assert "failed avd: motion: no finite flow" in finished.text


def test_a_still_is_the_first_frame_and_follows_its_clip(tmp_path):
    clip = tmp_path / "a.mp4"
    for shade in (40, 200):
        frames = np.full((3, 64, 64, 3), shade, np.uint8)
        frames[1:] = 255 - shade
        video.write(clip, frames, 8)
        os.utime(clip, (shade, shade))
        still = stills.write(clip)
        assert abs(np.asarray(Image.open(still)).astype(int) - shade).max() < 6
        os.utime(still, (shade, shade))
    clip.write_bytes(b"torn")
    os.utime(clip, (200, 200))
    assert stills.write(clip) == still  # as old as the clip: not made again


def in_rows(found):
    """The clips of the grid; the two that lie over each other show some of them again."""
    return [video for video in found.all("video") if "data-source" in video]


def test_every_picture_has_words(finished):
    assert len(finished.all("img")) == len(in_rows(finished)) == len(finished.all("video")) - 2
    assert "a <b>red</b> circle & more" in finished.text
    assert "First frame, GPD, 6 steps: a <b>red</b> circle & more" in [a["alt"] for a in finished.all("img")]
    assert "teacher, 48 steps: a blue square" in [a["aria-label"] for a in finished.all("video")]
    spoken = [a["aria-label"] for a in finished.all("svg")]
    assert any("AVD, 4 steps: 0.225 (0.205 to 0.245) at 4 network evaluations per clip" in text for text in spoken)


def test_the_teacher_has_a_column_for_many_steps_and_one_for_few(folder):
    columns = page.columns(comparisons.read(folder))
    assert [(c.key, c.shown["steps"], c.fixed) for c in columns] == [
        ("teacher", 48, True),
        ("teacher", 4, False),
        ("gpd", 4, False),
        ("avd", 4, False),
        ("dmd2", 2, False),
    ]


def test_the_reference_has_no_distance_to_itself(finished):
    row = "rmse \N{DOWNWARDS ARROW} root mean square of the latent difference the reference"
    assert row in finished.text and "99.0" not in finished.text
    spoken = [a["aria-label"] for a in finished.all("svg")]
    assert all("48 steps" not in text for text in spoken if text.startswith(("rmse", "psnr", "frechet")))
    assert any("48 steps" in text for text in spoken if text.startswith("motion"))


def test_numbers_that_are_not_known_are_a_dash(tmp_path):
    content = comparisons.read(made(tmp_path))
    nan, gpd = float("nan"), content["columns"][1]
    gpd["points"][1]["metrics"]["psnr"] |= {"mean": nan, "low": nan, "high": nan}
    gpd["points"][1]["metrics"]["saturation"]["difference"] = {"mean": None, "low": None, "high": None}
    (tmp_path / "compare.json").write_text(json.dumps(content))
    found = shown(tmp_path)
    dash = "\N{EN DASH}"
    assert "nan" not in found.text
    assert f"20.40 [20.00, 20.80] {dash} 22.46 [22.06, 22.86]" in found.text
    assert "0.387 [0.377, 0.397] 0.394 [0.384, 0.404]" in found.text  # no difference between them


def test_a_winner_is_marked_where_the_comparison_says_so_and_nowhere_else(tmp_path):
    content = comparisons.read(made(tmp_path))
    assert re.findall(r"\[0.160, 0.200\] best", shown(tmp_path).text) == ["[0.160, 0.200] best"] * 2  # and the summary
    for column in content["columns"]:
        for point in column["points"]:
            for value in point["metrics"].values():
                value.pop("best", None)
    (tmp_path / "compare.json").write_text(json.dumps(content))
    assert "] best" not in shown(tmp_path).text


def test_differences_that_may_be_none_are_grey(finished):
    assert "+0.0387 [+0.0337, +0.0437]" in finished.text  # GPD's saturation
    assert (
        "0.180 [0.160, 0.200] best \N{PLUS-MINUS SIGN}0.012 over 3 seeds 0.129" in finished.text
    )  # a distance has none
    grey = [a for a in finished.all("small") if "level" in a.get("class", "").split()]
    assert len(grey) == sum(map(len, comparisons.STUDENT_STEPS.values()))  # motion's alone


@pytest.mark.parametrize(
    ("number", "metric", "text"),
    [
        ((0.12345, 0.1212, 0.1257), RMSE, ("0.1235", "0.1212", "0.1257")),  # half the interval is 0.0023
        ((23.456, 20.1, 26.8), RMSE, ("23.5", "20.1", "26.8")),
        ((1234.5, 1100.0, 1370.0), RMSE, ("1234", "1100", "1370")),
        ((0.815, 0.765, 0.865), SHARE, ("81.5", "76.5", "86.5")),
        ((0.5, 0.5, 0.5), RMSE, ("0.500", "0.500", "0.500")),
        ((0.0, 0.0, 0.0), RMSE, ("0", "0", "0")),
    ],
)
def test_a_number_has_the_digits_that_its_interval_allows(number, metric, text):
    found = figures.value(dict(zip(("mean", "low", "high"), number, strict=True)), metric)
    assert (found["mean"], found["low"], found["high"]) == text


def test_numbers_of_cost():
    assert [figures.si(n).strip() for n in (12, 1234, 7.4e13, 1.2e15)] == ["12", "1.23 k", "74 T", "1.2 P"]


def test_costs_are_those_of_the_comparison(finished):
    assert "AVD trajectories 9,600 30 s 1,680 26,880 student ; 53,760 teacher 74 T 10 min cpu 0.00741" in finished.text
    assert "GPD 2 1 2 1.84 G 0.0122 48\N{MULTIPLICATION SIGN} 48\N{MULTIPLICATION SIGN}" in finished.text
    assert "AVD 4 4 0.0244 24\N{MULTIPLICATION SIGN} 11 min" in finished.text  # the summary: data included


def test_settings_that_differ_and_those_that_a_recipe_lacks(finished):
    assert "optim.student.lr 0.0001 0.0002 2e-05" in finished.text
    assert "method.guidance [3.0, 9.0] 9.0 \N{EN DASH}" in finished.text
    assert finished.text.count("method.alpha") == 1
    assert "1 option that one of them alone has option GPD AVD DMD2 method.alpha 1.0 \N{EN DASH}" in finished.text


def test_a_comparison_of_little_is_a_page_too(tmp_path):
    content = comparisons.read(made(tmp_path, settings={}, notes=[], metrics=[]))
    content["columns"] = content["columns"][:2]
    content["columns"][1] |= {"training": None, "curves": {}}
    content["columns"][1]["points"] = content["columns"][1]["points"][:1]
    for column in content["columns"]:
        for point in column["points"]:
            point |= {"metrics": {}, "flop": None, "seconds": None, "guidance": None, "clips": [None]}
    (tmp_path / "compare.json").write_text(json.dumps(content))
    found = shown(tmp_path)
    assert found.wrong == [] and found.text.count("unknown") == 2 and "no clip" in found.text
    assert not found.all("svg") and "Quality and cost" not in found.text


def test_the_same_comparison_gives_the_same_bytes(tmp_path):
    one, other = made(tmp_path / "one"), made(tmp_path / "other")
    assert page.write(one).read_bytes() == page.write(other).read_bytes() == page.write(one).read_bytes()


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "no such file"), ("{", "not JSON"), ('{"format": 7}', "format 7"), ("[]", "format list")],
)
def test_what_cannot_be_shown_is_one_line(tmp_path, text, said):
    if text is not None:
        (tmp_path / "compare.json").write_text(text)
    with pytest.raises(UserError, match=f"compare.json: .*{said}"):
        page.write(tmp_path)


def dot(x, y, own=True):
    return scatter.Dot(x, y, y - 1, y + 2, str(x), f"{x}: {y}", own)


def test_a_scatter_is_logarithmic_in_cost_and_true_in_value():
    drawn = scatter.Scatter("t", "c", {"a": [dot(2, 3), dot(4, 5, own=False), dot(8, 9)]}, {"a": 2}, {"few": 6.0})
    text = str(scatter.svg(drawn))
    spots = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', text)]
    assert spots[1][0] - spots[0][0] == pytest.approx(spots[2][0] - spots[1][0], abs=0.15)
    per_unit = (spots[0][1] - spots[1][1]) / 2
    assert (spots[1][1] - spots[2][1]) / 4 == pytest.approx(per_unit, abs=0.1)
    low, high = re.findall(r'<g><line x1="[\d.]+" x2="[\d.]+" y1="([\d.]+)" y2="([\d.]+)"', text)[0]
    assert float(low) - spots[0][1] == pytest.approx(per_unit, abs=0.1)
    assert spots[0][1] - float(high) == pytest.approx(2 * per_unit, abs=0.1)
    level = float(re.search(r'y1="([\d.]+)" y2="[\d.]+" class="level"', text)[1])
    assert spots[1][1] - level == pytest.approx(per_unit, abs=0.1)
    assert re.findall(r'r="4" fill="([^"]+)"', text) == ["var(--series-2)", "var(--card)", "var(--series-2)"]


def test_curves_keep_the_colours_of_their_columns():
    chart = plot.Chart("t", {"avd": [(1, 1.0), (2, 2.0)]}, colours={"gpd": 0, "avd": 1})
    assert 'stroke="var(--series-1)"' in plot.svg(chart)
    content = {"avd": [(1, 1.0), (2, 2.0)], "gpd": [(1, 1.0)]}
    assert 'stroke="var(--series-0)"' in plot.svg(plot.Chart("t", content))


def test_training_is_told_in_a_unit_to_read():
    assert figures.clock([0.003, None, 0.01]) == ("minutes", 1440)
    assert figures.clock([0.003, 0.5]) == ("hours", 24) and figures.clock([30.0]) == ("days", 1) and figures.clock([])
    shown = page.columns({"columns": [STUDENT], "setting": {"reference_steps": 48}, "metrics": [RMSE]})
    found = {cost: plot for _, cost, plot in tradeoff.plots(shown, [RMSE])}
    assert list(found) == ["evaluations", "training"]  # how long a clip takes is not known
    [spot] = found["training"].series["S"]
    assert (spot.x, spot.label) == (3.6, "S 4") and found["training"].cost == "device-minutes of training"


def ballot(folder, name, answers, **changes):
    """A file as vote.html saves it; answers by (row, sampler) choose that sampler, or "tie"."""
    key = json.loads((folder / "blind_key.json").read_text())
    given = {}
    for pair, about in key["pairs"].items():
        for (row, one, other), winner in answers.items():
            if about["row"] == row and {about["left"], about["right"]} == {one, other}:
                given[pair] = "tie" if winner is None else ("left" if about["left"] == winner else "right")
    content = {"comparison": key["comparison"], "voter": name, "votes": given} | changes
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def asked(tmp_path):
    page.write(made(tmp_path, rows=2), blind=True, seed=1)
    return tmp_path


def of(found, a, b):
    return next(pair for pair in found["pairs"] if (pair["a"], pair["b"]) == (a, b))


def test_votes_of_several_people_are_win_rates_with_wilsons_interval(asked):
    first = ballot(asked, "one", {(0, "gpd", "avd"): "gpd", (1, "gpd", "avd"): "gpd", (0, "gpd", "dmd2"): None})
    second = ballot(asked, "two", {(0, "gpd", "avd"): "gpd", (1, "gpd", "avd"): "avd"})
    found = votes.read(asked, [first, second])
    assert (found["votes"], found["voters"], found["failures"]) == (5, 2, [])
    pair = of(found, "avd", "gpd")
    assert (pair["wins_a"], pair["wins_b"], pair["ties"]) == (1, 3, 0)
    z, n, p = 1.959964, 4, 0.25
    middle, half = (
        (p + z * z / (2 * n)) / (1 + z * z / n),
        z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2) / (1 + z * z / n),
    )
    assert pair["share"] == p and (pair["low"], pair["high"]) == pytest.approx((middle - half, middle + half))
    undecided = of(found, "dmd2", "gpd")
    assert undecided["ties"] == 1 and undecided["share"] is undecided["low"] is None


def test_of_two_files_by_one_voter_the_later_counts(asked):
    early = ballot(asked, "one", {(0, "gpd", "avd"): "gpd"}).rename(asked / "early.json")
    late = ballot(asked, "one", {(0, "gpd", "avd"): "avd"})
    assert of(votes.read(asked, [early, late]), "avd", "gpd")["wins_a"] == 1
    assert of(votes.read(asked, [late, early]), "avd", "gpd")["wins_a"] == 0


def test_a_bad_file_of_votes_is_one_line_and_the_rest_counts(asked):
    good = ballot(asked, "good", {(0, "gpd", "avd"): "gpd"})
    torn = asked / "torn.json"
    torn.write_text(good.read_text()[:-20])
    bad = {
        asked / "none.json": "No such file",
        torn: "torn, or not votes",
        ballot(asked, "other", {}, comparison="beef"): "votes on another comparison (beef)",
        ballot(asked, "pair", {}, votes={"abc": "left"}): "pair 'abc' is not in this comparison",
        ballot(asked, "word", {(0, "gpd", "avd"): "gpd"}): "vote 'both'",
    }
    word = asked / "word.json"
    word.write_text(word.read_text().replace('"left"', '"both"').replace('"right"', '"both"'))
    found = votes.read(asked, [*bad, good])
    assert found["votes"] == 1 and len(found["failures"]) == len(bad)
    for line, (path, said) in zip(found["failures"], bad.items(), strict=True):
        assert line.startswith(f"{path}: ") and said in line and "\n" not in line


def test_votes_need_a_blind_test(tmp_path):
    with pytest.raises(UserError, match="blind_key.json: no such file; `distill compare --blind`"):
        votes.read(tmp_path, [])


def test_votes_on_clips_that_changed_since_are_refused(asked):
    old = ballot(asked, "old", {(0, "gpd", "avd"): "gpd"})
    (asked / "clips/gpd_4_00.mp4").write_bytes((asked / "clips/gpd_4_00.mp4").read_bytes() + b"\0")
    page.write(asked, blind=True, seed=1)
    assert "another comparison" in votes.read(asked, [old])["failures"][0]


def test_the_folder_for_voters_holds_no_names_and_no_key(asked):
    files = [path for path in (asked / "blind").rglob("*") if path.is_file()]
    assert len(files) == 1 + 2 * 6 * 2  # the page; two clips of every two of four samplers, for two prompts
    told = " ".join(str(path.relative_to(asked)) for path in files) + (asked / "blind/vote.html").read_text()
    assert not [name for name in ("gpd", "avd", "dmd2", "teacher") if name in told.lower()]


def test_sides_and_order_follow_from_the_seed(asked):
    def key():
        return list(json.loads((asked / "blind_key.json").read_text())["pairs"].items())

    first = key()
    page.write(asked, blind=True, seed=1)
    assert key() == first
    page.write(asked, blind=True, seed=2)
    assert key() != first and {pair for pair, _ in key()}.isdisjoint(pair for pair, _ in first)
    clips = {(f"sampler {s}", row): "" for s in range(5) for row in range(40)}
    drawn = blind.drawn(clips, blind.Random("any"))
    left = sum(pair["left"] < pair["right"] for pair in drawn)
    assert len(drawn) == 400 and 160 < left < 240


def test_pairs_of_a_missing_clip_are_not_asked_for(asked):
    (asked / "clips/gpd_4_00.mp4").unlink()
    page.write(asked, blind=True)
    pairs = json.loads((asked / "blind_key.json").read_text())["pairs"].values()
    assert len(pairs) == 3 + 6 and not any(p["row"] == 0 and "gpd" in (p["left"], p["right"]) for p in pairs)
    for clip in (asked / "clips").glob("*.mp4"):
        clip.unlink()
    with pytest.raises(UserError, match="nothing to vote on"):
        page.write(asked, blind=True)


def test_the_page_shows_the_votes(tmp_path):
    pairs = [
        {"a": "gpd", "b": "avd", "wins_a": 7, "wins_b": 3, "ties": 2, "low": 0.4, "high": 0.89, "share": 0.7},
        {"a": "gpd", "b": "dmd2", "wins_a": 0, "wins_b": 0, "ties": 1, "low": None, "high": None, "share": None},
    ]
    text = shown(made(tmp_path, votes={"votes": 13, "pairs": pairs})).text
    assert "13 votes" in text and "GPD 7 3 AVD 2 70 % [40, 89]" in text.replace("\u2009", " ")
    assert "GPD 0 0 DMD2 1 no vote decides" in text
