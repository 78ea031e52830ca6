"""The sections of the page. Each takes its own part of the report and returns markup, or nothing
where there is nothing to draw.
"""
