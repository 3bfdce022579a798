"""A look at recordings: what they hold, in numbers and as a page."""

from __future__ import annotations

from teamvla.data.overview.report import write_report as write_report
from teamvla.data.overview.survey import Group as Group
from teamvla.data.overview.survey import Overview as Overview
from teamvla.data.overview.survey import survey as survey
