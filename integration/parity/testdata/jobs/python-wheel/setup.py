from setuptools import setup

setup(name="slugs", version="2.1", py_modules=["slugs"], description="Turns titles into names for addresses.")
