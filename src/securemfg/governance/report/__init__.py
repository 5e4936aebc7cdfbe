"""The compliance report: built once from evidence and findings, rendered as one HTML page and as Markdown."""

from __future__ import annotations

from securemfg.governance.report.html import render_html
from securemfg.governance.report.markdown import render_markdown
from securemfg.governance.report.model import Report, build
from securemfg.governance.report.writing import write

__all__ = ["Report", "build", "render_html", "render_markdown", "write"]
