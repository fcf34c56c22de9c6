"""Experiments on the memory: measured runs with pass criteria, on any model and any source.

Each experiment is a module with ``TITLE``, ``options(parser)`` and ``run(bench)``; `command` finds
it by name, gives it a `Bench`, and turns what it wrote into JSON, Markdown, plots and an exit
status.
"""
