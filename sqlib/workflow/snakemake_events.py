"""`python -m sqlib.workflow.snakemake_events ARGUMENT...`: Snakemake, saying all it says as JSON, a line for each log record.

A line has `text` (what it would have printed) and, where the record is an event (`snakemake_interface_logger_plugins`), `event`
with the number of its job and the last of the job's log files. On its own command line Snakemake finds a logger only as an
installed package; so this one is registered in the process that it is for. A line that is no JSON comes from elsewhere.
"""

import json
import sys
from logging import LogRecord

from snakemake.cli import main
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry


class LogHandler(LogHandlerBase):
    """Takes the place of Snakemake's own printing; its filter and its texts stay."""

    writes_to_stream = True
    writes_to_file = has_filter = has_formatter = needs_rulegraph = False

    def emit(self, record: LogRecord) -> None:
        text = self.format(record)
        line = {"text": text if text != "None" else ""}  # of a record that has no words
        if event := getattr(record, "event", None):
            line["event"] = str(event)
            line["job"] = getattr(record, "jobid", getattr(record, "job_id", None))
            line["log"] = (list(getattr(record, "log", [])) or [None])[-1]
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    LoggerPluginRegistry().register_plugin("snakemake_logger_plugin_json", sys.modules["__main__"])
    main([*sys.argv[1:], "--logger", "json"])
