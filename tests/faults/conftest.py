"""At the end of a campaign: how many faults were tried, and how many survived."""


def pytest_terminal_summary(terminalreporter):
    tried = survived = 0
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            if report.when == "call" and "test_faults" in report.nodeid:
                faults = dict(report.user_properties).get("faults", 1)
                tried += faults
                survived += faults if outcome == "passed" else 0
    terminalreporter.write_line(f"faults tried: {tried}, survived: {survived}")
