"""The pages of reports in a real browser: no errors, no network, pictures, sorting, pointing, no overflow."""

import contextlib
import os

import pytest
from report_runs import NAMES, Made, write_run

from scripts.tools import make_doc_figures
from scripts.tools.report import __main__ as report
from scripts.tools.report import browser as browser_module
from scripts.tools.report.browser import open_browser
from utils import UserError

VIEWS = [(scheme, width) for scheme in ("light", "dark") for width in (1400, 390)]


@pytest.fixture(scope="module")
def browser():
    """A Chromium that is installed; none is a skip, unless REQUIRE_CHROMIUM=1."""
    with contextlib.ExitStack() as stack:
        try:
            browser = stack.enter_context(open_browser())
        except UserError as error:
            (pytest.fail if os.environ.get("REQUIRE_CHROMIUM") == "1" else pytest.skip)(str(error))
        yield browser


@pytest.fixture(scope="module")
def pages(made_run, tmp_path_factory):
    """{kind: file}: a report, and a comparison of two runs with long names."""
    folder = tmp_path_factory.mktemp("pages")
    runs = [write_run(folder / f"run {'x' * 60} <b>{seed}", Made(seed=seed, ema=False)) for seed in (1, 2)]
    made = {"report": [made_run], "comparison": runs}
    for kind, given in made.items():
        assert report.main([*map(str, given), "--output", str(folder / f"{kind}.html")]) == 0
    return {kind: folder / f"{kind}.html" for kind in made}


@pytest.fixture
def opened(browser, pages):
    """Opens a page without a network; what goes wrong in it is an error at the end."""
    contexts, problems = [], []

    def call(kind, scheme="light", width=1400):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.on("request", lambda request: note(request.url))
        page.goto(pages[kind].as_uri())
        return page

    def note(url):
        if not url.startswith(("file:", "data:")):
            problems.append(url)

    call.problems = problems
    yield call
    for context in contexts:
        context.close()
    assert not problems


@pytest.mark.parametrize("kind", ["report", "comparison"])
@pytest.mark.parametrize(("scheme", "width"), VIEWS)
def test_page_is_whole_and_as_wide_as_its_window(opened, kind, scheme, width):
    page = opened(kind, scheme, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    images = page.locator("img")
    for i in range(images.count()):
        images.nth(i).scroll_into_view_if_needed()
    loaded = page.evaluate(
        "Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))"
    )
    assert all(loaded) and (len(loaded) > 3 or kind == "comparison")
    drawn = page.evaluate("[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().width)")
    assert len(drawn) >= 3 and min(drawn) > 250


def luminance(colour):
    """Relative luminance of an `rgb(r, g, b)` text, by WCAG 2."""
    values = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return sum(weight * v for weight, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_on_the_page_and_in_figures(opened, scheme):
    page = opened("report", scheme)
    paper = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (paper > 0.5) == (scheme == "light")
    ink = "[...document.querySelectorAll({!r})].map(e => getComputedStyle(e).{})"
    colours = page.evaluate(ink.format("p, td, th, figcaption, dt, dd, h2, nav a", "color"))
    colours += page.evaluate(ink.format("figure svg:not(.matrix) text", "fill"))
    for colour in set(colours):
        light, dark = sorted((luminance(colour), paper), reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 4.5, colour


def column(page, section, number):
    return page.locator(f"#{section} .tall tbody tr td:nth-child({number})").all_inner_texts()


def test_table_sorts_by_every_column_both_ways(opened):
    page = opened("report")
    heads = page.locator("#lh .tall th")
    assert column(page, "lh", 3) == sorted(column(page, "lh", 3), key=int, reverse=True)
    for number in range(1, heads.count() + 1):
        head = heads.nth(number - 1)
        orders = []
        for _ in range(2):
            head.locator("button").click()
            values = [v for v in column(page, "lh", number) if v != "–"]
            key = (lambda v: float(v)) if "n" in (head.get_attribute("class") or "") else str.lower
            descending = head.get_attribute("aria-sort") == "descending"
            assert [key(v) for v in values] == sorted(map(key, values), reverse=descending)
            orders.append(descending)
        assert sorted(orders) == [False, True]
        assert page.locator("#lh .tall th[aria-sort]").count() == 1


def test_pointing_at_a_cell_names_it(opened):
    page = opened("report")
    matrix, tip = page.locator("#lh svg.matrix"), page.locator("#tip")
    assert not tip.is_visible()
    box = matrix.locator(".back")
    box.scroll_into_view_if_needed()
    place, n = box.bounding_box(), 5
    data = page.evaluate("JSON.parse(document.getElementById('matrix-lh').textContent)")
    assert sorted(data["names"]) == sorted(NAMES)
    for row, col in ((0, 0), (1, 3), (4, 4)):
        x, y = ((i + 0.5) / n * place[side] for i, side in ((col, "width"), (row, "height")))
        page.mouse.move(place["x"] + x, place["y"] + y)
        true, predicted, count = tip.inner_text().splitlines()
        assert (true, predicted) == (f"true: {data['names'][row]}", f"predicted: {data['names'][col]}")
        assert count.startswith(f"{data['counts'][row][col]} of {data['support'][row]} clip")
    page.mouse.move(5, 5)
    assert not tip.is_visible()
    matrix.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert tip.is_visible() and f"true: {data['names'][4]}" in tip.inner_text()


def test_names_are_text_and_foreign_scripts_do_not_run(opened):
    page = opened("report")
    assert page.title() == "run <i>1" and page.locator("i i, h1 i").count() == 0
    assert "turn <script>alert(1)</script>" in page.locator("#lh").inner_text()
    # Even one that came into the page would not: its policy knows the page's own alone.
    page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "document.title = 'taken over'";
        document.addEventListener("securitypolicyviolation", () => document.body.dataset.refused = "yes");
        document.body.append(script);
    }""")
    assert page.title() == "run <i>1"
    page.wait_for_selector("body[data-refused]")
    (refusal,) = opened.problems
    assert "Content Security Policy" in refusal
    opened.problems.clear()


def test_without_a_chromium_its_picture_is_an_error(made_run, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(browser_module.shutil, "which", lambda name: None)
    flags = ["--only", "report", "--run", str(made_run), "--output", str(tmp_path)]
    assert make_doc_figures.main(flags) == 1
    error = capsys.readouterr().err
    assert "there is no chromium" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
