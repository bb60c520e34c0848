"""Pages for people: one HTML file that needs nothing else, in the style and under the rules of page.html."""

from base64 import b64encode
from collections.abc import Callable, Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined


def render_page(name: str, values: Mapping[str, object], **filters: Callable[..., object]) -> str:
    """Fill a page: no script, nothing fetched, and every value escaped.

    Args:
        name: a template of this package that extends page.html.
        values: what the template names.
        filters: what it calls beside `data_uri`.
    """
    environment = Environment(
        loader=PackageLoader("dermtune", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data_uri": data_uri, **filters}
    return environment.get_template(name).render(values)


def data_uri(image: bytes, kind: str) -> str:
    """An image as an address that holds it; `kind` is `png` or `jpeg`."""
    return f"data:image/{kind};base64,{b64encode(image).decode('ascii')}"


def amount(count: float) -> str:
    """Three digits and a word: 4.65 million."""
    for size, word in ((1e12, " trillion"), (1e9, " billion"), (1e6, " million"), (1e3, " thousand")):
        if count >= size:
            return f"{count / size:.3g}{word}"
    return f"{count:.3g}"
