"""`make publish`: what of a finished study goes to reports/reference, and so into git."""

import os
import re
import shutil
import tempfile
from pathlib import Path

from bs4 import Tag

from sqlib.checked import SqlibError
from sqlib.files import wish_mode
from sqlib.report.html import as_html, parse
from sqlib.study import results
from sqlib.study.parameters import Study
from sqlib.study.sweeps import trials_of

LIMIT_BYTES = 15_000_000


def publish_study(study: Study, reports: Path, target: Path) -> tuple[int, list[str]]:
    """Replace `target` by what a reader needs of a finished study; `(bytes, pages left out for their size)`.

    Everything is collected beside the target and swapped in at the end. SqlibError when it is more than 15 MB.
    """
    fresh = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        left_out = copy_selection(study, reports, fresh)
        drop_dead_links(fresh)
        size = sum(path.stat().st_size for path in fresh.rglob("*") if path.is_file())
        if size > LIMIT_BYTES:
            raise SqlibError(f"{size / 1e6:.1f} MB to publish, the limit is {LIMIT_BYTES / 1e6:.0f} MB")
        wish_mode(fresh, 0o755)
        old = target.parent / f".{target.name}.old"
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return size, left_out


def copy_selection(study: Study, reports: Path, target: Path) -> list[str]:
    """Copy the study's pages, results and tables, the figures that the index and README show; every run's result; the first
    seed's models, quantised ones packed; and, while they fit, the first seed's pages, those of the first and the last
    setup before the others. Returns the pages that did not fit."""
    first = [run for run in study.runs() if run.seed == study.seeds[0]]
    always = [
        *reports.glob("*.html"),
        *(reports / "tables").glob("*"),
        *(reports / "figures").glob("compare_*_maps.png"),
    ]
    always += [path for path in (reports / "results").glob("*") if path.suffix in (".json", ".csv")]
    always += [path for path in (reports / "provenance").rglob("*.json")]
    always += [run.folder(reports) / name for run in study.runs() for name in ("result.json", "parameters.json")]
    always += [trial.path(reports) for trial in trials_of(study) if trial.path(reports).exists()]
    always += [run.folder(reports) / ("model.safetensors" if run.setup.is_float else results.PACKED) for run in first]
    ends = (study.setups[0].name, study.setups[-1].name)
    in_turn = sorted(first, key=lambda run: run.setup.name not in ends)
    pages = [run.folder(reports) / name for run in in_turn for name in ("train.html", "saliency.html")]
    size, left_out = 0, []
    for path in [*always, *pages]:
        more = path.stat().st_size
        if path in pages and size + more > LIMIT_BYTES:
            left_out.append(str(path.relative_to(reports / "runs")))
            continue
        copy = target / path.relative_to(reports)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        size += more
    return left_out


_ABSENT = (
    '<p class="note">Runs without a link: their pages are not published. <code>make reproduce</code> makes them.</p>'
)


def drop_dead_links(folder: Path) -> None:
    """In every page under `folder`, leave only the words of a link to a file that is not there, and say once why.

    Nothing stays of a step to such a page, or of links to the files of a figure or a table.
    """
    for path in folder.rglob("*.html"):
        page = parse(path.read_text(encoding="utf-8"))
        dead = [
            link for link in page("a", href=re.compile("^(?![a-z]+:|[#?])")) if not _leads_somewhere(link, path.parent)
        ]
        for link in dead:
            if link.find_parent("span", class_="files") or {"prev", "next"} & set(link.get("rel", [])):
                link.decompose()
            else:
                link.name, link.attrs = "span", {"class": "absent"}
        for emptied in page.select("span.files, nav.steps, p.note"):
            if not emptied.get_text(strip=True).replace("·", ""):
                emptied.decompose()
        if page.select("span.absent"):
            for heading in page.select("h2#runs, h2#related"):
                heading.insert_after(parse(_ABSENT))
        if dead:
            path.write_text(as_html(page), encoding="utf-8")


def _leads_somewhere(link: Tag, folder: Path) -> bool:
    return os.path.exists(folder / re.split("[#?]", link["href"])[0])
