"""Writes report.html for a run from its files, or a page that compares several runs.

    python -m tools.report sample
    python -m tools.report baseline with_crf other_seed

RUN is a run folder or the name of a run in --output_dir. With several runs, the first one is the baseline.
`main.py --do_eval` also writes the report.
"""

import sys
from dataclasses import dataclass
from typing import Literal

from engine.errors import UserError
from engine.run.command_line import check_values, option, run_command
from engine.run.launch import is_launched
from engine.run.run_folder import lock_folder
from logging_config import get_logger


@dataclass
class ReportConfig:
    """Options of `tools.report`."""

    runs: tuple[str, ...] = option((), "run folders, or their names in --output_dir", positional="RUN")
    output_dir: str = option("output", "folder of the runs; comparisons are written here")
    report_language: Literal["auto", "en", "zh"] = option("auto", "language of the page; auto: that of the texts")
    spreadsheet_safe: bool = option(False, "prefix cells that a spreadsheet would run as formulas with an apostrophe")

    def __post_init__(self) -> None:
        check_values(self)
        self.runs = tuple(self.runs)
        if not self.runs:
            raise UserError("no RUN given; pass one run, or several to compare")
        if is_launched():
            raise UserError("tools.report runs in a single process; start it without torchrun")


def main(config: ReportConfig) -> None:
    """Writes the report of one run to its folder, or the comparison of several runs to --output_dir."""
    from tools.report.compare import folder_of, show_comparison
    from tools.report.page import show_report

    get_logger()
    if len(config.runs) > 1:
        return show_comparison(config.output_dir, config.runs, config.report_language)
    with lock_folder(folder_of(config.output_dir, config.runs[0]), "make a copy of the folder") as folder:
        show_report(folder, config.report_language, config.spreadsheet_safe)


if __name__ == "__main__":
    sys.exit(run_command(main, ReportConfig))
