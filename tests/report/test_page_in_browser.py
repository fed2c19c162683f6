"""The page in a real Chromium: nothing is asked of the network, nothing sticks out, printed it is all there."""

import shutil
import struct

import pytest

from lit_prune.report.page import report_page
from tests.report.pages import make_runs

pytestmark = pytest.mark.slow
WIDTHS = (400, 1400)
# What sticks out of its page or of its place, tables that scroll apart.
OVERFLOWING = """
() => [...document.querySelectorAll("main *, header *")]
  .filter(each => !each.closest(".scroll, pre, svg"))
  .filter(each => each.getBoundingClientRect().right > innerWidth + 1)
  .map(each => each.tagName + " " + each.textContent.slice(0, 40))
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

    def open_page(width, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        made.append(page)
        page.asked, page.said = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda message: page.said.append(message.text))
        page.goto(file.as_uri())
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
    image = page.screenshot(full_page=True)
    assert struct.unpack(">II", image[16:24])[0] == width
    assert len(image) > 50_000, "there is something to see"


def test_figures_take_the_colour_of_the_text(opened):
    for scheme in ("light", "dark"):
        page = opened(1400, scheme)
        ink = page.evaluate("getComputedStyle(document.body).color")
        assert page.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill") == ink


def test_a_run_folds_without_a_script(opened):
    page = opened(1400)
    tables = page.locator("details.run").first.locator("table").first
    assert tables.is_visible()
    page.locator("details.run > summary").first.click()
    assert not tables.is_visible()


def test_it_prints_light_and_whole(opened):
    page = opened(1400, "dark")
    page.locator("details.run > summary").first.click()
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert page.locator("details.run").first.locator("table").first.is_visible(), "folded runs are printed too"
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") + pdf.count(b"/Type /Page/") > 3
