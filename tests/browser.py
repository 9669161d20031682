"""A page as a browser lays it out: does anything overflow, does the console say anything?"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--enable-logging=stderr", "--virtual-time-budget=5000", "--window-size=1400,1000",
]  # fmt: skip

# A window can't be made as narrow as a phone, so the page lies in a frame of the width asked for. Whatever scrolls in
# a box of its own (a wide table) doesn't count; all else has to end where the page ends.
_MEASURE = """
<body style="margin:0"><iframe id="page" style="border:0;width:%(width)dpx;height:900px" srcdoc="%(page)s"></iframe>
<pre id="result"></pre><script>
addEventListener("load", () => {
  const page = document.getElementById("page").contentDocument, found = {overflowing: [], heights: {}, figures: 0};
  for (const language of ["in-en", "in-zh"]) {
    page.getElementById(language).click();
    found.heights[language] = page.documentElement.scrollHeight;
    const edge = page.documentElement.clientWidth;
    if (page.documentElement.scrollWidth > edge) found.overflowing.push(language + " page");
    for (const element of page.querySelectorAll("body *")) {
      const box = element.getBoundingClientRect();
      if (!box.width || element.closest("svg") !== null && element.tagName !== "svg") continue;
      const scrolls = element.closest(".table");
      if (!(scrolls && scrolls !== element) && (box.right > edge + 1 || box.left < -1))
        found.overflowing.push(language + " " + element.tagName + " " + element.className);
    }
    for (const text of page.querySelectorAll("svg text")) {
      const box = text.getBoundingClientRect(), frame = text.closest("figure").getBoundingClientRect();
      if (box.width && (box.right > frame.right + 1 || box.left < frame.left - 1))
        found.overflowing.push(language + " text " + text.textContent);
    }
  }
  found.figures = page.querySelectorAll("figure svg").length;
  document.getElementById("result").textContent = JSON.stringify(found);
});
</script></body>
"""


@dataclass(frozen=True)
class Layout:
    """What the browser found.

    Attributes:
        overflowing: elements that end beyond the page's edge, in English or Chinese.
        console: what was written to the console.
        heights: the page's height in pixels by language switch.
        figures: drawings on the page.
    """

    overflowing: list[str]
    console: list[str]
    heights: dict[str, int]
    figures: int


def find_browser() -> str:
    """The browser's path; without one the test is skipped and says so."""
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if path := shutil.which(name):
            return path
    pytest.skip("no browser: install chromium to see the report laid out")


def lay_out(page: str, *, width: int, scratch: Path) -> Layout:
    """Lay `page` out at `width` pixels, in both languages."""
    browser = find_browser()
    wrapper = scratch / f"layout-{width}.html"
    wrapper.write_text(_MEASURE % {"width": width, "page": html.escape(page)}, encoding="utf-8")
    profile = f"--user-data-dir={scratch / 'profile'}"
    done = subprocess.run(
        [browser, *_FLAGS, profile, "--dump-dom", wrapper.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    result = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert result is not None
    assert result[1], done.stderr
    return Layout(
        **json.loads(html.unescape(result[1])),
        console=[line for line in done.stderr.splitlines() if "CONSOLE" in line],
    )
