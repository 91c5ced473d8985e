"""At the end of a campaign: how many faults were tried, and how many survived; with RECORD=yes also in docs/reproducing.md."""

import os
import signal
from datetime import UTC, datetime

from pytest import ExitCode

from sqlib.report.words import duration
from sqlib.study.origin import provenance
from sqlib.workflow.readme import FAULTS, update_page

# A shell ignores Ctrl-C for what it starts in the background, and whatever that starts inherits it: not what is tried here.
signal.signal(signal.SIGINT, signal.default_int_handler)


def counted(reports) -> dict[str, list[int]]:
    """What was done and must follow, as its test is named: [faults tried, survived]."""
    found: dict[str, list[int]] = {}
    for report in reports:
        if report.when == "call" and "test_faults" in report.nodeid and report.outcome in ("passed", "failed"):
            properties = dict(report.user_properties)
            name = report.nodeid.split("::test_")[1].split("[")[0].replace("_", " ")
            name += f" ({properties['of']})" if "of" in properties else ""
            faults = properties.get("faults", 1)
            row = found.setdefault(name, [0, 0])
            row[0] += faults
            row[1] += faults if report.outcome == "passed" else 0
    return found


def block(found: dict[str, list[int]], seconds: float) -> str:
    """Markdown of a whole campaign."""
    origin = provenance()
    git = origin["git"] or {"revision": "no git", "dirty": False}
    code = git["revision"][:12] + (" with uncommitted changes" if git["dirty"] else "")
    tried, survived = (sum(row[i] for row in found.values()) for i in (0, 1))
    lines = ["| what was done, and what must follow | tried | survived |", "| --- | --- | --- |"]
    lines += [f"| {name} | {row[0]} | {row[1]} |" for name, row in found.items()]
    lines += [
        "",
        f"**{tried} faults tried, {survived} survived**, in {duration(seconds)} on {origin['cores']} cores of {origin['cpu']}, "
        f"{datetime.now(UTC):%Y-%m-%d}, code {code}.",
    ]
    return "\n".join(lines)


def pytest_terminal_summary(terminalreporter, exitstatus):
    stats = terminalreporter.stats
    found = counted([report for outcome in ("passed", "failed") for report in stats.get(outcome, [])])
    tried, survived = (sum(row[i] for row in found.values()) for i in (0, 1))
    terminalreporter.write_line(f"faults tried: {tried}, survived: {survived}")
    if not os.environ.get("RECORD"):
        return
    left_out = [name for name in ("deselected", "skipped", "error") if stats.get(name)]
    left_out += ["FAULTS is set"] * bool(os.environ.get("FAULTS"))
    left_out += ["it did not come to its end"] * (exitstatus not in (ExitCode.OK, ExitCode.TESTS_FAILED))
    if left_out:
        terminalreporter.write_line(f"not recorded: not the whole campaign ({', '.join(left_out)})")
        return
    seconds = sum(report.duration for reports in stats.values() for report in reports if hasattr(report, "duration"))
    update_page(FAULTS, block(found, seconds))
    terminalreporter.write_line(f"recorded in {FAULTS.page}")
