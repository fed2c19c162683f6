"""The page in a real Chromium: nothing is asked of the network, nothing sticks out, printed it is all there."""

import json
import shutil
import struct

import pytest

from lit_prune.report.page import report_page
from tests.report.pages import make_runs

pytestmark = pytest.mark.slow
WIDTHS = (390, 500, 1400)
# What sticks out of its page or of its place, tables that scroll apart.
OVERFLOWING = """
() => [...document.querySelectorAll("main *, header *")]
  .filter(each => !each.closest(".scroll, pre, svg"))
  .filter(each => each.getBoundingClientRect().right > innerWidth + 1)
  .map(each => each.tagName + " " + each.textContent.slice(0, 40))
"""
# Texts of a picture that lie on one another.
OVERLAPPING = """
() => [...document.querySelectorAll("svg")].flatMap(drawing => {
  const texts = [...drawing.querySelectorAll("text")].filter(each => each.textContent.trim());
  const boxes = texts.map(each => each.getBoundingClientRect());
  const apart = (one, other) => one.right <= other.left + 1 || other.right <= one.left + 1
    || one.bottom <= other.top + 2 || other.bottom <= one.top + 2;
  return texts.flatMap((one, index) => texts.slice(index + 1)
    .filter((other, more) => !apart(boxes[index], boxes[index + 1 + more]))
    .map(other => one.textContent + " on " + other.textContent));
})
"""
# What scrolls in its place, against what says so: shades at its edge, and of pictures, which may hide them, words too.
UNSAID = """
() => [...document.querySelectorAll(".scroll")].filter(each => each.checkVisibility()).filter(each => {
  const hint = each.parentElement.querySelector(":scope > .hint");
  const wide = each.scrollWidth > each.clientWidth + 1;
  const shaded = getComputedStyle(each).backgroundAttachment === "local, local, scroll, scroll";
  return !shaded || each.tabIndex !== 0 || !each.ariaLabel || (hint && (hint.clientHeight > 8) !== wide);
}).map(each => each.textContent.slice(0, 40))
"""
SMALL = """
() => [...document.querySelectorAll("summary, nav a")].filter(each => each.getBoundingClientRect().height < 24)
  .map(each => each.textContent)
"""
# Text on its background, by the contrast that WCAG asks of small text.
FAINT = """
() => {
  const channel = value => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const behind = each => {
    for (; each; each = each.parentElement) {
      const colour = numbers(getComputedStyle(each).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
  };
  return [...document.querySelectorAll("main *, header *")]
    .filter(each => [...each.childNodes].some(node => node.nodeType === 3 && node.textContent.trim()))
    .filter(each => !each.closest("svg") && !each.matches(".gone"))
    .map(each => [light(numbers(getComputedStyle(each).color)), light(behind(each)), each.textContent.slice(0, 40)])
    .filter(([ink, paper]) => (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05) < 4.5)
    .map(([, , text]) => text);
}
"""


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as engines:
        own = engines.chromium.executable_path
        found = own if shutil.which(own) else next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
        if found is None:
            pytest.skip("no Chromium: playwright install chromium, or apt-get install chromium")
        # A container's root has no other sandbox than the container.
        started = engines.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    runs = make_runs(tmp_path_factory.mktemp("runs"))
    path = runs / "report.html"
    folders = [runs / name for name in ("pruned", "healed", "fit", "stock", "evaluation", "comparison", "analysis")]
    path.write_text(report_page(folders), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser, file):
    """The page at a width, with all that it asked for and complained of."""
    made = []

    def open_page(width, scheme="light", page=file):
        address, page = page.as_uri(), browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        made.append(page)
        page.asked, page.said = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda message: page.said.append(message.text))
        page.goto(address)
        return page

    yield open_page
    for each in made:
        each.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_any_width_in_light_and_dark(opened, file, width, scheme):
    page = opened(width, scheme)
    assert [each for each in page.asked if not each.startswith("data:")] == [file.as_uri()]
    assert not page.said, "the policy forbids nothing that the page needs"
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(OVERFLOWING) == []
    assert page.evaluate(FAINT) == []
    assert page.evaluate(OVERLAPPING) == []
    assert page.evaluate(UNSAID) == []
    assert page.evaluate(SMALL) == []
    image = page.screenshot(full_page=True)
    assert struct.unpack(">II", image[16:24])[0] == width
    assert len(image) > 50_000, "there is something to see"


def test_figures_take_the_colour_of_the_text(opened):
    for scheme in ("light", "dark"):
        page = opened(1400, scheme)
        ink = page.evaluate("getComputedStyle(document.body).color")
        assert page.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill") == ink


def test_all_that_a_pointer_would_show_is_there_without_one(opened):
    page = opened(390)
    assert page.locator("[title]").count() == 0
    pictures = page.locator("svg")
    assert all(pictures.evaluate_all("all => all.map(each => each.role === 'img' && each.ariaLabel)"))
    words = page.locator("details:has(table):not(.run)").first
    assert not words.locator("table").is_visible()
    words.locator("summary").press("Enter")
    assert "removed in round 1, score" in words.locator("table").inner_text()


@pytest.mark.parametrize("blocks", [30, 80])
def test_blocks_stand_in_even_rows(opened, file, tmp_path, blocks):
    plan = json.loads((file.parent / "pruned/prune_plan.json").read_text())
    plan["model"]["num_blocks"] = blocks
    del plan["sha256"]  # changed on purpose
    (tmp_path / "prune_plan.json").write_text(json.dumps(plan))
    large = tmp_path / "report.html"
    large.write_text(report_page([tmp_path]), encoding="utf-8")
    for width, across in zip((390, 700, 1000, 1400), (10, 16, 24, 32), strict=True):
        page = opened(width, page=large)
        tops = page.locator(".network li").evaluate_all("all => all.map(each => each.offsetTop)")
        rows = sorted(map(tops.count, set(tops)))
        assert len(rows) == -(-blocks // across)
        assert rows[-1] - rows[0] < len(rows)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(OVERLAPPING) == []
        assert page.evaluate(UNSAID) == []


def test_a_run_folds_without_a_script(opened):
    page = opened(1400)
    cards = page.locator("details.run").first.locator(".cards")
    assert cards.is_visible()
    page.locator("details.run > summary").first.click()
    assert not cards.is_visible()


def test_it_prints_light_and_whole(opened):
    page = opened(1400, "dark")
    page.locator("details.run > summary").first.click()
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert page.locator("details.run").first.locator("table").first.is_visible(), "folded runs are printed too"
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") + pdf.count(b"/Type /Page/") > 3
