"""Pages of the site: links lead to pages, names to their lines, and neither can rot."""

import json

import pytest

from tests.conftest import load_script


@pytest.fixture(scope="session")
def stage_pages(repository):
    return load_script(repository / "scripts" / "site" / "stage_pages.py")


@pytest.fixture
def stage(stage_pages, tmp_path):
    """Write files of a small repository, stage it and return the folder of its pages."""

    def run(**files):
        repository = tmp_path / "repository"
        files = {"README.md": "# Home\n"} | files
        (repository / "docs").mkdir(parents=True)
        for name, text in files.items():
            path = repository / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        stage_pages.SiteStage(repository, tmp_path / "pages").write("contents\n")
        return tmp_path / "pages"

    return run


CODE = "import os\n\n\nclass Net:\n    size: int = 3\n\n    def forward(self):\n        return os\n"


def test_the_readme_becomes_the_home_page_and_its_links_lead_to_pages(stage):
    pages = stage(
        **{
            "README.md": "# Home\n[how](docs/how.md#part) ![p](docs/p.png) [more](MORE.md)\n",
            "docs/how.md": "# How\n[back](../README.md) [web](https://example.org/a.md)\n",
            "docs/p.png": "",
            "MORE.md": "---\ncard: 1\n---\n# More\n[how](docs/how.md)\n",
        }
    )
    home = "# Home\n[how](how.md#part) ![p](p.png) [more](repository/MORE.md)\ncontents\n"
    assert (pages / "index.md").read_text() == home
    assert (pages / "how.md").read_text() == (
        "# How\n[back](index.md) [web](https://example.org/a.md)\n"
    )
    assert (pages / "repository" / "MORE.md").read_text() == (
        "---\norphan: true\n---\n# More\n[how](../how.md)\n"
    )


def test_a_name_in_backticks_leads_to_the_line_of_its_definition(stage):
    pages = stage(
        **{"docs/a/how.md": "# How\nSee [`Net.forward`](../../lib/net.py).\n", "lib/net.py": CODE}
    )
    link = '<a href="../source/lib/net.py.html#L7"><code>Net.forward</code></a>'
    assert link in (pages / "a" / "how.md").read_text()
    source = (pages / "source" / "lib" / "net.py.md").read_text()
    assert '<span id="L7">' in source
    assert "forward" in source[source.index('id="L7"') : source.index('id="L8"')]


@pytest.mark.parametrize(
    ("link", "complaint"),
    [
        ("[`Net.backward`](../lib/net.py)", "docs/how.md: lib/net.py does not define Net.backward"),
        ("[x](../lib/other.py)", "docs/how.md: ../lib/other.py does not exist"),
        ("[x](gone.md)", "docs/how.md: gone.md does not exist"),
        ('<img src="gone.png">', "docs/how.md: gone.png does not exist"),
    ],
)
def test_what_does_not_exist_is_named(stage, stage_pages, link, complaint):
    with pytest.raises(stage_pages.BrokenLinksError, match=f"^{complaint}$"):
        stage(**{"docs/how.md": f"# How\n{link}\n", "lib/net.py": CODE})


def test_links_in_fenced_code_stay_as_they_are(stage):
    page = "# How\n```python\nx[0](gone.md)\n```\n"
    assert (stage(**{"docs/how.md": page}) / "how.md").read_text() == page


def test_a_notebook_becomes_a_page_with_its_stored_outputs(stage):
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {
            "cell_type": "code",
            "source": ["print(1)"],
            "outputs": [
                {"text": ["1\n"]},
                {"data": {"image/png": "aGk=\n", "text/plain": ["<Figure>"]}},
            ],
        },
    ]
    pages = stage(**{"docs/tutorial.ipynb": json.dumps({"cells": cells})})
    assert (pages / "tutorial.md").read_text() == (
        "# Title\ntext\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n"
        '<img alt="Output of the cell above" src="data:image/png;base64,aGk=">\n'
    )
