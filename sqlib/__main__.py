"""`python -m sqlib COMMAND`: in a process that is forked ready to work where a study keeps one, else in this one."""

import sys

from sqlib.workflow import forkserver

if __name__ == "__main__":
    code = forkserver.run_there(sys.argv[1:])
    if code is None:
        from sqlib.workflow.commands import main

        main()
    sys.exit(code)
