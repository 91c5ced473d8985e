"""`make publish`: what of a finished study goes to reports/reference, and so into git."""

import os
import re
import shutil
import tempfile
from pathlib import Path

from sqlib.checked import SqlibError
from sqlib.files import wish_mode
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
_LINK = re.compile(r'<a\b[^>]*?\bhref="([^"#?]+)[^"]*"[^>]*>(.*?)</a>', re.DOTALL)
_FILES = re.compile(r'<span class="files">.*?</span>', re.DOTALL)


def drop_dead_links(folder: Path) -> None:
    """In every page under `folder`, leave only the words of a link to a file that is not there, and say once why.

    Nothing stays of a step to such a page, or of links to the files of a figure or a table.
    """
    for page in folder.rglob("*.html"):

        def keep_or_drop(link: re.Match, words: bool = True, at: Path = page.parent) -> str:
            remote = re.match(r"[a-z]+:", link[1]) is not None
            if remote or os.path.exists(at / link[1]):
                return link[0]
            gone = not words or 'rel="prev"' in link[0] or 'rel="next"' in link[0]
            return "" if gone else f'<span class="absent">{link[2]}</span>'

        def files_there(files: re.Match, drop=keep_or_drop) -> str:
            return _LINK.sub(lambda link: drop(link, words=False), files[0])

        text = page.read_text(encoding="utf-8")
        kept = _LINK.sub(keep_or_drop, _FILES.sub(files_there, text))
        kept = re.sub(r'\s*<span class="files">[ ·]*</span>', "", kept)
        kept = kept.replace('<p class="note"></p>', "")
        kept = re.sub(r'<nav class="steps"[^>]*>\s*</nav>', "", kept)
        if '<span class="absent">' in kept:
            kept = re.sub(r'<h2 id="(?:runs|related)">[^<]*</h2>', rf"\g<0>{_ABSENT}", kept)
        if kept != text:
            page.write_text(kept, encoding="utf-8")
