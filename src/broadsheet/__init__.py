"""broadsheet: every paper on one page of 79 papers about LLMs for text, runnable on your model and your data.

Importing this package imports no heavy library; torch arrives with the first method that is used.
"""

__version__ = "0.1.0"
