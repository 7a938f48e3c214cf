"""The comparison page and the blind test in a real browser."""

import functools
import http.server
import io
import json
import shutil
import threading

import numpy as np
import pytest
from PIL import Image

from distill.compare import page, votes

from . import comparisons

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
DESK, PHONE = {"width": 1440, "height": 1400}, {"width": 390, "height": 844}
SHORT, LONG = (9, 8), (40, 16)  # frames, frames per second: sought frame by frame, and played
COLUMNS, ROWS = 5, 2


@pytest.fixture(scope="module")
def chromium():
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def browse(chromium):
    """Opens an address in a page of its own; at the end nothing may have gone wrong there or been asked elsewhere."""
    contexts, wrong, asked = [], [], []

    def opened(address, viewport=DESK, **options):
        contexts.append(chromium.new_context(viewport=viewport, **options))
        tab = contexts[-1].new_page()
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
        tab.on("requestfailed", lambda request: wrong.append(request.url) if lost(request) else None)
        tab.on("request", lambda request: asked.append((address.rpartition("/")[0] + "/", request.url)))
        tab.goto(address)
        return tab

    yield opened
    for context in contexts:
        context.close()
    outside = [url for home, url in asked if not url.startswith((home, f"blob:{home}", "blob:"))]
    assert not wrong and not outside and asked


def lost(request) -> bool:
    return request.failure != "net::ERR_ABORTED"  # a clip that is let go of before it is whole


@pytest.fixture(scope="module", params=[SHORT, LONG], ids=["short", "long"])
def film(request, tmp_path_factory):
    """A comparison of clips that show their frames' numbers: (address, frames)."""
    frames, fps = request.param
    folder = comparisons.write(tmp_path_factory.mktemp("film"), comparisons.counting(frames), rows=ROWS, fps=fps)
    return page.write(folder).as_uri(), frames


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return comparisons.write(tmp_path_factory.mktemp("compared"), rows=3)


@pytest.fixture(scope="module")
def address(folder):
    return page.write(folder).as_uri()


def ready(tab) -> None:
    """Every clip on the screen has a frame."""
    tab.wait_for_function("player.clips().length && player.clips().every((clip) => clip.readyState > 1)")


def settled(tab) -> None:
    ready(tab)
    tab.evaluate("player.refresh()")


def numbers(tab) -> list[int]:
    """The frames' numbers that are seen in one picture of the screen, in the rows."""
    rows = "player.clips().filter((clip) => clip.closest('.row'))"
    boxes = tab.evaluate(f"{rows}.map((clip) => clip.getBoundingClientRect().toJSON())")
    pixels = picture(tab).mean(2)
    return [number(pixels, box) for box in boxes]


def picture(tab, where: str = "") -> np.ndarray:
    """The screen, or an element, (H, W, 3)."""
    shot = tab.locator(where).screenshot() if where else tab.screenshot()
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))


def number(pixels, box: dict[str, float]) -> int:
    square = box["width"] * (comparisons.SIZE // comparisons.BITS + 1) / comparisons.SIZE
    middle = int(box["y"] + box["height"] / 2)
    bits = [pixels[middle, int(box["x"] + square * (b + 0.5))] > 128 for b in range(comparisons.BITS)]
    return sum(int(bit) << b for b, bit in enumerate(bits))


def spread(seen: list[int], frames: int) -> int:
    """Frames between the first and the last clip; the last frame is the first's neighbour."""
    return min(max((n - shift) % frames for n in seen) - min((n - shift) % frames for n in seen) for shift in seen)


def test_clips_play_in_step_to_within_a_frame(browse, film):
    address, frames = film
    tab = browse(address)
    settled(tab)
    seen = []
    for _ in range(16):
        seen.append(numbers(tab))
        tab.wait_for_timeout(90)
    assert {len(each) for each in seen} == {COLUMNS * ROWS}
    assert max(spread(each, frames) for each in seen) <= 1, seen
    assert len({each[0] for each in seen}) >= 5  # and they do play


@pytest.mark.parametrize("film", [LONG], indirect=True, ids=["long"])
def test_clips_wait_for_one_that_falls_behind(browse, film):
    address, frames = film
    tab = browse(address)
    settled(tab)
    tab.wait_for_function("player.index >= 8 && player.index < 14")
    tab.evaluate("player.clips()[3].currentTime -= 6 / player.fps")
    tab.wait_for_function("player.index >= 16")  # of the slowest
    assert spread(numbers(tab), frames) <= 1


def test_scrubbing_and_single_frames_show_that_frame_of_every_clip(browse, film):
    address, frames = film
    tab = browse(address)
    settled(tab)
    tab.evaluate("player.play(false)")
    for wanted in (frames - 1, 0, 5):
        tab.locator("#frame").fill(str(wanted))
        tab.evaluate("player.go(player.index)")
        assert numbers(tab) == [wanted] * COLUMNS * ROWS
    tab.locator("#frame").blur()
    for key, wanted in (("ArrowRight", 6), ("ArrowLeft", 5), ("Home", 0), ("ArrowLeft", frames - 1)):
        tab.keyboard.press(key)
        tab.evaluate("player.go(player.index)")
        assert numbers(tab) == [wanted] * COLUMNS * ROWS
    assert tab.locator("#frame-shown").inner_text() == f"{frames}/{frames}"


def test_without_the_loop_clips_stop_at_their_last_frame(browse, film):
    address, frames = film
    tab = browse(address)
    settled(tab)
    tab.evaluate("player.play(false)")
    tab.evaluate(f"player.go({frames - 4})")
    tab.keyboard.press("l")
    tab.keyboard.press("Space")
    tab.wait_for_function("!player.playing")
    tab.evaluate("player.go(player.index)")
    assert numbers(tab) == [frames - 1] * COLUMNS * ROWS


def clips(tab) -> list[str]:
    """What the first row shows."""
    return tab.evaluate(
        "[...document.querySelector('.row').querySelectorAll('figure:not([hidden]) video')]"
        ".map((clip) => clip.currentSrc.split('/').pop())"
    )


def test_the_slider_switches_clips_and_numbers_and_says_who_stays(browse, address):
    tab = browse(address)
    settled(tab)
    own = [f"{name}_00.mp4" for name in ("teacher_48", "teacher_4", "gpd_4", "avd_4", "dmd2_2")]
    assert clips(tab) == own
    assert tab.locator("#steps-shown").inner_text() == "each its own"
    for _ in range(4):  # of 1, 2, 4, 6, 8
        tab.keyboard.press("]")
    settled(tab)
    assert clips(tab) == [*own[:2], "gpd_6_00.mp4", *own[3:]]
    row = tab.locator("table.metrics tr", has_text="rmse")
    assert f"{0.9 / 7:.3f}" in row.inner_text() and f"{0.9 / 5:.3f}" not in row.inner_text()
    said = tab.locator(".row >> nth=0 >> figcaption >> visible=true").all_inner_texts()
    assert [" ".join(text.split()) for text in said] == [
        "teacher 48 steps",
        "teacher 4 steps only",
        "GPD 6 steps",
        "AVD 4 steps only",
        "DMD2 2 steps not 6",
    ]
    tab.keyboard.press("[")
    tab.keyboard.press("[")
    settled(tab)
    assert clips(tab) == [*own[:2], "gpd_2_00.mp4", *own[3:]]


def test_keys(browse, address):
    tab = browse(address)
    settled(tab)
    assert tab.evaluate("player.playing") and tab.locator("#play").inner_text() == "Pause"
    tab.keyboard.press("Space")
    assert not tab.evaluate("player.playing") and tab.locator("#play").inner_text() == "Play"
    tab.keyboard.press(",")
    assert tab.evaluate("player.speed") == 0.5
    tab.keyboard.press("1")
    tab.keyboard.press("4")
    assert clips(tab) == ["teacher_4_00.mp4", "gpd_4_00.mp4", "dmd2_2_00.mp4"]
    assert tab.locator("table.metrics thead th >> visible=true").count() == 4
    assert tab.evaluate("document.getElementById('clip-rows').style.getPropertyValue('--columns')") == "3"
    tab.keyboard.press("0")
    assert len(clips(tab)) == COLUMNS
    tab.keyboard.press("?")
    assert tab.locator("#help").is_visible()
    tab.keyboard.press("1")
    tab.keyboard.press("Escape")
    assert len(clips(tab)) == COLUMNS and not tab.locator("#help").is_visible()
    tab.keyboard.press("ArrowDown")
    tab.wait_for_function("scrollY > 0")


def test_a_choice_of_metric_and_cost_chooses_the_plots(browse, address):
    tab = browse(address)
    shown = tab.locator(".trade figure >> visible=true >> figcaption")
    assert shown.all_inner_texts() == [
        "rmse against network evaluations per clip",
        "rmse against device-minutes of training",
    ]
    tab.locator("#metric").select_option("motion")
    tab.locator("#price").select_option("seconds")
    assert shown.all_inner_texts() == ["motion against seconds per clip", "motion against device-minutes of training"]


def test_rows_far_from_the_screen_hold_no_clip(browse, tmp_path):
    folder = comparisons.write(tmp_path, comparisons.counting(3), rows=5)
    tab = browse(page.write(folder).as_uri(), viewport={"width": 1440, "height": 500})
    settled(tab)
    loaded = "[...document.querySelectorAll('.row')].map((row) => row.querySelectorAll('video[src]').length > 0)"
    assert not tab.evaluate(loaded)[-1]
    tab.locator(".row").last.scroll_into_view_if_needed()
    tab.wait_for_function(f"{loaded}.at(-1) && !{loaded}[0]")


def test_a_phone_needs_no_scrolling_sideways(browse, folder, address):
    for where in (address, page.write(folder, blind=True).as_uri()):
        tab = browse(where, viewport=PHONE)
        assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        beside = "[...document.querySelectorAll('table')].filter((table) => !table.closest('.scroll')).length"
        assert tab.evaluate(beside) == 0  # what is too wide scrolls in a box of its own


def test_those_who_want_no_motion_are_shown_stills(browse, address):
    tab = browse(address, reduced_motion="reduce")
    settled(tab)
    assert not tab.evaluate("player.playing") and tab.evaluate("player.index") == 0


def test_print_and_pages_without_scripts_show_first_frames(browse, address):
    tab = browse(address)
    settled(tab)
    tab.emulate_media(media="print")
    assert tab.locator(".row video >> visible=true").count() == 0
    assert tab.locator(".row img >> visible=true").count() == 3 * COLUMNS
    for scripted in ("#controls", "nav", ".trade .pick, #trade ~ .pick", "#wipe"):
        assert tab.locator(scripted).count() == 1 and not tab.locator(scripted).is_visible(), scripted
    cut = "[...document.querySelectorAll('.scroll')].filter((box) => getComputedStyle(box).overflowX !== 'visible')"
    assert tab.locator(".scroll").count() > 5 and tab.evaluate(f"{cut}.length") == 0
    plain = browse(address, java_script_enabled=False)
    assert plain.locator(".row img >> visible=true").count() == 3 * COLUMNS
    for scripted in ("#controls", "#metric", "#wipe"):
        assert not plain.locator(scripted).is_visible()
    assert plain.get_by_text("One over the other").count() == 2 and not plain.locator("a[href='#over']").is_visible()


def test_a_server_without_ranges_serves_too(browse, film):
    address, _ = film
    handler = functools.partial(Quiet, directory=address.removeprefix("file://").rpartition("/")[0])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        tab = browse(f"http://127.0.0.1:{server.server_port}/index.html")
        settled(tab)
        tab.evaluate("player.play(false)")
        tab.evaluate("player.go(7)")
        assert numbers(tab) == [7] * COLUMNS * ROWS
    finally:
        server.shutdown()
        server.server_close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *line):
        pass


SHADES = {"teacher": (160, 120, 120), "gpd": (40, 60, 200), "avd": (150, 116, 120), "dmd2": (90, 90, 90)}
WIPE = "#wipe-stage .frame"


def shaded(column: str, steps: int, row: int) -> np.ndarray:
    """A clip of one colour: the column's, brighter with the row and with the steps that are not 4."""
    colour = np.array(SHADES[column]) + 20 * row + 10 * (steps == 6)
    return np.broadcast_to(colour.astype(np.uint8), (4, comparisons.SIZE, comparisons.SIZE, 3))


@pytest.fixture(scope="module")
def shades(tmp_path_factory):
    folder = comparisons.write(tmp_path_factory.mktemp("shades"), shaded, rows=2)
    (folder / "clips/dmd2_2_00.mp4").unlink()
    return page.write(folder).as_uri()


def over(tab) -> list[str]:
    """The names under the two clips; they are loaded and show the player's frame then."""
    tab.locator(WIPE).scroll_into_view_if_needed()
    tab.wait_for_function("['one', 'other'].every((side) => byId(`clip-${side}`).readyState > 1)")
    tab.evaluate("player.play(false)")
    tab.evaluate("player.go(player.index)")
    return [tab.locator(f"#name-{side}").inner_text() for side in ("one", "other")]


def colours(tab, *places: float) -> list[tuple[int, ...]]:
    """Of the two clips' stage, at these shares of its width."""
    pixels = picture(tab, WIPE)
    middle = pixels[len(pixels) // 2]
    return [tuple(map(int, middle[int(place * len(middle))])) for place in places]


def like(colour: tuple, other: tuple, off: int = 8) -> bool:
    """Videos are coded in another colour space, with loss, and browsers differ in the way back."""
    return max(abs(a - b) for a, b in zip(colour, other, strict=True)) <= off


def test_a_wipe_shows_one_clip_left_of_the_line_and_the_other_right_of_it(browse, shades):
    tab = browse(shades, reduced_motion="reduce")  # the page jumps to the clips instead of gliding
    assert over(tab) == ["teacher 48 steps", "GPD 4 steps"]
    left, right = SHADES["teacher"], SHADES["gpd"]
    found = colours(tab, 0.25, 0.45, 0.55, 0.75)
    assert all(map(like, found, (left, left, right, right))), found
    tab.keyboard.press("w")
    for _ in range(15):
        tab.keyboard.press("ArrowRight")  # of the line, not of the frames
    assert tab.locator("#wipe-at").input_value() == "65" and tab.evaluate("player.index") == 0
    found = colours(tab, 0.55, 0.75)
    assert all(map(like, found, (left, right))), found
    box = tab.locator(WIPE).bounding_box()
    tab.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 20)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 20)
    tab.mouse.up()
    tab.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 20)  # no button: nothing moves
    found = colours(tab, 0.05, 0.2)
    assert all(map(like, found, (left, right))), found


def test_a_difference_is_absolute_and_times_the_gain(browse, shades):
    tab = browse(shades)
    tab.locator("#wipe-other").select_option(label="AVD")
    tab.locator("#wipe-view").select_option("difference")
    assert over(tab) == ["teacher 48 steps", "AVD 4 steps"]
    for gain in (1, 4, 8):
        tab.locator("#wipe-gain").fill(str(gain))
        (found,) = colours(tab, 0.3)
        assert like(found, (10 * gain, 4 * gain, 0), off=3 * gain), (gain, found)
    tab.locator("#wipe-one").select_option(label="AVD")  # of a clip and itself
    over(tab)
    assert colours(tab, 0.3, 0.7) == [(0, 0, 0)] * 2
    assert (
        not tab.locator("#wipe-at").is_visible()
        and tab.locator("#wipe-gain-shown").inner_text() == "\N{MULTIPLICATION SIGN}8"
    )


def test_the_two_clips_follow_the_choices_of_prompt_and_steps(browse, shades):
    tab = browse(shades)
    tab.locator("#wipe-row").select_option("1")
    over(tab)
    assert like(*colours(tab, 0.75), tuple(c + 20 for c in SHADES["gpd"]))
    tab.locator("#wipe-row").blur()
    for _ in range(4):  # of 1, 2, 4, 6, 8
        tab.keyboard.press("]")
    assert over(tab) == ["teacher 48 steps", "GPD 6 steps"]
    assert like(*colours(tab, 0.75), tuple(c + 30 for c in SHADES["gpd"]))
    label = tab.locator("#clip-other").get_attribute("aria-label")
    assert label.startswith("GPD 6 steps: ") and len(label) > 20


def test_a_missing_clip_is_said_where_it_would_lie(browse, shades):
    tab = browse(shades)
    over(tab)
    tab.locator("#wipe-other").select_option(label="DMD2")
    assert tab.locator("#wipe-gap").inner_text() == "DMD2 2 steps: dmd2_2_00.mp4: no such clip"
    assert tab.locator("#wipe-gap").is_visible() and not tab.locator("#wipe-stage").is_visible()
    tab.locator("#wipe-other").select_option(label="GPD")
    over(tab)
    assert tab.locator("#wipe-stage").is_visible() and not tab.locator("#wipe-gap").is_visible()
    assert like(*colours(tab, 0.75), SHADES["gpd"])


def test_two_clips_over_each_other_play_in_step(browse, film):
    """The bits of a frame's number lie left and right of the line: of two frames they would spell a third."""
    address, frames = film
    tab = browse(address)
    over(tab)
    for wanted in (frames - 1, 0, 5):
        tab.evaluate(f"player.go({wanted})")
        box = tab.locator(WIPE).bounding_box()
        assert number(picture(tab).mean(2), box) == wanted
    tab.evaluate("player.play(true)")
    tab.wait_for_timeout(600)
    times = tab.evaluate("['one', 'other'].map((side) => byId(`clip-${side}`).currentTime * player.fps)")
    assert tab.evaluate("player.playing") and abs(times[0] - times[1]) <= 1


def test_on_a_phone_a_finger_moves_the_line(browse, shades):
    tab = browse(shades, viewport=PHONE, has_touch=True, is_mobile=True)
    over(tab)
    box = tab.locator(WIPE).bounding_box()
    assert box["width"] <= PHONE["width"] and box["x"] >= 0
    tab.touchscreen.tap(box["x"] + 0.8 * box["width"], box["y"] + 0.5 * box["height"])
    assert 77 <= int(tab.locator("#wipe-at").input_value()) <= 83
    assert like(*colours(tab, 0.7), SHADES["teacher"])


def answer(tab, *keys: str) -> None:
    for key in keys:
        tab.keyboard.press(key)


def test_a_blind_test_shows_no_names_and_its_votes_count(browse, folder, tmp_path):
    where = page.write(folder, blind=True, seed=3)
    tab = browse(where.as_uri())
    tab.wait_for_function("sides.every((clip) => clip.readyState > 1)")
    key = json.loads((folder / "blind_key.json").read_text())["pairs"]
    order = [pair["id"] for pair in tab.evaluate("pairs")]
    assert sorted(order) == sorted(key) and len(order) == 6 * 3  # every two of four, for three prompts
    answer(tab, "1", "2", "0")
    seen = tab.content().lower()
    assert not [name for name in ("gpd", "avd", "dmd2", "teacher") if name in seen]
    tab.reload()
    assert tab.locator("#done").inner_text() == "3 of 18"
    assert tab.locator("#prompt").inner_text() == comparisons.read(folder)["shown"]["prompts"][key[order[3]]["row"]]
    for key_pressed, done in (("1", "4 of 18"), ("Backspace", "3 of 18")):
        answer(tab, key_pressed)
        assert tab.locator("#done").inner_text() == done
    tab.reload()
    assert tab.locator("#done").inner_text() == "3 of 18"  # taken back for good
    answer(tab, *"2" * 15)
    assert tab.locator("#finished").is_visible()
    tab.locator("#voter").fill("a voter")
    with tab.expect_download() as download:
        tab.locator("#save").click()
    download.value.save_as(tmp_path / "votes.json")
    found = votes.read(folder, [tmp_path / "votes.json"])
    assert found["votes"] == 18 and found["voters"] == 1 and found["failures"] == []
    winners = [key[order[0]]["left"], key[order[1]]["right"]] + [key[pair]["right"] for pair in order[3:]]
    counted = dict.fromkeys(("gpd", "avd", "dmd2", "teacher"), 0)
    for pair in found["pairs"]:
        counted[pair["a"]] += pair["wins_a"]
        counted[pair["b"]] += pair["wins_b"]
    assert counted == {name: winners.count(name) for name in counted}
    assert sum(pair["ties"] for pair in found["pairs"]) == 1
