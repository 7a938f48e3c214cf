"""The page of a curation and its table."""

import csv
from pathlib import Path

import pytest

from distill.curate import histogram, page, verdicts
from distill.curate.histogram import Histogram
from distill.curate.page import TITLES
from distill.data.spec import Curation
from tests.test_curate_verdicts import GOOD, OFF, video
from tests.test_report import Page as Parsed


class Page(Parsed):
    EMPTY = (*Parsed.EMPTY, "img", "rect")


def clip(name, **values):
    more = {"colourfulness": 30.0, "saturation": 0.3}
    made = video(name, **more | values)
    return made if made.bad else type(made)(made.video, made.values, still=Path("folder/stills") / f"{name[:-4]}.jpg")


def shown(folder, clips, curation=None, unmeasured=None, rate=16.0, reasons=None):
    """The page of clips that lie in a folder `videos` beside that of the curation."""
    curation = curation or Curation()
    place = folder / "curation"
    place.mkdir(exist_ok=True)
    moved = []
    for each in clips:
        at = type(each.video)(folder / "videos" / each.video.path, 1280, 720, 24.0, 5.0)
        still = place / "stills" / each.still.name if each.still else None
        moved.append(type(each)(at, each.values, each.bad, still, each.unscored))
    reasons = verdicts.judge(moved, curation)
    lost = {folder / "videos" / name: reason for name, reason in (unmeasured or {}).items()}
    page.write(place, moved, reasons, curation, lost, rate)
    return Page(place / page.PAGE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    clips = [
        clip("a <b>&.mp4", motion=2.0),
        clip("still.mp4", motion=0.1, consistency=0.99),
        clip("grey.mp4", hue_entropy=0.1),
        clip("plain.mp4", consistency=0.95, aesthetics=0.1),
        clip("torn.mp4", bad="damaged (moov atom not found)"),
        clip("shaky.mp4", motion=9.0, consistency=0.3),
    ]
    return shown(tmp_path_factory.mktemp("page"), clips, unmeasured={"text.mp4": "not a video"})


def cards(page):
    return page.all("article")


def test_the_page_is_well_formed_and_needs_no_network(finished):
    assert finished.wrong == [] and finished.open == []
    links = [attrs[k] for _, attrs in finished.elements for k in ("src", "href") if k in attrs]
    assert links and all(link.startswith(("stills/", "../videos/", "verdicts.csv")) for link in links)


def test_every_video_is_shown_with_its_verdict_stills_and_signals(finished):
    kinds = {card["data-name"]: card["data-kind"] for card in cards(finished)}
    assert kinds == {
        "a <b>&.mp4": "kept",
        "still.mp4": "still",
        "grey.mp4": "monochrome",
        "plain.mp4": "aesthetics",
        "torn.mp4": "unreadable",
        "shaky.mp4": "consistency",
        "text.mp4": "not measured",
    }
    assert "drop still: optical flow in pixels per frame 0.1, needs at least 0.2" in finished.text
    assert "1 of 7 videos kept" in finished.text
    assert [float(card["data-motion"]) for card in cards(finished) if "data-motion" in card] == [2, 0.1, 1, 1, 9]
    assert "../videos/a%20%3Cb%3E%26.mp4" in [attrs.get("href") for attrs in finished.all("a")]


def test_the_signal_that_a_video_was_dropped_for_is_marked(finished):
    marked = [attrs for attrs in finished.all("div") if attrs.get("class") == "broken"]
    assert len(marked) == 4  # one each of still, grey, plain and shaky


def test_everything_to_see_has_words_and_everything_to_use_has_a_name(finished):
    stills = finished.all("img")
    assert len(stills) == 5 and stills[0]["alt"] == "The 1st, 21st, 41st and 61st frame of a <b>&.mp4"
    assert all(attrs["loading"] == "lazy" for attrs in stills)
    charts = [attrs["aria-label"] for attrs in finished.all("svg")]
    assert "Motion: 5 videos from 0.1 to 9; at least 0.2" in charts and len(charts) == len(TITLES)
    labels = finished.text
    assert all(word in labels for word in ("Show", "Sort by", "Find"))
    assert [attrs.get("aria-label") for attrs in finished.all("button")] == ["Highest first"]


def test_the_filters_are_listed_in_order_with_what_they_dropped(finished):
    text = finished.text
    rows = [
        "not measured a clip can be cut from it 1",
        "unreadable what is looked at can be decoded 1",
        "resolution shorter side at least 720, longer at least 1280 pixels 0",
        "monochrome hue entropy in nats at least 0.6 1",
        "blurred variance of the Laplacian at least 20 0",
        "still optical flow in pixels per frame at least 0.2 1",
        "consistency among the best 50 % of what remains 1",
        "aesthetics among the best 50 % of what remains 1",
    ]
    places = [text.index(row) for row in rows]
    assert places == sorted(places)


def test_proxies_are_called_so_unless_a_scorer_stands_in(finished, tmp_path):
    assert finished.text.count("proxy") == 2 and "knows nothing of beauty" in finished.text
    named = Curation(consistency_by="a:b", aesthetics_by="a:b")
    assert "proxy" not in shown(tmp_path, [clip("a.mp4")], named).text
    assert "proxy" not in shown(tmp_path, [clip("a.mp4")], Curation(**OFF)).text


def test_the_page_says_when_consistency_favours_still_videos(tmp_path):
    clips = [clip(f"{i}.mp4", motion=1.0 + i, consistency=1 - i / 10) for i in range(5)]
    assert "favours still videos" in shown(tmp_path, clips).text and "correlation -1.00" in shown(tmp_path, clips).text
    assert "favours still videos" not in shown(tmp_path, clips, Curation(consistency_groups=2)).text
    lively = [clip(f"{i}.mp4", motion=1.0 + i, consistency=0.5 + i / 10) for i in range(5)]
    assert "favours still videos" not in shown(tmp_path, lively).text


def test_nothing_to_show_is_a_page_too(tmp_path):
    empty = shown(tmp_path, [])
    assert "0 of 0 videos kept" in empty.text and empty.wrong == [] and empty.open == []


def test_very_many_videos_are_a_sample_on_the_page_and_whole_in_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "SHOWN", 3)
    found = shown(tmp_path, [clip(f"{i}.mp4") for i in range(9)], Curation(**OFF))
    assert [card["data-name"] for card in cards(found)] == ["0.mp4", "3.mp4", "6.mp4"]
    assert "3 of 9, evenly spread; all are in verdicts.csv" in found.text
    with (tmp_path / "curation" / page.TABLE).open() as file:
        assert [row["video"] for row in csv.DictReader(file)] == [f"{i}.mp4" for i in range(9)]


def test_the_table_has_every_verdict_and_signal(tmp_path):
    clips = [clip("a.mp4", motion=0.123456789), clip("b, c.mp4", bad="damaged"), clip("d.mp4")]
    shown(tmp_path, clips, unmeasured={"e.mp4": "it is empty (0 bytes)"})
    with (tmp_path / "curation" / page.TABLE).open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["video"], row["verdict"], row["reason"]) for row in rows] == [
        ("a.mp4", "drop", "still: optical flow in pixels per frame 0.1235, needs at least 0.2"),
        ("b, c.mp4", "drop", "unreadable: damaged"),
        ("d.mp4", "keep", ""),
        ("e.mp4", "drop", "it is empty (0 bytes)"),
    ]
    assert rows[0]["motion"] == "0.123457" and rows[1]["motion"] == ""
    assert float(rows[2]["sharpness"]) == GOOD["sharpness"]


# Histograms


def test_bars_count_every_value_once():
    axis = histogram.fit(Histogram("", "", [0.0, 1.0, 1.0], [0.5], ("at least", 2.0)))
    kept, dropped = histogram.counts(axis, [0.0, 1.0, 1.0]), histogram.counts(axis, [0.5])
    assert sum(kept) == 3 and max(kept) == 2 and sum(dropped) == 1
    assert axis.low == 0 and axis.high > 2  # the mark is inside


def test_values_of_many_sizes_lie_on_a_logarithmic_axis_and_zero_at_its_beginning():
    axis = histogram.fit(Histogram("", "", [0.0, 0.01, 0.1, 1.0, 10.0], []))
    assert axis.log and axis.share(0.0) == 0
    assert axis.share(1.0) - axis.share(0.1) == pytest.approx(axis.share(10.0) - axis.share(1.0))
    assert not histogram.fit(Histogram("", "", [0.8, 0.9, 1.0], [])).log


def test_the_mark_of_a_rank_is_the_last_value_that_passed():
    clips = [clip(f"{i}.mp4", consistency=0.5 + i / 100, aesthetics=0.1 * (1 + i % 2)) for i in range(8)]
    curation = Curation()
    found = page.lowest(clips, verdicts.judge(clips, curation), curation)
    assert found == {"consistency": 0.54, "aesthetics": 0.2}
    groups = Curation(consistency_groups=2)
    assert list(page.lowest(clips, verdicts.judge(clips, groups), groups)) == ["aesthetics"]


@pytest.mark.parametrize("values", [[], [3.0], [0.0, 0.0]])
def test_a_histogram_of_little_or_nothing_is_drawn(values):
    assert histogram.svg(Histogram("Cuts", "", values, [])).startswith("<svg")
