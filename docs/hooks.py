"""Gives the site what its pages link to outside of docs/, such as `../reports/field.md`, under the same path.

So one text serves GitHub and the site: links there are relative to the file, and the site repeats the repository's
folders beside the pages of docs/. What such a page links to comes along in turn. `mkdocs build --strict` then fails
where a file or a heading does not exist.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from posixpath import relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")
START = "index.md"
"""The page that the site has in place of README.md, whose first screen it shows."""


def target(page: Path, link: str) -> Path:
    """The file that a link on a page means; of a folder its README."""
    path = (page.parent / link).resolve()
    return path / "README.md" if path.is_dir() else path


def place(path: Path) -> str:
    """Where a file of the repository is in the site."""
    parts = path.relative_to(ROOT)
    if parts == Path("README.md"):
        return START
    return (parts.relative_to("docs") if parts.parts[0] == "docs" else parts).as_posix()


def linked(page: Path) -> Iterable[Path]:
    """The files of the repository that a page links to."""
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        path = target(page, link)
        if path.is_file() and path.is_relative_to(ROOT):
            yield path


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what is linked from the pages, and from those that this adds."""
    pages = [ROOT / "docs" / file.src_uri for file in files.documentation_pages()]
    there = {place(path) for path in pages}
    ahead = [*pages, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    while ahead:
        path = ahead.pop()
        if place(path) not in there:
            there.add(place(path))
            files.append(File(place(path), str(ROOT), config.site_dir, config.use_directory_urls))
        if path.suffix == ".md":
            ahead += [each for each in linked(path) if place(each) not in there]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lets links lead to where the files are in the site; the first page begins with the first screen of README."""
    here = page.file.src_uri
    text = with_links(markdown, Path(page.file.src_dir or ROOT) / here, here)
    if here != START:
        return text
    readme = ROOT / "README.md"
    screen = readme.read_text(encoding="utf-8").partition("\n## ")[0]
    return f"{with_links(screen, readme, here)}\n#{text}"


def with_links(markdown: str, path: Path, here: str) -> str:
    """The text of a file with the links of the page `here` of the site."""

    def rewritten(match: re.Match[str]) -> str:
        found = target(path, match[1])
        return relpath(place(found), str(Path(here).parent)) if found.is_relative_to(ROOT) else match[0]

    return LINK.sub(rewritten, markdown)
