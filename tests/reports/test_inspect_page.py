"""The batch inspector's page in a real headless Chromium: read, searched, opened, and fed with hostile texts."""

from __future__ import annotations

import os
import re
import shutil

import numpy as np
import pytest

from gcbs_st.reports.html import batches_page
from gcbs_st.reports.inspection.inspector import Subject, inspect_plan

ATTACK = "</script><script>window.pwned=1</script><img src=x onerror=window.pwned=1><b>bold</b> &lt;"
RIGHT_TO_LEFT = "\u202egnp.exe\u202e שלום"
ROWS, SIZE = 96, 16


def texts():
    """Texts of the rows; two of them are hostile."""
    pairs = [(f"the anchor of row {i}", f"the positive of row {i}") for i in range(ROWS)]
    pairs[3] = (ATTACK, "attacked positive")
    pairs[5] = ("attacked anchor", RIGHT_TO_LEFT)
    return pairs


def make_page():
    """A page of 96 rows with false negatives, pictures, plans and a chart; its batches."""
    rng = np.random.default_rng(0)
    anchors, positives = rng.normal(size=(2, ROWS, 8))
    anchors, positives = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (anchors, positives))
    positives[:70] = anchors[:70]  # the others have nearer positives than their own
    batches = np.arange(ROWS).reshape(-1, SIZE)
    pairs = texts()
    subject = Subject(
        title=f"Batches of {ATTACK}",
        anchors=anchors,
        positives=positives,
        batches=batches,
        rows=np.arange(ROWS),
        read_texts=lambda ids: [pairs[i] for i in ids.tolist()],
        model="a model",
        facts={"Planner": "gcbs", "Options": ATTACK},
        notes=[ATTACK],
    )
    content = inspect_plan(subject)
    content["plans"] = {
        "columns": [{"title": "step", "by": ""}, {"title": "closed", "by": "as logged"}],
        "rows": [[0, 0.25], [1200, None]],
    }
    content["step"] = 1200
    content["origin"] = {"run": ATTACK, "configuration": f"a: b\n{ATTACK}"}
    return batches_page(content, {ATTACK: one_pixel()})


def one_pixel():
    """A PNG of one black pixel."""
    import struct
    import zlib

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; skips where there is none, but fails where `GCBS_ST_BROWSER` is `required`."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        webdriver = None
    if chromium is None or driver is None or webdriver is None:
        reason = f"the pages' tests need chromium ({chromium}), chromedriver ({driver}) and selenium ({webdriver})"
        if os.environ.get("GCBS_ST_BROWSER") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    # No sandbox: it does not work for root, and the page is our own.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    yield started
    started.quit()


@pytest.fixture
def page(browser, tmp_path):
    """The page, opened from a file at 1280 px in light colours."""
    (tmp_path / "page.html").write_text(make_page(), encoding="utf-8")
    prefer(browser, "light")
    browser.get((tmp_path / "page.html").as_uri())
    return browser


def prefer(browser, scheme):
    """What the system prefers: "light" or "dark"."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def find(page, selector):
    """The elements of a selector."""
    return page.find_elements("css selector", selector)


def wait_for(page, condition):
    """Waits until a condition holds; its value."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(page, 10).until(lambda _: condition())


def test_it_opens_without_errors_and_without_a_network(page):
    """No message on the console, no request but the file itself, no sideways scrolling at 1280 px."""
    assert [] == page.get_log("browser")
    assert 0 == page.execute_script(
        "return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length"
    )
    assert page.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert 6 == len(find(page, "#groups details"))
    assert ["Planner", "Options"] == [term.text for term in find(page, "#facts dt")][:2]
    assert ["1,200", "–"] == [cell.text for cell in find(page, "#plan-table tr.current > *")]
    assert 1 == page.execute_script("return document.querySelector('#pictures img').naturalWidth")


def test_a_batch_opens_and_shows_its_rows(page):
    """Rows are made when their batch is opened; their texts, scores and marks are those of the content."""
    assert [] == find(page, "details table")
    summary = find(page, "#groups summary")[0]
    summary.click()
    wait_for(page, lambda: find(page, "details table"))
    rows = find(page, "details[open] tbody tr")
    assert SIZE == len(rows)
    number = int(rows[0].find_element("tag name", "th").text.split()[0])
    assert number >= 64  # the hardest batches are those whose rows are nearer to others
    assert f"anchor the anchor of row {number}" in rows[0].text
    tainted = find(page, "details[open] tbody tr.tainted")
    count, within = re.search(r"▲ (\d+) probable false negatives? in (\d+) row", summary.text).groups()
    assert int(within) == len(tainted)
    assert sum(int(cell.text.split()[1]) for cell in find(page, "tr.tainted th")) == int(count)
    marked = set()
    for row in rows:
        own, scores = float(row.find_elements("tag name", "td")[1].text), []
        for item in row.find_elements("css selector", "li"):
            scores.append(float(item.text.split()[0]))
            assert ("▲ above own" in item.text) == (scores[-1] > own)
        assert sorted(scores, reverse=True) == scores
        marked.add(sum(score > own for score in scores))
    assert {1, 3} <= marked


def test_rows_without_false_negatives_can_be_hidden(page):
    """The check box leaves the rows that are marked."""
    find(page, "#groups summary")[0].click()
    wait_for(page, lambda: find(page, "details table"))
    find(page, "#only")[0].click()
    seen = [row for row in find(page, "details[open] tbody tr") if row.is_displayed()]
    assert find(page, "details[open] tbody tr.tainted") == seen


def test_texts_are_searched_and_found_rows_opened(page):
    """Any case; the number is said, and a hit opens its batch and takes the focus there."""
    query = find(page, "#query")[0]
    query.send_keys("ANCHOR OF ROW 42")
    wait_for(page, lambda: "1 row of this page found." == find(page, "#found")[0].text)
    (hit,) = find(page, "#hits button")
    hit.click()
    row = page.switch_to.active_element
    assert row.text.startswith("42")
    assert row.is_displayed()
    query.clear()
    query.send_keys("nothing like that\n")
    wait_for(page, lambda: find(page, "#found")[0].text.startswith("No row of this page"))
    assert [] == find(page, "#hits button")
    query.clear()
    query.send_keys(" \n")
    wait_for(page, lambda: "" == find(page, "#found")[0].text)


def test_a_hostile_text_is_shown_and_does_nothing(page):
    """Markup and script show as text in title, summary, search and rows, and nothing of it came to be."""
    query = find(page, "#query")[0]
    query.send_keys("onerror=window.pwned")
    (hit,) = wait_for(page, lambda: find(page, "#hits button"))
    assert ATTACK in hit.text
    hit.click()
    assert ATTACK in page.switch_to.active_element.text
    assert f"Batches of {ATTACK}" == find(page, "h1")[0].text == page.title
    assert ATTACK in find(page, "#notes")[0].text
    assert ATTACK in find(page, "#sources pre")[0].text
    assert page.execute_script("return window.pwned") is None
    assert (2, 1, 0) == tuple(len(find(page, name)) for name in ("script", "img", "b"))
    assert [] == page.get_log("browser")


def test_the_policy_stops_scripts_and_requests(page):
    """Were a script to get into the page all the same, it would not run, nor reach anything."""
    page.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.pwned = 2'; document.body.append(s);"
    )
    assert page.execute_script("return window.pwned") is None
    page.execute_script("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.pwned=3\">')")
    refused = page.execute_async_script(
        "const done = arguments[0]; fetch('http://127.0.0.1:9/').then(() => done('reached'), (e) => done(String(e)));"
    )
    assert "TypeError" in refused
    assert page.execute_script("return window.pwned") is None
    log = " ".join(entry["message"] for entry in page.get_log("browser"))
    assert "script-src" in log
    assert "connect-src" in log or "default-src" in log


def test_texts_of_other_directions_stay_in_their_place(page):
    """A text that turns the direction of writing does not turn what follows it."""
    find(page, "#query")[0].send_keys("gnp.exe\n")
    (hit,) = wait_for(page, lambda: find(page, "#hits button"))
    hit.click()
    assert RIGHT_TO_LEFT in page.switch_to.active_element.text
    styles = page.execute_script(
        "return [...document.querySelectorAll('.text')].map((e) => getComputedStyle(e).unicodeBidi)"
    )
    assert {"isolate"} == set(styles)


def luminance(colour):
    """Relative luminance by WCAG 2 of `rgb(r, g, b)`."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrasts(page):
    """The contrast of each shown text with the ground behind it, by its first words."""
    pairs = page.execute_script("""
        const found = [];
        for (const element of document.querySelectorAll("body *")) {
          const text = [...element.childNodes].filter((n) => n.nodeType === 3).map((n) => n.textContent.trim()).join(" ");
          if (!text || !element.checkVisibility() || element.closest("script, style, noscript, .skip")) continue;
          let ground = element;
          while (ground && getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
          found.push([text.slice(0, 40), getComputedStyle(element).color, getComputedStyle(ground).backgroundColor]);
        }
        return found;""")
    assert len(pairs) > 100
    levels = {}
    for text, front, back in pairs:
        light, dark = sorted((luminance(front), luminance(back)), reverse=True)
        levels[text] = min(levels.get(text, 99.0), (light + 0.05) / (dark + 0.05))
    return levels


def test_both_colour_schemes_are_readable(page):
    """Light and dark follow the system until the button is used, and every text has a contrast of 4.5 in both."""
    find(page, "#groups summary")[0].click()
    find(page, "#query")[0].send_keys("row 42\n")
    wait_for(page, lambda: find(page, "#hits button"))[0].click()
    ground = "return getComputedStyle(document.body).backgroundColor"
    light = page.execute_script(ground)
    assert {} == {text: level for text, level in contrasts(page).items() if level < 4.5}
    prefer(page, "dark")
    dark = page.execute_script(ground)
    assert luminance(dark) < 0.05 < 0.9 < luminance(light)
    assert {} == {text: level for text, level in contrasts(page).items() if level < 4.5}
    button = find(page, "#theme")[0]
    assert "Light colours" == button.text
    button.click()
    assert (light, "Dark colours") == (page.execute_script(ground), button.text)
    prefer(page, "light")
    button.click()
    assert dark == page.execute_script(ground)


def test_the_keyboard_reaches_everything(page):
    """Tab comes by the skip link, the button, the links, the search and the batches; Enter opens one; focus is seen."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    passed = []
    for _ in range(40):
        ActionChains(page).send_keys(Keys.TAB).perform()
        active = page.switch_to.active_element
        passed.append(active.get_attribute("id") or active.get_attribute("class") or active.tag_name)
        outline = page.execute_script("return getComputedStyle(arguments[0]).outlineWidth", active)
        assert outline != "0px", passed
        if active.tag_name == "summary":
            break
    assert ["skip", "theme"] == passed[:2]
    assert "query" in passed and "only" in passed
    ActionChains(page).send_keys(Keys.ENTER).perform()
    assert SIZE == len(wait_for(page, lambda: find(page, "details[open] tbody tr")))


def test_screen_readers_have_names_for_everything(page):
    """Each control, picture and region has a name, tables have captions and header cells, headings go down by one."""
    find(page, "#groups summary")[0].click()
    wait_for(page, lambda: find(page, "details table"))
    tree = page.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    named = {
        "button",
        "link",
        "searchbox",
        "checkbox",
        "img",
        "image",
        "canvas",
        "navigation",
        "region",
        "table",
        "DisclosureTriangle",
    }
    nameless = [
        node["role"]["value"]
        for node in tree
        if not node.get("ignored")
        and node.get("role", {}).get("value") in named
        and not node.get("name", {}).get("value")
    ]
    assert [] == nameless
    roles = {node.get("role", {}).get("value") for node in tree}
    assert {"banner", "navigation", "main", "search", "status", "columnheader", "rowheader"} <= roles
    levels = [int(heading.tag_name[1]) for heading in find(page, "h1, h2, h3, h4")]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert "en" == find(page, "html")[0].get_attribute("lang")
    labels = [canvas.get_attribute("aria-label") for canvas in find(page, "figure canvas")]
    assert 2 == len(labels)
    assert all("Mean cosine of negatives within a batch" in label for label in labels)


def test_the_pictures_show_the_matrices(page):
    """A pixel of the diagonal has the colour of the brightest end, as row 0's positive is its anchor."""
    pixel = page.execute_script("""
        const canvas = document.querySelectorAll("figure canvas")[1];
        const zoom = canvas.width / 96;
        return [...canvas.getContext("2d").getImageData(zoom / 2, zoom / 2, 1, 1).data];""")
    assert [253, 231, 37, 255] == pixel
