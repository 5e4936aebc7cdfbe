"""Documents in, documents out: the catalog, access decisions, controls, checks and the report.

This room asks no service. What it judges is handed to it as plain data, so that a finding can be made again
from the same evidence, anywhere.
"""
