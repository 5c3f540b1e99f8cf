"""Pages to open in a browser: a report on a run, a look at a data set."""

try:
    import jinja2  # noqa: F401
    import matplotlib  # noqa: F401
except ModuleNotFoundError as error:
    message = "jaxdet report and inspect need jinja2 and matplotlib: pip install 'jaxdet[report]'"
    raise ModuleNotFoundError(message, name=error.name) from error
