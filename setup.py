from setuptools import setup

setup()  # For tools that ask for this file; pyproject.toml says everything.
